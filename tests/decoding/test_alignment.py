"""Timestamps from the CTC, compared with the best of all paths and with known answers."""

import itertools
import math

import pytest
import torch

from hmamba_asr.decoding.alignment import Span, align_tokens, merge_words

PIECES = ["<blank>", "\u2581he", "llo", "\u2581you", "\u2581"]


def best_path(log_probs, tokens):
    """Return the most likely of all paths that give the tokens."""
    paths = itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
    giving = [p for p in paths if [label for label, _ in itertools.groupby(p) if label] == list(tokens)]
    return max(
        giving,
        key=lambda path: sum(float(frame[label]) for frame, label in zip(log_probs, path, strict=True)),
    )


@pytest.mark.parametrize("tokens", [[1], [1, 2], [2, 2], [1, 2, 1]])
@pytest.mark.parametrize("seed", range(3))
def test_spans_are_those_of_the_best_path(tokens, seed):
    log_probs = (2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    expected, frame = [], 0
    for label, group in itertools.groupby(best_path(log_probs, tokens)):
        count = len(list(group))
        if label:
            mean = float(log_probs[frame : frame + count, label].mean())
            expected.append((PIECES[label], frame * 0.04, (frame + count) * 0.04, math.exp(mean)))
        frame += count
    spans = align_tokens(
        log_probs, tokens, blank=0, state_times=0.04 * torch.arange(7), piece=PIECES.__getitem__
    )
    assert [span.text for span in spans] == [text for text, *_ in expected]
    for span, (_, *numbers) in zip(spans, expected, strict=True):
        assert [span.start, span.end, span.confidence] == pytest.approx(numbers)


def test_nothing_to_align_and_no_room_to_align_it_in():
    log_probs = torch.zeros(3, 5).log_softmax(-1)
    for tokens in ([], [1, 2, 3, 1], [1, 1, 2]):  # the last needs a blank between
        assert align_tokens(log_probs, tokens, blank=0, state_times=torch.arange(9), piece=str) == []
    assert align_tokens(torch.zeros(0, 5), [1], blank=0, state_times=torch.arange(9), piece=str) == []


def test_pieces_make_words():
    tokens = [
        Span("\u2581he", 0.0, 1.0, 0.5),
        Span("llo", 2.0, 5.0, 1.0),
        Span("\u2581", 5.0, 6.0, 0.9),
        Span("\u2581you", 6.0, 7.0, 0.8),
    ]
    words = merge_words(tokens)
    assert [(w.text, w.start, w.end) for w in words] == [("hello", 0.0, 5.0), ("you", 6.0, 7.0)]
    assert [w.confidence for w in words] == pytest.approx([0.5**0.25, 0.8])
    assert merge_words([]) == []
    # A first piece may lack the mark of a word's start.
    assert [w.text for w in merge_words([Span("llo", 0.0, 1.0, 1.0)])] == ["llo"]
