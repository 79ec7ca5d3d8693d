"""The exponential moving average in plain PyTorch, frame by frame, and the formula of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def ema(x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
    """Return y_t = (1 - p_t) y_{t-1} + p_t x_t.

    Parameters
    ----------
    x : Tensor
        (batch, L, D).
    weights : Tensor
        (batch, L), p.
    initial : Tensor
        (batch, D), y before the first frame.

    Returns
    -------
    Tensor
        (batch, L, D).
    """
    state, averages = initial, []
    for t in range(x.shape[1]):
        p = weights[:, t, None]
        state = (1 - p) * state + p * x[:, t]
        averages.append(state)
    return torch.stack(averages, 1)


def ema_gradients(
    arrived: Tensor, x: Tensor, weights: Tensor, y: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights and initial.

    ``arrived`` (batch, L, D) is the gradient that has arrived at each frame's average: its own and what later
    averages pass back. The other shapes are those of :func:`ema`.
    """
    before = torch.cat([initial.unsqueeze(1), y[:, :-1]], 1)
    by_weight = (arrived * (x - before)).sum(-1)
    return weights.unsqueeze(-1) * arrived, by_weight, (1 - weights[:, :1]) * arrived[:, 0]
