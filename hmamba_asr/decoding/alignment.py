"""Times of tokens and words, by the most likely CTC path that gives the transcript."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchaudio.functional
from torch import Tensor

from hmamba_asr.models.asr import min_ctc_steps

WORD_START = "\u2581"  # SentencePiece's mark


@dataclass
class Span:
    """A token or word and when it was spoken.

    A CTC head places a label on few states and blanks on the rest, so starts are more accurate than ends.

    Attributes
    ----------
    text
        The token or word.
    start, end
        Begin and end in seconds.
    confidence
        Geometric mean of the label's probability over the states that the path assigns to it.
    """

    text: str
    start: float
    end: float
    confidence: float


def align_tokens(
    log_probs: Tensor, tokens: Sequence[int], *, blank: int, state_times: Tensor, piece: Callable[[int], str]
) -> list[Span]:
    """Align the tokens of one utterance.

    Parameters
    ----------
    log_probs
        CTC log-probabilities (T, vocab) without padding.
    tokens
        The tokens of the transcript. Blanks among them are left out: SentencePiece's unknown token may have
        the index of the blank.
    blank
        Index of the blank.
    state_times
        Seconds (T + 1,) at which each state begins and the last one ends.
    piece
        Gives the text of a token.

    Returns
    -------
    list of Span
        One span for each token. Empty if there are no tokens, or if the CTC needs more than T states for
        them; an attention decoder can give that many.
    """
    tokens = [token for token in tokens if token != blank]
    targets = torch.tensor([tokens], dtype=torch.int32)
    needed = int(min_ctc_steps(targets, torch.tensor([len(tokens)])))
    if not tokens or needed > len(log_probs):
        return []
    path, scores = torchaudio.functional.forced_align(
        log_probs.detach().float().cpu().unsqueeze(0), targets, blank=blank
    )
    # The score of a merged token is its mean log-probability.
    spans = torchaudio.functional.merge_tokens(path[0], scores[0], blank=blank)
    times = state_times.tolist()
    return [
        Span(piece(span.token), times[span.start], times[span.end], math.exp(span.score)) for span in spans
    ]


def merge_words(tokens: Sequence[Span]) -> list[Span]:
    """Merge the spans of SentencePiece's tokens into words.

    The confidence of a word is the geometric mean over its tokens, weighted by their durations.
    """
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
