"""Lengths of padded batches: the one place where relative and absolute lengths, masks and time reversal are
defined.

Inside the package a length is an absolute integer count (samples or frames), one per utterance, shape (B,).
SpeechBrain hands out lengths relative to the longest utterance of the batch; they are converted once, where a
batch enters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_absolute(relative: Tensor, max_length: int) -> Tensor:
    """Relative lengths (B,) in [0, 1] to integer counts (B,).

    Float64, because float32 loses whole samples in recordings longer than about 17 minutes (2^24 samples).
    """
    return (relative.double() * max_length).round().long().clamp(0, max_length)


def to_relative(lengths: Tensor, max_length: int) -> Tensor:
    """Integer counts (B,) to relative lengths (B,) in float64, which SpeechBrain's masks turn back without
    error."""
    return lengths.double() / max_length


def valid_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Boolean mask (B, max_length), true on the frames that belong to the utterance."""
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """``x`` (B, L, ...) with exact zeros past each utterance's end (also where the padding held NaN)."""
    mask = valid_mask(lengths, x.shape[1])
    return x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0.0)


def reverse_valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the time axis of ``x`` (B, L, ...) within each utterance; the padding stays behind the end.

    Its own inverse. Flipping the whole axis instead would put the padding in front of a backward recurrence.
    """
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    ends = lengths.unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand_as(x))


def conv_output_length(length, *, kernel_size: int, stride: int, padding: int):
    """Output length of a convolution; ``length`` is an int or an integer tensor. Empty stays empty."""
    out = (length + 2 * padding - kernel_size) // stride + 1
    if isinstance(out, Tensor):
        return torch.where(length > 0, out, torch.zeros_like(out))
    return out if length > 0 else 0
