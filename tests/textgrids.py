"""A small TextGrid, as a forced aligner writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

TEXTGRID = """\
File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.0
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = ""
        intervals [2]:
            xmin = 0.2
            xmax = 0.7
            text = "hi"
        intervals [3]:
            xmin = 0.7
            xmax = 1.0
            text = ""
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.0
        intervals: size = 5
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = "sil"
        intervals [2]:
            xmin = 0.2
            xmax = 0.4
            text = "HH"
        intervals [3]:
            xmin = 0.4
            xmax = 0.7
            text = "AY1"
        intervals [4]:
            xmin = 0.7
            xmax = 0.8
            text = "sp"
        intervals [5]:
            xmin = 0.8
            xmax = 1.0
            text = ""
"""


@pytest.fixture
def grid(tmp_path) -> Path:
    path = tmp_path / "speaker" / "u1.TextGrid"
    path.parent.mkdir()
    path.write_text(TEXTGRID)
    return path
