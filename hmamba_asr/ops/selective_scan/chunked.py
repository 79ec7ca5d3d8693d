"""The selective scan in plain PyTorch, for any device, and fast enough to train with on a CPU.

The time axis is cut into chunks. Within a chunk everything that does not depend on the previous step (decays,
inputs, outputs, gradients) is one vectorised operation; the recurrence itself is one fused multiply-add for
each step. Only the state at each chunk's start is kept for the backward pass, which recomputes the rest. So
memory grows with L / chunk, not with L x D x N. All arithmetic is float32, or float64 for float64 inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmamba_asr.ops.register import register_counted

# Elements of one (chunk, rows, N, D) buffer. On CPU the few live buffers should stay in the cache; on a GPU a
# chunk should be long, because each step is a kernel launch anyway and everything else is then one launch per
# chunk.
CPU_CHUNK_ELEMENTS = 1 << 20
GPU_CHUNK_ELEMENTS = 1 << 26


def _chunk_length(elements_per_step: int, device: torch.device) -> int:
    budget = CPU_CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
    return max(1, min(256, budget // max(1, elements_per_step)))


def _recur(decay: Tensor, states: Tensor, carry: Tensor) -> Tensor:
    """Set states[t] += decay[t] * states[t-1] over the chunk, in place, and return the last state."""
    for step_decay, state in zip(decay.unbind(0), states.unbind(0), strict=True):
        carry = torch.addcmul(state, step_decay, carry, out=state)
    return carry


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the outputs, the last state, and the state before each chunk, shaped as in
    :class:`_ChunkedScan`."""
    length, (groups, batch, n, channels) = u.shape[0], state.shape
    y = torch.empty_like(u)
    buffers = u.new_empty(2, min(chunk, length), groups, batch, n, channels)
    starts = []
    for s in range(0, length, chunk):
        e = min(s + chunk, length)
        starts.append(state)
        _, states = _chunk_states(u[s:e], delta[s:e], A, B[s:e], state, buffers)
        state = states[-1].clone()  # the buffer is used again
        torch.matmul(C[s:e].unsqueeze(-2), states, out=y[s:e].unsqueeze(-2))
    return y, state, starts


class _ChunkedScan(torch.autograd.Function):
    """The scan of :func:`recurrence`, on states (G, batch, N, D)."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        y, state, starts = _scan(u, delta, A, B, C, state, chunk)
        ctx.save_for_backward(u, delta, A, B, C, *starts)
        ctx.chunk = chunk
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, carry: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, *starts = ctx.saved_tensors
        length = u.shape[0]
        gy, carry = gy.contiguous(), carry.clone()  # carry: decay_{t+1} * gradient of the state at t+1
        gu, gdelta = torch.empty_like(u), torch.empty_like(delta)
        gB, gC, gA = torch.empty_like(B), torch.empty_like(C), torch.zeros_like(A)
        buffers = u.new_empty(3, min(ctx.chunk, length), *carry.shape)
        for index in reversed(range(len(starts))):
            s = index * ctx.chunk
            e = min(s + ctx.chunk, length)
            uc, dc, gyc = u[s:e], delta[s:e], gy[s:e]
            decay, states = _chunk_states(uc, dc, A, B[s:e], starts[index], buffers)
            gstate = torch.mul(C[s:e].unsqueeze(-1), gyc.unsqueeze(-2), out=buffers[2, : e - s])
            gstate[-1] += carry
            for t in reversed(range(e - s - 1)):
                torch.addcmul(gstate[t], decay[t + 1], gstate[t + 1], out=gstate[t])
            torch.mul(decay[0], gstate[0], out=carry)

            torch.matmul(states, gyc.unsqueeze(-1), out=gC[s:e].unsqueeze(-1))
            drive = dc * uc
            torch.matmul(gstate, drive.unsqueeze(-1), out=gB[s:e].unsqueeze(-1))
            gdrive = torch.matmul(B[s:e].unsqueeze(-2), gstate).squeeze(-2)

            # d/d(delta A): gradient of the state times decay times the previous state.
            gstate.mul_(decay)
            gstate[0].mul_(starts[index])
            gstate[1:].mul_(states[:-1])
            gA += torch.mul(gstate, dc.unsqueeze(-2), out=decay).sum((0, 2))
            torch.sum(gstate.mul_(A.unsqueeze(1)), dim=-2, out=gdelta[s:e])
            gdelta[s:e].addcmul_(gdrive, uc)
            torch.mul(gdrive, dc, out=gu[s:e])
        return gu, gdelta, gA, gB, gC, carry, None


def _scan_without_gradient(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    return _scan(u, delta, A, B, C, state, chunk)[:2]


def _fake(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(state)


def _scan_flops(
    u: tuple, delta: tuple, A: tuple, B: tuple, C: tuple, state: tuple, chunk: int, **others: Any
) -> int:
    """Count two for each of decay times state, input times B, and state times C."""
    frames, groups, batch, channels = u
    return 2 * 3 * frames * groups * batch * channels * state[2]


_counted_scan = register_counted("chunked_scan", _scan_without_gradient, fake=_fake, flops=_scan_flops)


def _chunk_states(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, state: Tensor, buffers: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute decays and states (steps, G, batch, N, D) of one chunk from the state before it, in the first
    two buffers."""
    decay, states = buffers[0, : u.shape[0]], buffers[1, : u.shape[0]]
    torch.mul(delta.unsqueeze(-2), A.unsqueeze(1), out=decay).exp_()
    torch.mul(B.unsqueeze(-1), (delta * u).unsqueeze(-2), out=states)
    _recur(decay, states, state)
    return decay, states


def recurrence(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan G independent parameter sets (directions) forwards, all at once.

    Parameters
    ----------
    u, delta : Tensor
        (L, G, batch, D), time first; delta > 0.
    A : Tensor
        (G, D, N).
    B, C : Tensor
        (L, G, batch, N).
    initial : Tensor, optional
        (G, batch, D, N); zeros if None.
    chunk : int, optional
        Steps of a chunk; chosen by the size of the buffers if None.

    Returns
    -------
    tuple of Tensor
        y (L, G, batch, D) and the state after the last frame (G, batch, D, N), in float32 or float64.
    """
    length, groups, batch, channels = u.shape
    n = A.shape[-1]
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    if initial is None:
        state = torch.zeros(groups, batch, n, channels, device=u.device, dtype=dtype)
    else:
        state = initial.to(dtype).transpose(2, 3).contiguous()
    if length == 0 or batch == 0:
        return u.new_zeros(u.shape, dtype=dtype), state.transpose(2, 3)
    chunk = chunk or _chunk_length(groups * batch * n * channels, u.device)
    with torch.autocast(u.device.type, enabled=False):
        u, delta, B, C = (x.to(dtype).contiguous() for x in (u, delta, B, C))
        A_nd = A.to(dtype).transpose(1, 2).contiguous()
        run = _ChunkedScan.apply if torch.is_grad_enabled() else _counted_scan
        y, state = run(u, delta, A_nd, B, C, state, chunk)
    return y, state.transpose(2, 3)
