"""Exponential moving average over time with a weight per frame: y_t = (1 - p_t) y_{t-1} + p_t x_t.

H-Net smooths its chunks with this average, where p is the boundary probability (Hwang et al. 2025, "Dynamic
Chunking for End-to-End Hierarchical Sequence Modeling", https://arxiv.org/abs/2507.07955, equation 5).

:mod:`.reference` holds the plain steps, :mod:`.loop` the same steps with a backward pass that needs less
memory, and :mod:`.kernels` the Triton kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmamba_asr.lengths import zero_padding
from hmamba_asr.ops.dispatch import resolve_backend
from hmamba_asr.ops.ema import loop, reference


def ema(
    x: Tensor,
    weights: Tensor,
    *,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Average the frames of ``x`` over time.

    Parameters
    ----------
    x : Tensor
        (batch, L, D), any floating dtype.
    weights : Tensor
        (batch, L), p in [0, 1].
    lengths : Tensor, optional
        (batch,), valid frames of each utterance; all L if None.
    initial : Tensor, optional
        (batch, D), the average before the first frame; zero if None.
    backend : str
        "reference" (PyTorch and its autograd), "loop" (the same steps; keeps only one state per frame for the
        backward pass), "triton" (GPU), or "auto": "triton" on a GPU, "loop" elsewhere and for float64.

    Returns
    -------
    Tensor
        (batch, L, D) in x's dtype, zero past the end. The average itself is computed in float32, or in
        float64 for such inputs.

    Raises
    ------
    ValueError
        If the backend is unknown, or "triton" is asked for with float64.
    RuntimeError
        If "triton" cannot run here.
    """
    backend = resolve_backend(backend, x, operation="EMA", plain=("reference", "loop"))
    if not x.numel():
        return x.clone()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        values, weights = x.to(dtype), weights.to(dtype)
        if lengths is not None:  # a weight of zero keeps the state, and nothing flows back
            values, weights = zero_padding(values, lengths), zero_padding(weights, lengths)
        state = x.new_zeros(x.shape[0], x.shape[2], dtype=dtype) if initial is None else initial.to(dtype)
        if backend == "reference":
            y = reference.ema(values, weights, state)
        elif backend == "loop":
            y = loop.ema(values, weights, state)
        else:
            from hmamba_asr.ops.ema import kernels

            y = kernels.ema(values, weights, state)
        return (y if lengths is None else zero_padding(y, lengths)).to(x.dtype)
