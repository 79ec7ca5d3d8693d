"""Make matplotlib figures, and put figures and recordings into a page.

A figure stands in the page as inline SVG. Its text and lines have the page's colours, in light and in dark
mode and in print, and `add_tips` gives its marks hover texts. No script is needed.
"""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# Colours of series. The page's style sheet has a variable for each: --c0, --c1, ...
PALETTE = (
    "#0b66c3", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#57606a",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#1f2329"  # stands for the colour of the page's text
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlecolor": INK,
    "grid.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.0,
    "legend.fontsize": 8.5,
    # Text stays text, and the same figure is the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "hmamba_asr",
}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_TIPS = "tips:"  # begins the gid of what has hover texts
_BETWEEN = "|"  # of two of them


@contextmanager
def page_style() -> Iterator[None]:
    """Draw and save figures in the style that `inline_svg` needs."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=PALETTE)}):
        yield


def new_figure(rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Make a figure with ``rows`` axes one below the other; it needs no screen.

    Parameters
    ----------
    rows
        Number of axes. With 1, the second value returned is one axes, otherwise an array of them.
    **options
        Those of `matplotlib.pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, 1, layout="constrained", **options)


def legend_above(figure: Figure, *, columns: int = 2) -> None:
    """Put the legend of all axes above them."""
    figure.legend(loc="outside upper left", ncols=columns, frameon=False)


def add_tips(artist: Artist, tips: Sequence[str]) -> None:
    """Give an artist hover texts: one for all of it, or one for each marker of a line."""
    artist.set_gid(_TIPS + _BETWEEN.join(tip.replace(_BETWEEN, "/") for tip in tips))


def inline_svg(figure: Figure, *, name: str, alt: str) -> str:
    """Return the figure as an SVG element for a page, and close it.

    Parameters
    ----------
    figure
        A figure that was drawn in `page_style`.
    name
        Begins the element's ids. No other figure of the page has it.
    alt
        What the figure shows, for those who do not see it.
    """
    import matplotlib.pyplot as plt

    stream = io.StringIO()
    figure.savefig(stream, format="svg", dpi=144, metadata={"Date": None})
    plt.close(figure)
    root = ET.fromstring(stream.getvalue())
    svg = f"{{{_SVG}}}"
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet would be the whole page's.
            if child.tag.endswith("}metadata") or child.find(f"{svg}style") is not None:
                parent.remove(child)
    for element in list(root.iter()):
        if (tips := element.get("id", "")).startswith(_TIPS):
            _title(element, tips.removeprefix(_TIPS).split(_BETWEEN))
    _rename(root, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    ET.register_namespace("", _SVG)
    text = ET.tostring(root, encoding="unicode").replace(f' xmlns="{_SVG}"', "")
    for index, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--c{index})")
    return text.replace(INK, "currentColor")


def _title(element: ET.Element, tips: list[str]) -> None:
    marks = [element] if len(tips) == 1 else list(element.iter(f"{{{_SVG}}}use"))
    assert len(marks) == len(tips), f"{len(tips)} hover texts for {len(marks)} marks"
    for mark, tip in zip(marks, tips, strict=True):
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = tip
        mark.insert(0, title)
    element.attrib["class"] = "tips"
    del element.attrib["id"]


def _rename(root: ET.Element, name: str) -> None:
    """Keep only ids that are used, and make them the page's own; shorten numbers and names of fonts."""
    used = set()
    for element in root.iter():
        if link := element.attrib.pop(f"{{{_LINK}}}href", None):
            element.set("href", f"#{name}-{link[1:]}" if link.startswith("#") else link)
            used.add(link[1:])
        if clip := element.get("clip-path"):
            used.add(clip[5:-1])
            element.set("clip-path", f"url(#{name}-{clip[5:-1]})")
        for key in ("d", "x", "y", "transform", "points"):
            if key in element.attrib:
                element.set(key, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[key]))
        if "font" in (style := element.get("style", "")):
            element.set("style", re.sub(r"'DejaVu Sans'[^;]*", "system-ui, sans-serif", style))
    for element in root.iter():
        if (identifier := element.attrib.pop("id", None)) and identifier in used:
            element.set("id", f"{name}-{identifier}")


def audio_uri(samples: np.ndarray, sample_rate: int) -> str:
    """Return samples (S,) as MP3, which every browser plays, in a data: address."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, sample_rate, format="MP3")
    return f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
