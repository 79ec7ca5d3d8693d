#!/usr/bin/env python3
"""Draw ConMamba beside H-Mamba, as README.md shows them.

    python scripts/draw_models.py [--folder recipes/librispeech/figures]

Writes model_light.svg and model_dark.svg into the folder: one drawing in two sets of colours.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_FOLDER = ROOT / "recipes" / "librispeech" / "figures"
FONTS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"

WIDTH, HEIGHT = 900, 578
# The word of the drawing: its labels, and the frames that each of them takes. N = 12 / 6 = 2.
CHUNKS = (("l", 2), ("i", 1), ("s", 3), ("t", 1), ("e", 2), ("n", 3))
FRAMES = sum(length for _, length in CHUNKS)
STARTS = [sum(length for _, length in CHUNKS[:index]) for index in range(len(CHUNKS))]
CELL, PITCH = 26, 29  # width of a frame's square, and distance of two
BLOCK = 11  # height of a block


def row_width(cells: int) -> int:
    """Return the width of a row of cells."""
    return PITCH * (cells - 1) + CELL


FRAMES_WIDTH = row_width(FRAMES)
LEFT, RIGHT = 20 + (480 - FRAMES_WIDTH) / 2, 512 + (368 - FRAMES_WIDTH) / 2  # where both models' frames begin
TITLE = "ConMamba and H-Mamba"
DESCRIPTION = (
    "Audio becomes log-Mel features, 100 a second. Two stride-2 convolutions make frames, 25 a second. "
    "ConMamba has 12 blocks on all frames. Its CTC head and Transformer decoder read the frames. "
    "H-Mamba has 8 blocks on all frames. The CTC head finds where labels begin, and chunks begin there. "
    "N is the number of frames per chunk, on average. In the drawing, 12 frames make 6 chunks, so N is 2. "
    "Four blocks on chunks follow. The CTC head and the Transformer decoder read the chunks. "
    "A block is half a feed-forward module, a bidirectional Mamba, a convolution, half a feed-forward module "
    "and a layer norm. The first four have residual connections."
)
COLOURS = {
    "light": {
        "page": "#ffffff",
        "panel": "#f6f8fa",
        "line": "#d1d9e0",
        "text": "#1f2328",
        "soft": "#59636e",
        "module": "#ffffff",
        "frame": "#cfe3fb",
        "frame-line": "#2f6fb7",
        "chunk": "#fbd9ae",
        "chunk-line": "#b35c00",
    },
    "dark": {
        "page": "#0d1117",
        "panel": "#151b23",
        "line": "#3d444d",
        "text": "#f0f6fc",
        "soft": "#9aa4af",
        "module": "#212830",
        "frame": "#173a61",
        "frame-line": "#6cb0f5",
        "chunk": "#5a3a10",
        "chunk-line": "#f0a545",
    },
}
STYLE = """\
text {{ font-family: {fonts}; font-size: 15px; fill: {text}; }}
.title {{ font-size: 20px; font-weight: 600; }}
.small {{ font-size: 14px; fill: {soft}; }}
.strong {{ font-size: 15px; font-weight: 600; }}
.inner {{ font-size: 14px; }}
.label {{ font-size: 16px; font-weight: 600; fill: {chunk-line}; }}
.page {{ fill: {page}; }}
.panel {{ fill: {panel}; stroke: {line}; }}
.module {{ fill: {module}; stroke: {soft}; }}
.frames {{ fill: {frame}; stroke: {frame-line}; }}
.chunks {{ fill: {chunk}; stroke: {chunk-line}; }}
.funnel {{ fill: {chunk}; fill-opacity: 0.3; }}
.funnel:nth-of-type(odd) {{ fill-opacity: 0.65; }}
.wave {{ fill: none; stroke: {frame-line}; stroke-width: 2; stroke-linecap: round; }}
.arrow {{ fill: none; stroke: {soft}; stroke-width: 1.5; marker-end: url(#head); }}
.wire {{ fill: none; stroke: {soft}; stroke-width: 1.5; }}
#head path {{ fill: {soft}; }}"""


class Drawing:
    """Lines of SVG, and what each shape of the drawing looks like."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", *, anchor: str = "start") -> None:
        look = f' class="{style}"' if style else ""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.lines.append(f'<text x="{x:g}" y="{y:g}"{look}{where}>{escape(words)}</text>')

    def rectangle(
        self, x: float, y: float, width: float, height: float, style: str, *, round_by: float = 4
    ) -> None:
        size = f'width="{width:g}" height="{height:g}" rx="{round_by:g}"'
        self.lines.append(f'<rect class="{style}" x="{x:g}" y="{y:g}" {size}/>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        words: Sequence[str],
        style: str = "module",
        *,
        second_style: str = "small",
    ) -> None:
        """Draw a box with a line of text, and at most one more below it, in its middle."""
        self.rectangle(x, y, width, height, style, round_by=6)
        first = y + height / 2 + 5 - 10 * (len(words) - 1)
        styles = ("strong" if style != "module" else "inner" if second_style == "inner" else "", second_style)
        for index, (line, look) in enumerate(zip(words, styles, strict=False)):
            self.text(x + width / 2, first + 20 * index, line, look, anchor="middle")

    def blocks(self, x: float, y: float, width: float, count: int, words: Sequence[str], style: str) -> None:
        """Draw a stack of blocks: a box with a line between two of them at its sides."""
        self.box(x, y, width, BLOCK * count, words, style, second_style="small")
        side = width / 2 - 60
        lines = (
            f"M{x + start:g} {y + BLOCK * index:g} h{side:g}"
            for index in range(1, count)
            for start in (0, width - side)
        )
        self.lines.append(f'<path class="{style}" d="{" ".join(lines)}"/>')

    def line(self, *points: tuple[float, float], style: str = "arrow") -> None:
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        self.lines.append(f'<path class="{style}" d="M{path}"/>')

    def cells(self, x: float, y: float, styles: Sequence[str]) -> None:
        for index, style in enumerate(styles):
            self.rectangle(x + PITCH * index, y, CELL, CELL, style, round_by=3)

    def funnel(self, top: tuple[float, float], bottom: tuple[float, float], y: float, height: float) -> None:
        """Join the edges of a group of frames to the edges of its chunk."""
        corners = [(top[0], y), (top[1], y), (bottom[1], y + height), (bottom[0], y + height)]
        path = " L".join(f"{x:g} {y:g}" for x, y in corners)
        self.lines.append(f'<path class="funnel" d="M{path} Z"/>')


def draw() -> list[str]:
    """Return the lines of SVG between the style and the end."""
    drawing = Drawing()
    drawing.rectangle(0, 0, WIDTH, HEIGHT, "page", round_by=8)
    _draw_frontend(drawing)
    _draw_conmamba(drawing)
    _draw_block(drawing)
    _draw_hmamba(drawing)
    return drawing.lines


def _draw_frontend(drawing: Drawing) -> None:
    y, height = 18, 54
    middle = y + height / 2
    sizes = [10 * math.sin(0.9 * i) ** 2 * (1 + math.sin(0.35 * i)) + 2 for i in range(21)]
    strokes = [f"M{24 + 5 * i} {middle - 6 - size:.1f} v{2 * size:.1f}" for i, size in enumerate(sizes)]
    drawing.lines.append(f'<path class="wave" d="{" ".join(strokes)}"/>')
    drawing.text(74, y + height, "audio", anchor="middle")
    drawing.line((138, middle), (164, middle))
    drawing.box(172, y, 172, height, ["log-Mel features", "100 a second"])
    drawing.line((344, middle), (366, middle))
    drawing.box(374, y, 206, height, ["two stride-2 convolutions", "4 features to 1 frame"])
    drawing.line((580, middle), (602, middle))
    drawing.box(610, y, 270, height, ["frames", "25 a second, 40 ms each"], "frames")


def _draw_conmamba(drawing: Drawing) -> None:
    drawing.rectangle(20, 102, 480, 312, "panel", round_by=8)
    drawing.text(32, 129, "ConMamba", "title")
    _draw_frames(drawing, LEFT)
    drawing.blocks(LEFT, 184, FRAMES_WIDTH, 12, ["12 blocks", "on all frames"], "frames")
    _draw_heads(drawing, LEFT, 316)


def _draw_block(drawing: Drawing) -> None:
    drawing.rectangle(20, 426, 480, 134, "panel", round_by=8)
    drawing.text(32, 453, "Every block", "title")
    drawing.text(488, 453, "The first four have residual connections.", "small", anchor="end")
    x = 32.0
    modules = (("half", 90), ("bidirectional", 92), ("convolution", 86), ("half", 90), ("layer", 50))
    below = ("feed-forward", "Mamba", "", "feed-forward", "norm")
    for index, ((first, width), second) in enumerate(zip(modules, below, strict=True)):
        if index:
            drawing.line((x - 12, 510), (x - 8, 510))
        drawing.box(x, 478, width, 64, [line for line in (first, second) if line], second_style="inner")
        x += width + 12


def _draw_hmamba(drawing: Drawing) -> None:
    drawing.rectangle(512, 102, 368, 458, "panel", round_by=8)
    drawing.text(524, 129, "H-Mamba", "title")
    _draw_frames(drawing, RIGHT)
    drawing.blocks(RIGHT, 184, FRAMES_WIDTH, 8, ["8 blocks", "on all frames"], "frames")
    drawing.text(RIGHT, 296, "The CTC head finds where labels begin:")
    for (label, _), start in zip(CHUNKS, STARTS, strict=True):
        drawing.text(RIGHT + PITCH * start + CELL / 2, 317, label, "label", anchor="middle")
    drawing.cells(RIGHT, 324, ["chunks" if frame in STARTS else "frames" for frame in range(FRAMES)])
    for index, (start, (_, length)) in enumerate(zip(STARTS, CHUNKS, strict=True)):
        top = RIGHT + PITCH * start
        bottom = RIGHT + PITCH * index
        drawing.funnel((top, top + row_width(length)), (bottom, bottom + CELL), 324 + CELL, 28)
    drawing.cells(RIGHT, 378, ["chunks"] * len(CHUNKS))
    width = row_width(len(CHUNKS))
    beside = RIGHT + width + 12
    drawing.text(beside, 399, "N = frames per chunk", "strong")
    drawing.text(beside, 420, "on average, here 2", "small")
    drawing.text(beside, 453, "about N times fewer states", "small")
    drawing.line((RIGHT + width / 2, 404), (RIGHT + width / 2, 408))
    drawing.blocks(RIGHT, 416, width, 4, ["4 blocks", "on chunks"], "chunks")
    _draw_heads(drawing, RIGHT, 460)


def _draw_frames(drawing: Drawing, left: float) -> None:
    """Draw the frames that go into a model's first block, and the lines to and from them."""
    middle = left + FRAMES_WIDTH / 2
    drawing.line((RIGHT + FRAMES_WIDTH / 2, 72), (RIGHT + FRAMES_WIDTH / 2, 87), (middle, 87), (middle, 132))
    drawing.cells(left, 140, ["frames"] * FRAMES)
    drawing.line((middle, 166), (middle, 176))


def _draw_heads(drawing: Drawing, left: float, y: float) -> None:
    """Draw what reads the last block's states, which end at y."""
    split = 130
    drawing.line((left + split / 2, y), (left + split / 2, y + 12))
    drawing.line((left + split + 24, y), (left + split + 24, y + 12))
    drawing.box(left, y + 20, split - 10, 36, ["CTC head"])
    drawing.box(left + split, y + 20, FRAMES_WIDTH - split, 36, ["Transformer decoder"])
    word = f"“{''.join(label for label, _ in CHUNKS)}”"
    drawing.line((left + FRAMES_WIDTH / 2, y + 56), (left + FRAMES_WIDTH / 2, y + 64))
    drawing.text(left + FRAMES_WIDTH / 2, y + 86, word, "label", anchor="middle")


def render(colours: dict[str, str]) -> str:
    """Return the drawing as SVG in these colours."""
    style = STYLE.format(fonts=FONTS, **colours)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title description">'
    )
    return "\n".join(
        [
            head,
            f'<title id="title">{escape(TITLE)}</title>',
            f'<desc id="description">{escape(DESCRIPTION)}</desc>',
            f"<style>\n{style}\n</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="6" markerHeight="6" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 Z"/></marker></defs>',
            *draw(),
            "</svg>",
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, colours in COLOURS.items():
        path = options.folder / f"model_{name}.svg"
        path.write_text(render(colours), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
