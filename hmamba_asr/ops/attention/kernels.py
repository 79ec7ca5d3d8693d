"""Attention of a few queries to many keys in one launch.

PyTorch's fused attention takes a program for each head, which lets most of a GPU idle, or none for float32
with a mask. As matrix products attention is five launches that write the scores and read them again. Here a
program takes a head's queries, 16 at a time, through all keys with a running softmax (Milakov and Gimelshein
2018, https://arxiv.org/abs/1805.02867). It skips blocks of keys that none of its queries may see, such as
slots that no token has taken yet. A float32 product is three of TF32, whose sum is as exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmamba_asr.ops.attention.limits import BLOCK_Q
from hmamba_asr.ops.launch import kernel, launch
from hmamba_asr.ops.register import KernelOp

BLOCK_T = 64  # keys at a time
WARPS = 4


@kernel
def attend_kernel(
    query,
    keys,
    values,
    mask,
    out,
    sq_b,
    sq_q,
    sk_b,
    sk_h,
    sv_b,
    sv_h,
    sm_b,
    sm_q,
    Q,
    T,
    heads,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write out (B, Q, heads D) = softmax(SCALE query keys^T + mask) values, head by head.

    query (B, Q, heads D); keys and values (B, heads, T, D); mask (B, Q, T), 0 or -inf. The strides are those
    of utterances (``_b``), queries (``_q``) and heads (``_h``); a mask that repeats has stride 0.
    """
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    i = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d, j = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    in_q, in_d = (i < Q)[:, None], (d < D)[None, :]
    q = (
        tl.load(query + b * sq_b + i[:, None] * sq_q + h * D + d[None, :], mask=in_q & in_d, other=0.0)
        * SCALE
    )
    nothing = float("-inf")
    largest = tl.full([BLOCK_Q], nothing, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    context = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + j
        in_t = (t < T)[:, None]
        seen = tl.where((t < T)[None, :] & in_q, 0.0, nothing)
        if HAS_MASK:
            seen = tl.load(
                mask + b * sm_b + i[:, None] * sm_q + t[None, :], mask=(t < T)[None, :] & in_q, other=nothing
            )
        if tl.max(tl.max(seen, 1), 0) > nothing:
            k = tl.load(keys + b * sk_b + h * sk_h + t[:, None] * D + d[None, :], mask=in_t & in_d, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") + seen
            higher = tl.maximum(largest, tl.max(scores, 1))
            reference = tl.where(higher == nothing, 0.0, higher)  # of a query that has seen nothing yet
            p = tl.exp(scores - reference[:, None])
            shrink = tl.exp(largest - reference)
            v = tl.load(
                values + b * sv_b + h * sv_h + t[:, None] * D + d[None, :], mask=in_t & in_d, other=0.0
            )
            context = context * shrink[:, None] + tl.dot(p, v, input_precision="tf32x3")
            total = total * shrink + tl.sum(p, 1)
            largest = higher
    at = out + (b * Q + i[:, None]) * heads * D + h * D + d[None, :]
    tl.store(at, context / total[:, None], mask=in_q & in_d)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    batch, heads, frames, d_head = keys.shape
    query = query if query.stride(-1) == 1 else query.contiguous()
    keys, values = (x if x.stride()[2:] == (d_head, 1) else x.contiguous() for x in (keys, values))
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    strides: tuple[int, ...] = (0, 0)
    if mask is not None:
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        strides = tuple(0 if mask.shape[dim] == 1 else mask.stride(dim) for dim in (0, 2))
    launch(
        attend_kernel,
        (-(-query.shape[1] // BLOCK_Q), batch * heads, 1),
        (query, keys, values, query if mask is None else mask, out),
        (
            *query.stride()[:2],
            *keys.stride()[:2],
            *values.stride()[:2],
            *strides,
            query.shape[1],
            frames,
            heads,
        ),
        (d_head, d_head**-0.5, mask is not None, BLOCK_Q, BLOCK_T, max(16, triton.next_power_of_2(d_head))),
        num_warps=WARPS,
    )
    return out


_attend_op = KernelOp("attend", _attend)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Compute :func:`hmamba_asr.ops.attention.attend`; the mask is (B or 1, 1, Q or 1, T) or None."""
    return _attend_op(query, keys, values, mask)
