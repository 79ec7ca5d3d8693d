"""The exponential moving average in plain PyTorch with its own backward pass. It keeps one state per frame,
where autograd keeps several tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmamba_asr.ops.ema.reference import ema_gradients


def ema(x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
    """Compute :func:`hmamba_asr.ops.ema.reference.ema`."""
    return _Loop.apply(x, weights, initial)


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
        y, state = torch.empty_like(x), initial
        for t in range(x.shape[1]):
            state = torch.lerp(state, x[:, t], weights[:, t, None])
            y[:, t] = state
        ctx.save_for_backward(x, weights, y, initial)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weights, y, initial = ctx.saved_tensors
        arrived, after = gy.clone(), 0.0
        for t in reversed(range(x.shape[1])):
            arrived[:, t] += after
            after = (1 - weights[:, t, None]) * arrived[:, t]
        return ema_gradients(arrived, x, weights, y, initial)
