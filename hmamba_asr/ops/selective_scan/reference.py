"""The selective scan as the paper writes it, one time step after the other: the oracle of every other
backend.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
https://arxiv.org/abs/2312.00752, Algorithm 2. As in the authors' code, A is discretised by a zero-order hold
and B by an Euler step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan_step(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute one frame: h = exp(delta A) h + delta B u, y = C h.

    Parameters
    ----------
    u, delta : Tensor
        (..., D), delta > 0.
    A : Tensor
        (D, N).
    B, C : Tensor
        (..., N).
    state : Tensor
        (..., D, N), h before the frame.

    Returns
    -------
    tuple of Tensor
        y (..., D) and the new state (..., D, N).
    """
    decay = torch.exp(delta.unsqueeze(-1) * A)
    state = decay * state + (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    return (state * C.unsqueeze(-2)).sum(-1), state


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run :func:`selective_scan_step` over each utterance's own frames.

    Parameters
    ----------
    u, delta : Tensor
        (batch, L, D), delta > 0.
    A : Tensor
        (D, N).
    B, C : Tensor
        (batch, L, N).
    lengths : Tensor or None
        (batch,), valid frames; all L if None.
    reverse : bool
        Whether time runs from the last valid frame to the first.
    initial_state : Tensor, optional
        (batch, D, N); zeros if None.

    Returns
    -------
    tuple of Tensor
        y (batch, L, D), zero past the end, and the last state (batch, D, N).
    """
    batch, length, channels = u.shape
    rows, states = [], []
    for b in range(batch):
        end = length if lengths is None else int(lengths[b])
        state = u.new_zeros(channels, A.shape[1]) if initial_state is None else initial_state[b]
        outputs: list[Tensor] = [u.new_zeros(channels)] * length
        for t in reversed(range(end)) if reverse else range(end):
            outputs[t], state = selective_scan_step(u[b, t], delta[b, t], A, B[b, t], C[b, t], state)
        rows.append(torch.stack(outputs) if outputs else u[b])
        states.append(state)
    return torch.stack(rows), torch.stack(states)
