"""The exponential moving average by a Triton kernel: a warp steps through time with a block of an utterance's
channels."""

# Tuples grow in Triton's language, which Python's types do not allow.
# mypy: disable-error-code="assignment, misc, var-annotated"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmamba_asr.ops.ema.reference import ema_gradients
from hmamba_asr.ops.launch import kernel, launch
from hmamba_asr.ops.register import KernelOp

BLOCK_D = 32


@kernel
def ema_kernel(x, weights, state, y, s_b, s_t, L, channels, BACKWARD: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write y_t = (1 - p_t) y_{t-1} + p_t x_t, from ``state`` (batch, D) on. With BACKWARD, write
    y_t = x_t + (1 - p_{t+1}) y_{t+1}, from the end on.

    x and y (batch, L, D) are contiguous. Sixteen frames are read before the first of them is needed.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    b = tl.program_id(1).to(tl.int64)
    in_d = d < channels
    x += b * L * channels + d
    y += b * L * channels + d
    weights += b * s_b
    h = tl.zeros([BLOCK_D], tl.float32)
    if not BACKWARD:
        h = tl.load(state + b * channels + d, mask=in_d, other=0.0)
    for start in range(0, L, 16):
        xs, ps = (), ()
        for j in tl.static_range(16):
            t = L - 1 - start - j if BACKWARD else start + j
            inside = (t >= 0) & (t < L)
            xs += (tl.load(x + t.to(tl.int64) * channels, mask=inside & in_d, other=0.0),)
            ps += (tl.load(weights + t.to(tl.int64) * s_t, mask=inside, other=0.0),)
        for j in tl.static_range(16):
            t = L - 1 - start - j if BACKWARD else start + j
            if BACKWARD:
                h += xs[j]
                out = h
                h = (1.0 - ps[j]) * h
            else:
                h += ps[j] * (xs[j] - h)
                out = h
            tl.store(y + t.to(tl.int64) * channels, out, mask=(t >= 0) & (t < L) & in_d)


def _run(x: Tensor, weights: Tensor, state: Tensor, *, backward: bool) -> Tensor:
    batch, length, channels = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    launch(
        ema_kernel,
        (triton.cdiv(channels, BLOCK_D), batch, 1),
        (x.contiguous(), weights, state.contiguous(), y),
        (*weights.stride(), length, channels),
        (backward, BLOCK_D),
        num_warps=1,
    )
    return y


def _forward(x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
    return _run(x, weights, initial, backward=False)


def _backward(grads: Sequence[Tensor], saved: list[Tensor], wanted: list[bool]) -> tuple[Tensor, ...]:
    x, weights, initial, y = saved
    return ema_gradients(_run(grads[0], weights, weights, backward=True), x, weights, y, initial)


_ema_op = KernelOp(
    "ema",
    _forward,
    backward=_backward,
    differentiable=(0, 1, 2),
    save=lambda inputs, outputs: (*inputs, *outputs),
    fake=lambda x, weights, initial: x.new_empty(x.shape),
)


def ema(x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
    """Compute :func:`hmamba_asr.ops.ema.reference.ema` in float32."""
    return _ema_op(x, weights, initial)
