"""Greedy decoding with the CTC head."""

from __future__ import annotations

import torch
from torch import Tensor

from hmamba_asr.decoding.search import Search
from hmamba_asr.models.asr import ASROutput


def ctc_greedy(logits: Tensor, lengths: Tensor, *, blank: int) -> list[list[int]]:
    """Take the best token of each frame, merge repeats and drop blanks.

    Parameters
    ----------
    logits
        CTC logits (B, T, vocab).
    lengths
        Number of frames of each utterance (B,).
    blank
        Index of the blank.

    Returns
    -------
    list of list of int
        The tokens of each utterance.
    """
    best = logits.argmax(-1).cpu()
    hypotheses = []
    for frames, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(frames[:length])
        hypotheses.append(merged[merged != blank].tolist())
    return hypotheses


class GreedySearch(Search):
    """Search that takes the best CTC token of each encoder state.

    Parameters
    ----------
    blank
        Index of the blank.
    """

    def __init__(self, *, blank: int):
        super().__init__()
        self.blank = blank

    @torch.no_grad()
    def forward(self, output: ASROutput) -> list[list[int]]:
        """Return the tokens of each utterance."""
        return ctc_greedy(output.ctc_logits, output.encoded.lengths, blank=self.blank)

    def first_tokens(self, output: ASROutput) -> list[int | None]:
        """Return the first token of each utterance, None if all its frames are blank.

        This takes as long as the whole search: the best token of every state is found at once.
        """
        return [tokens[0] if tokens else None for tokens in self(output)]
