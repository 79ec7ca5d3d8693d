"""Labels beside points: they cover neither each other nor points, and stay in the axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from hmamba_asr.report.labels import Label, write_labels


def _axes():
    figure = Figure(figsize=(5, 4), dpi=100)
    axes = figure.add_axes((0.1, 0.1, 0.85, 0.85))
    axes.set(xlim=(0, 10), ylim=(0, 10))
    figure.draw_without_rendering()
    return axes


def _label(words: str, x: float, y: float, *, whisker: float = 0.0, line: str | None = None) -> Label:
    return Label(
        words,
        line=words if line is None else line,
        x=(x - whisker, x, x + whisker),
        y=(y - whisker, y, y + whisker),
        colour="black",
    )


def _boxes(axes) -> dict[str, np.ndarray]:
    return {text.get_text(): text.get_window_extent().extents for text in axes.texts}


def _apart(a, b) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_free_label_stands_right_of_its_whisker():
    axes = _axes()
    write_labels(axes, [_label("alone", 3.0, 5.0, whisker=1.0)])
    left, low, _, high = _boxes(axes)["alone"]
    end, middle = axes.transData.transform((4.0, 5.0))
    assert end < left < end + 10 and (low + high) / 2 == pytest.approx(middle, abs=1.5)


def test_a_label_keeps_inside_the_axes_and_off_the_lines():
    axes = _axes()
    joined = [_label("start", 5.0, 5.0, line="a"), _label("end", 9.8, 5.0, line="a")]
    write_labels(axes, joined)
    boxes, frame = _boxes(axes), axes.get_window_extent().extents
    for box in boxes.values():
        assert (box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all()
    # The line lies where the first label would stand.
    height = axes.transData.transform((5.0, 5.0))[1]
    assert not boxes["start"][1] <= height <= boxes["start"][3]


def test_labels_of_crowded_points_cover_nothing():
    points = {"one": (5.0, 5.0), "two": (5.2, 5.3), "three": (5.5, 4.9), "four": (4.8, 4.7)}
    axes = _axes()
    write_labels(axes, [_label(words, *place) for words, place in points.items()])
    boxes = _boxes(axes)
    assert all(_apart(a, b) for a, b in itertools.combinations(boxes.values(), 2))
    for place in points.values():
        x, y = axes.transData.transform(place)
        assert all(_apart(box, (x - 4, y - 4, x + 4, y + 4)) for box in boxes.values())
