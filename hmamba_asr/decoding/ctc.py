"""Decoding from the CTC head alone."""

from __future__ import annotations

import torch
from torch import Tensor


def ctc_greedy(logits: Tensor, lengths: Tensor, *, blank: int) -> list[list[int]]:
    """Best token of each frame, repeats merged, blanks dropped. logits (B, T, vocab), lengths (B,) -> token ids."""
    best = logits.argmax(-1).cpu()
    hypotheses = []
    for frames, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(frames[:length])
        hypotheses.append(merged[merged != blank].tolist())
    return hypotheses
