"""The selective scan as the paper writes it, one time step after the other: the oracle of every other
backend.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
https://arxiv.org/abs/2312.00752, Algorithm 2 with the zero-order hold of A and the Euler step of B that the
authors' code uses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One frame: h = exp(delta A) h + delta B u,  y = C h.

    Shapes: u, delta (..., D) with delta > 0; A (D, N); B, C (..., N); state (..., D, N). Returns y (..., D)
    and the new state.
    """
    decay = torch.exp(delta.unsqueeze(-1) * A)
    state = decay * state + (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    return (state * C.unsqueeze(-2)).sum(-1), state


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`step` over each utterance's own frames, forwards or, with ``reverse``, from its last valid frame
    to its first.

    Shapes: u, delta (batch, L, D) with delta > 0; A (D, N); B, C (batch, L, N); lengths (batch,) or None;
    initial_state (batch, D, N) or None for zeros. Returns y (batch, L, D), zero past the end, and the last
    state (batch, D, N).
    """
    batch, length, channels = u.shape
    rows, states = [], []
    for b in range(batch):
        end = length if lengths is None else int(lengths[b])
        state = u.new_zeros(channels, A.shape[1]) if initial_state is None else initial_state[b]
        outputs: list[Tensor] = [u.new_zeros(channels)] * length
        for t in reversed(range(end)) if reverse else range(end):
            outputs[t], state = step(u[b, t], delta[b, t], A, B[b, t], C[b, t], state)
        rows.append(torch.stack(outputs) if outputs else u[b])
        states.append(state)
    return torch.stack(rows), torch.stack(states)
