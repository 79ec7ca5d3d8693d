"""Exponential moving average over time with a weight for every frame: y_t = (1 - p_t) y_{t-1} + p_t x_t.

H-Net smooths its chunks with it, p being the boundary probability (Hwang et al.,
https://arxiv.org/abs/2507.07955, equation 5).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmamba_asr.lengths import zero_padding
from hmamba_asr.ops.dispatch import resolve


def ema(
    x: Tensor,
    weights: Tensor,
    *,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The average before the first frame is ``initial``, or zero.

    Shapes: x (batch, L, D); weights (batch, L) in [0, 1]; lengths (batch,); initial (batch, D). Returns
    (batch, L, D) in x's dtype, zero past the end; the average itself is float32 at least. Backends:
    ``reference`` (PyTorch and autograd), ``loop`` (the same steps with a backward pass of its own that keeps
    one state a frame), ``triton`` (CUDA); ``auto`` chooses.

    Raises
    ------
    ValueError
        For an unknown backend, or float64 with ``triton``.
    RuntimeError
        If ``triton`` cannot run here.
    """
    backend = resolve(backend, x, operation="EMA", plain=("reference", "loop"))
    if not x.numel():
        return x.clone()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        values, weights = x.to(dtype), weights.to(dtype)
        if lengths is not None:  # a weight of zero keeps the state, and nothing flows back
            values, weights = zero_padding(values, lengths), zero_padding(weights, lengths)
        state = x.new_zeros(x.shape[0], x.shape[2], dtype=dtype) if initial is None else initial.to(dtype)
        if backend == "reference":
            y = _reference(values, weights, state)
        elif backend == "loop":
            y = _Loop.apply(values, weights, state)
        else:
            from hmamba_asr.ops.ema.kernels import ema_function

            y = ema_function(values, weights, state)
        return (y if lengths is None else zero_padding(y, lengths)).to(x.dtype)


def _reference(x: Tensor, weights: Tensor, state: Tensor) -> Tensor:
    out = []
    for t in range(x.shape[1]):
        p = weights[:, t, None]
        state = (1 - p) * state + p * x[:, t]
        out.append(state)
    return torch.stack(out, 1)


def gradients(
    grads: Tensor, x: Tensor, weights: Tensor, y: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weights and initial, from ``grads`` (batch, L, D): the gradient that has reached each frame's
    average."""
    before = torch.cat([initial.unsqueeze(1), y[:, :-1]], 1)
    by_weight = (grads * (x - before)).sum(-1)
    return weights.unsqueeze(-1) * grads, by_weight, (1 - weights[:, :1]) * grads[:, 0]


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
        y, state = torch.empty_like(x), initial
        for t in range(x.shape[1]):
            state = torch.lerp(state, x[:, t], weights[:, t, None])
            y[:, t] = state
        ctx.save_for_backward(x, weights, y, initial)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor):
        x, weights, y, initial = ctx.saved_tensors
        grads, after = gy.clone(), 0.0
        for t in reversed(range(x.shape[1])):
            grads[:, t] += after
            after = (1 - weights[:, t, None]) * grads[:, t]
        return gradients(grads, x, weights, y, initial)
