"""Where chunks begin, and the file that records it."""

from __future__ import annotations

import pytest

from hmamba_asr.evaluation.segmentation import Segmentation, read_segmentations, write_segmentations


def test_times_of_chunks():
    """Frame t begins half a frame before its centre; the first chunk's start is no boundary."""
    chunks = Segmentation("u", frames=10, first=-0.02, step=0.04, starts=((0, 3, 4), (0, 4)))
    assert chunks.boundaries() == pytest.approx([0.1, 0.14]) and chunks.boundaries(1) == pytest.approx([0.14])
    assert chunks.durations() == pytest.approx([0.12, 0.04, 0.24])


def test_chunks_read_back(tmp_path):
    chunks = [Segmentation("b", 4, -0.02, 0.04, ((0, 2),)), Segmentation("a", 3, -0.02, 0.04, ((0,),))]
    path = tmp_path / "new" / "chunks.jsonl"
    write_segmentations(path, chunks)
    assert read_segmentations(path) == chunks[::-1]
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"chunks\.jsonl, line 1 does not describe"):
        read_segmentations(path)
    with pytest.raises(FileNotFoundError, match="only runs that chunk have one"):
        read_segmentations(tmp_path / "chunks.jsonl")
