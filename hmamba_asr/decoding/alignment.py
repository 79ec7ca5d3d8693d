"""When each token and word of a transcript was spoken: the most likely path of the CTC that gives the
transcript."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchaudio.functional
from torch import Tensor

from hmamba_asr.models.asr import ctc_frames_needed
from hmamba_asr.models.outputs import EncoderOutput

WORD_START = "\u2581"  # SentencePiece's mark


@dataclass
class Span:
    """A token or word, from ``start`` to ``end`` in seconds.

    ``confidence`` is the geometric mean of the label's probability over the frames that the path gives to it.
    CTC heads place a label on one frame or a few, and blanks on the rest: starts are closer to the truth than
    ends.
    """

    text: str
    start: float
    end: float
    confidence: float


def align_tokens(
    log_probs: Tensor, tokens: Sequence[int], *, blank: int, state_times: Tensor, piece: Callable[[int], str]
) -> list[Span]:
    """Spans of the tokens of one utterance; log_probs (T, vocab) without padding, state_times (T + 1,) the
    seconds at which each of its states begins and the last one ends.

    ``piece`` gives a token's text. Empty if there are no tokens, or more than the states can hold: an
    attention decoder may find such.
    """
    tokens = [
        token for token in tokens if token != blank
    ]  # SentencePiece's unknown piece, which a decoder may give
    targets = torch.tensor([tokens], dtype=torch.int32)
    needed = int(ctc_frames_needed(targets, torch.tensor([len(tokens)])))
    if not tokens or needed > len(log_probs):
        return []
    path, scores = torchaudio.functional.forced_align(
        log_probs.detach().float().cpu().unsqueeze(0), targets, blank=blank
    )
    spans = torchaudio.functional.merge_tokens(
        path[0], scores[0], blank=blank
    )  # their score is the mean log-probability
    times = state_times.tolist()
    return [
        Span(piece(span.token), times[span.start], times[span.end], math.exp(span.score)) for span in spans
    ]


def state_times(encoded: EncoderOutput, *, first: float, step: float) -> Tensor:
    """Seconds (T + 1,) at which each state of the first utterance begins and the last one ends.

    An encoder frame t begins at ``first + t * step``, half-way between its centre and the one before; a chunk
    lasts as long as its frames.
    """
    states = int(encoded.lengths[0])
    edges = torch.arange(states + 1, dtype=torch.float64)
    # States are the chunks of the stage with as many; where several have, each chunk of one is a chunk of the
    # others.
    stage = next((s for s in encoded.stages if int(s.chunk_lengths[0]) == states), None)
    if stage is not None:
        edges[:states] = stage.chunk_starts[0, :states].double().cpu()
        edges[states] = float(encoded.stages[0].lengths[0])
    return first + step * edges


def words_of(tokens: Sequence[Span]) -> list[Span]:
    """Words of SentencePiece's pieces; a word's confidence is the geometric mean over its tokens, weighted by
    their durations."""
    groups: list[list[Span]] = []
    for token in tokens:
        if token.text.startswith(WORD_START) or not groups:
            groups.append([])
        groups[-1].append(token)
    words = []
    for group in groups:
        text = "".join(token.text for token in group).replace(WORD_START, "")
        if not text:
            continue
        seconds = sum(token.end - token.start for token in group)
        log = (
            sum((token.end - token.start) * math.log(max(token.confidence, 1e-30)) for token in group)
            / seconds
        )
        words.append(Span(text, group[0].start, group[-1].end, math.exp(log)))
    return words
