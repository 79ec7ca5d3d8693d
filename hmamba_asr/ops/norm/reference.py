"""Layer norm by its formula, for the tests.

Source: Ba et al. 2016, "Layer Normalization", https://arxiv.org/abs/1607.06450.
"""

from __future__ import annotations

from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) weight + bias over the last axes of x, those of ``weight``."""
    axes = tuple(range(-weight.dim(), 0))
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias
