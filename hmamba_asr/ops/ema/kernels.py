"""The exponential moving average by Triton: a warp takes one utterance's block of channels through time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmamba_asr.ops.ema import gradients
from hmamba_asr.ops.launch import kernel, launch

BLOCK_D = 32


@kernel
def ema_kernel(x, weights, state, y, s_b, s_t, L, channels, BACKWARD: tl.constexpr, BLOCK_D: tl.constexpr):
    """y_t = (1 - p_t) y_{t-1} + p_t x_t from ``state`` (batch, D); BACKWARD: y_t = x_t + (1 - p_{t+1})
    y_{t+1} from the end.

    Sixteen frames are read before the first of them is needed; x and y (batch, L, D) contiguous.
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


@torch.library.custom_op("hmamba_asr::ema", mutates_args=())
def _ema(x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
    return _run(x, weights, initial, backward=False)


@torch.library.custom_op("hmamba_asr::ema_gradient", mutates_args=())
def _ema_gradient(gy: Tensor, weights: Tensor) -> Tensor:
    return _run(gy, weights, weights, backward=True)


@_ema.register_fake
def _(x, weights, initial):
    return x.new_empty(x.shape)


@_ema_gradient.register_fake
def _(gy, weights):
    return gy.new_empty(gy.shape)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output)


def _backward(ctx, gy):
    x, weights, initial, y = ctx.saved_tensors
    return gradients(_ema_gradient(gy, weights), x, weights, y, initial)


_ema.register_autograd(_backward, setup_context=_setup)


def ema_function(x: Tensor, weights: Tensor, initial: Tensor) -> Tensor:
    """x (batch, L, D), weights (batch, L), initial (batch, D), all float32, no padding to mind."""
    return _ema(x, weights, initial)
