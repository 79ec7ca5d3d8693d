"""Depthwise convolution by its formula, frame by frame and tap by tap, for the tests."""

from __future__ import annotations

import torch
from torch import Tensor


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, length: int, direction: str) -> Tensor:
    """Return y_t = bias + sum_k w_k x_s of one utterance.

    s is t - (K-1-k) forwards, and t + (K-1-k) in reverse.

    Parameters
    ----------
    x : Tensor
        (L, D).
    weight, bias : Tensor
        (D, K), and (D,) or None.
    length : int
        Valid frames; all others count as zeros.
    direction : str
        "forward" or "reverse".
    """
    taps, y = weight.shape[1], torch.zeros_like(x)
    for t in range(x.shape[0]):
        for k in range(taps):
            source = t - (taps - 1 - k) if direction == "forward" else t + (taps - 1 - k)
            if 0 <= source < length:
                y[t] += weight[:, k] * x[source]
    return y if bias is None else y + bias
