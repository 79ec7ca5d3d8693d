"""Timestamps from the CTC: against the best of all paths, and known answers."""

import itertools
import math

import pytest
import torch

from hmamba_asr.decoding.alignment import Span, align_tokens, state_times, words_of
from hmamba_asr.models.outputs import EncoderOutput, StageOutput

PIECES = ["<blank>", "\u2581he", "llo", "\u2581you", "\u2581"]


def best_path(log_probs, tokens):
    """Of all paths that give the tokens, the most likely."""
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
    words = words_of(tokens)
    assert [(w.text, w.start, w.end) for w in words] == [("hello", 0.0, 5.0), ("you", 6.0, 7.0)]
    assert [w.confidence for w in words] == pytest.approx([0.5**0.25, 0.8])
    assert words_of([]) == []
    assert [w.text for w in words_of([Span("llo", 0.0, 1.0, 1.0)])] == [
        "llo"
    ]  # a first piece without the mark


def stage(lengths, starts):
    size = torch.tensor([len(starts)])
    unused = torch.zeros(1, lengths)
    return StageOutput(
        lengths=torch.tensor([lengths]),
        boundary_prob=unused,
        boundary_mask=unused,
        chunk_starts=torch.tensor([starts + [0, 0]]),
        chunk_lengths=size,
        chosen=size,
        target_ratio=2.0,
    )


def times(states, stages=(), first=0.0):
    encoded = EncoderOutput(torch.zeros(1, states + 2, 4), torch.tensor([states]), tuple(stages))
    return state_times(encoded, first=first, step=0.5).tolist()


def test_the_states_of_chunks_begin_and_end_with_them():
    assert times(3) == [0.0, 0.5, 1.0, 1.5]
    assert times(3, first=-0.25) == [-0.25, 0.25, 0.75, 1.25]
    one = stage(7, [0, 1, 5])  # chunks of 1, 4 and 2 frames
    assert times(3, [one]) == [0.0, 0.5, 2.5, 3.5]
    assert times(7, [one]) == [0.5 * i for i in range(8)]  # back at the frame rate
    nested = stage(3, [0, 5])  # of the three chunks the last two together
    assert times(2, [one, nested]) == [0.0, 2.5, 3.5]
    assert times(3, [one, nested]) == [0.0, 0.5, 2.5, 3.5]
