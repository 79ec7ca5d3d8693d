"""TextGrids are read, and those of real recordings hold what was said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textgrids import TEXTGRID

from hmamba_asr.evaluation.boundary_agreement import hits
from hmamba_asr.evaluation.textgrid import read_textgrid, read_textgrids


def test_a_textgrid_is_read(grid):
    alignment = read_textgrid(grid)
    assert alignment.intervals["words"] == ((0.0, 0.2, ""), (0.2, 0.7, "hi"), (0.7, 1.0, ""))
    assert alignment.boundaries("phones") == pytest.approx([0.2, 0.4, 0.7])  # not between sp and silence
    assert alignment.boundaries("words") == pytest.approx([0.2, 0.7])
    assert alignment.silent([0.1, 0.2, 0.69, 0.7, 0.9]).tolist() == [True, False, False, True, True]
    assert alignment.silent_seconds == pytest.approx(0.5) and alignment.seconds == 1.0
    assert read_textgrids(grid.parents[1], ["u1", "u2"]) == {"u1": alignment}


@pytest.mark.parametrize("text", ["", "no TextGrid", TEXTGRID.replace('"phones"', '"segments"')])
def test_what_is_no_alignment_is_refused(grid, text):
    grid.write_text(text)
    with pytest.raises(ValueError, match=r"u1\.TextGrid is not a TextGrid with the tiers phones and words"):
        read_textgrid(grid)
    with pytest.raises(FileNotFoundError, match=r"no ID\.TextGrid of any of the 1 utterances"):
        read_textgrids(grid.parent, ["other"])


@pytest.fixture(scope="session")
def alignment_folder() -> Path:
    folder = os.environ.get("HMAMBA_ALIGNMENTS")
    if not folder:
        pytest.skip("HMAMBA_ALIGNMENTS names no folder of TextGrids of the recordings in HMAMBA_SPEECH")
    return Path(folder)


def test_real_alignments_hold_the_transcripts(speech_folder, alignment_folder):
    """Words are those of the corpus, a word's edges are edges of phones, and the tiers end with the
    recording."""
    import soundfile

    transcripts = {}
    for path in speech_folder.rglob("*.trans.txt"):
        transcripts |= dict(line.split(" ", 1) for line in path.read_text().splitlines())
    alignments = read_textgrids(alignment_folder, transcripts)
    assert len(alignments) > 100
    recordings = {path.stem: path for path in speech_folder.rglob("*.flac")}
    for key, alignment in alignments.items():
        # The aligner divides COSETTE'S, now and then without its apostrophe.
        words = "".join(label.upper() for *_, label in alignment.intervals["words"]).replace("'", "")
        assert "<UNK>" in words or words == transcripts[key].replace(" ", "").replace("'", ""), key
        phones, edges = alignment.boundaries("phones"), alignment.boundaries("words")
        assert hits(phones, edges, 0.001) == len(edges), key
        assert alignment.seconds == pytest.approx(soundfile.info(recordings[key]).duration, abs=0.05)
