"""Write labels beside the points of a chart, where they cover least of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bounds = tuple[float, float, float, float]  # left, bottom, right, top, in pixels

POINT = 5.0  # half the size of a marker
LINE = 3.0  # half the width that a line or a whisker is given
GAP = 7.0  # between a label and a whisker's end
PIECES = 40  # into which a line between two points is cut
ROUNDS = 10


@dataclass(frozen=True)
class Label:
    """A point and what to write beside it.

    Attributes
    ----------
    words
        The text.
    line
        Consecutive points with the same ``line`` are joined; labels keep off the line.
    x, y
        The lower end of the whisker, the value, and the upper end, in the units of the axes.
    colour
        Of the text.
    bold
        Whether the text is bold.
    """

    words: str
    line: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    colour: str
    bold: bool = False


class _Place(NamedTuple):
    """An anchor in pixels, which side of the text stands there, and the text's box."""

    anchor: tuple[float, float]
    across: str
    along: str
    box: Bounds


def write_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write the labels into axes whose limits and place in the figure are final.

    Each label has a dozen places around its point. It takes the one where it covers least of the points,
    whiskers, lines and other labels, and leaves the axes least.
    """
    obstacles = _obstacles(axes, labels)
    frame = axes.get_window_extent().extents
    texts = [
        axes.text(
            label.x[1],
            label.y[1],
            label.words,
            color=label.colour,
            fontweight="bold" if label.bold else "normal",
        )
        for label in labels
    ]
    places = [
        _places(axes, label, *text.get_window_extent().size)
        for label, text in zip(labels, texts, strict=True)
    ]
    # What each place costs beside no other label. The rank decides between free places.
    alone = [
        [
            rank
            + sum(_overlap(place.box, other) for other in obstacles)
            + 10 * (_area(place.box) - _overlap(place.box, frame))
            for rank, place in enumerate(options)
        ]
        for options in places
    ]
    chosen = [costs.index(min(costs)) for costs in alone]
    for _ in range(ROUNDS):
        for index, options in enumerate(places):
            others = [places[k][chosen[k]].box for k in range(len(places)) if k != index]
            costs = [
                cost + 2 * sum(_overlap(place.box, other) for other in others)
                for cost, place in zip(alone[index], options, strict=True)
            ]
            chosen[index] = costs.index(min(costs))
    to_data = axes.transData.inverted().transform
    for text, options, choice in zip(texts, places, chosen, strict=True):
        place = options[choice]
        text.set(position=to_data(place.anchor), ha=place.across, va=place.along)


def _places(axes: Axes, label: Label, width: float, height: float) -> list[_Place]:
    """Return the places around a point and its whiskers, the best first."""
    scale = axes.transData.transform
    (left, low), (x, y), (right, high) = (scale(ends) for ends in zip(label.x, label.y, strict=True))
    anchors = [
        (right + GAP, y, "left", "center"),
        (x, high + GAP, "center", "bottom"),
        (x, low - GAP, "center", "top"),
        (left - GAP, y, "right", "center"),
    ]
    for far in (5.0, 11.0):
        anchors += [
            (
                x + across * far,
                y + along * far,
                "left" if across > 0 else "right",
                "bottom" if along > 0 else "top",
            )
            for across in (1, -1)
            for along in (1, -1)
        ]
    start = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
    found = []
    for anchor_x, anchor_y, across, along in anchors:
        begin, bottom = anchor_x - start[across] * width, anchor_y - start[along] * height
        found.append(
            _Place(
                (anchor_x, anchor_y), across, along, (begin, bottom - 1, begin + width, bottom + height + 1)
            )
        )
    return found


def _obstacles(axes: Axes, labels: Sequence[Label]) -> list[Bounds]:
    """Return what labels shall not cover: points with their whiskers, and short pieces of the lines."""
    scale = axes.transData.transform
    taken: list[Bounds] = []
    before: dict[str, tuple[float, float]] = {}
    for label in labels:
        (left, low), (x, y), (right, high) = (scale(ends) for ends in zip(label.x, label.y, strict=True))
        taken.append((left - LINE, y - POINT, right + LINE, y + POINT))
        taken.append((x - POINT, low - LINE, x + POINT, high + LINE))
        if label.line in before:
            start = before[label.line]
            for piece in range(PIECES):
                at = (piece + 0.5) / PIECES
                centre = [a + at * (b - a) for a, b in zip(start, (x, y), strict=True)]
                taken.append((centre[0] - LINE, centre[1] - LINE, centre[0] + LINE, centre[1] + LINE))
        before[label.line] = (x, y)
    return taken


def _area(box: Bounds) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
