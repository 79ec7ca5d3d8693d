"""The selective scan as the paper writes it, one time step after the other: the oracle of every other backend.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", https://arxiv.org/abs/2312.00752,
Algorithm 2 with the zero-order hold of A and the Euler step of B that the authors' code uses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t h_t, for each utterance on its own frames.

    Shapes: u, delta (batch, L, D) with delta > 0; A (D, N); B, C (batch, L, N); lengths (batch,) or None.
    With ``reverse`` time runs from the utterance's last valid frame to its first. Returns y (batch, L, D), zero past the end.
    """
    batch, length, channels = u.shape
    rows = []
    for b in range(batch):
        end = length if lengths is None else int(lengths[b])
        state = u.new_zeros(channels, A.shape[1])
        outputs: list[Tensor] = [u.new_zeros(channels)] * length
        for t in reversed(range(end)) if reverse else range(end):
            decay = torch.exp(delta[b, t, :, None] * A)
            state = decay * state + (delta[b, t] * u[b, t])[:, None] * B[b, t]
            outputs[t] = state @ C[b, t]
        rows.append(torch.stack(outputs))
    return torch.stack(rows)
