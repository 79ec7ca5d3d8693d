"""Errors by speaker, by length and by word, counted by hand and on real outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmamba_asr.evaluation.breakdown import by_length, by_speaker, confusions
from hmamba_asr.evaluation.wer import align, read_trn, score_split

REFERENCES = {"1-2-0000": "A B C D", "1-2-0001": "A", "2-1-0000": "A B C D E F", "3-1-0000": ""}
HYPOTHESES = {"1-2-0000": "A X C", "1-2-0001": "A", "2-1-0000": "A X C D E F G", "3-1-0000": "A"}


@pytest.fixture
def aligned():
    return align(REFERENCES, HYPOTHESES)


def test_speakers_by_hand(aligned):
    parts = by_speaker(aligned)
    assert [(part.name, part.utterances, part.errors, part.words) for part in parts] == [
        ("1", 2, 2, 5),
        ("2", 1, 2, 6),
    ]
    assert [part.rate for part in parts] == pytest.approx([40, 100 / 3])
    assert parts[1].interval == pytest.approx((100 / 3, 100 / 3))  # one utterance: every resample is itself


def test_lengths_by_hand(aligned):
    parts = by_length(aligned, edges=(1, 2, 6))
    assert [(part.name, part.utterances, part.errors, part.words) for part in parts] == [
        ("1", 1, 0, 1),
        ("2-5", 1, 2, 4),
        ("6+", 1, 2, 6),
    ]


def test_confusions_by_hand(aligned):
    assert confusions(aligned) == [("B", "X", 2), (None, "A", 1), (None, "G", 1), ("D", None, 1)]
    assert confusions(aligned, most=1) == [("B", "X", 2)]


def test_parts_of_real_outputs_add_up_to_the_whole():
    transcripts = read_trn(Path(__file__).parents[1] / "outputs" / "greedy")
    whole, aligned = score_split(*transcripts).wer, align(*transcripts)
    for parts in (by_speaker(aligned), by_length(aligned)):
        assert (
            sum(part.errors for part in parts) == whole.errors
            and sum(part.words for part in parts) == whole.tokens
        )
    assert sum(count for *_, count in confusions(aligned, most=10_000)) == whole.errors
    kinds = [(ref is None, hyp is None, count) for ref, hyp, count in confusions(aligned, most=10_000)]
    assert sum(count for inserted, _, count in kinds if inserted) == whole.insertions
    assert sum(count for _, deleted, count in kinds if deleted) == whole.deletions
