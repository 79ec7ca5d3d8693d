"""Lengths of padded batches: the one place where relative and absolute lengths, masks and time reversal are
defined.

Inside the package a length is an absolute integer count (samples or frames), one per utterance, shape (B,).
SpeechBrain hands out lengths relative to the longest utterance of the batch; they are converted once, where a
batch enters.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Length = TypeVar("Length", int, Tensor)


def to_absolute(relative: Tensor, max_length: int) -> Tensor:
    """Turn relative lengths (B,) in [0, 1] into integer counts (B,).

    Computed in float64: float32 loses whole samples in recordings longer than about 17 minutes (2^24
    samples).
    """
    return (relative.double() * max_length).round().long().clamp(0, max_length)


def to_relative(lengths: Tensor, max_length: int) -> Tensor:
    """Turn integer counts (B,) into relative lengths (B,).

    They are float64, so that SpeechBrain's masks turn them back without error.
    """
    return lengths.double() / max_length


def valid_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Return a boolean mask (B, max_length) that is true on the frames of each utterance."""
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Return ``x`` (B, L, ...) with exact zeros past each utterance's end, even where the padding holds
    NaN."""
    mask = valid_mask(lengths, x.shape[1])
    return x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0.0)


def reverse_valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the time axis of ``x`` (B, L, ...) within each utterance; the padding stays behind the end.

    The function is its own inverse. A flip of the whole axis would put the padding in front of the utterance.
    """
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    ends = lengths.unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand_as(x))


def conv_output_length(length: Length, *, kernel_size: int, stride: int, padding: int) -> Length:
    """Return the output length of a convolution; a length of 0 stays 0."""
    out = (length + 2 * padding - kernel_size) // stride + 1
    if isinstance(out, Tensor):
        return torch.where(length > 0, out, torch.zeros_like(out))
    return out if length > 0 else 0
