"""Chunk means by Triton kernels, without atomics: a program handles one chunk, and in the backward pass one
frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmamba_asr.ops.launch import kernel, launch
from hmamba_asr.ops.register import KernelOp


@kernel
def pool_kernel(
    x, scores, starts, num_chunks, lengths, out, norms, s_b, T, M, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write out (B, M, D), the means of x (B, T, D) weighted by exp(scores (B, T)), and norms (B, M), the
    logarithms of the sums of weights."""
    row = tl.program_id(0).to(tl.int64)
    b, m = row // M, row % M
    d = tl.arange(0, BLOCK_D)
    count = tl.load(num_chunks + b)
    begin = tl.load(starts + b * s_b + m, mask=m < count, other=0)
    end = tl.load(starts + b * s_b + m + 1, mask=m + 1 < count, other=0)
    end = tl.where(m + 1 < count, end, tl.where(m < count, tl.load(lengths + b), begin))
    best, total = tl.full([], -1e30, tl.float32), tl.full([], 0.0, tl.float32)
    mean = tl.zeros([BLOCK_D], tl.float32)
    for t in range(begin.to(tl.int32), end.to(tl.int32)):
        score = tl.load(scores + b * T + t)
        higher = tl.maximum(best, score)
        shrink, weight = tl.exp(best - higher), tl.exp(score - higher)
        mean = mean * shrink + weight * tl.load(x + (b * T + t) * D + d, mask=d < D, other=0.0).to(tl.float32)
        total, best = total * shrink + weight, higher
    total = tl.where(total > 0.0, total, 1.0)  # of a place without a chunk
    tl.store(out + row * D + d, mean / total, mask=d < D)
    tl.store(norms + row, best + tl.log(total))


@kernel
def pool_backward_kernel(
    gout,
    x,
    scores,
    out,
    norms,
    frame_to_chunk,
    lengths,
    gx,
    gscores,
    T,
    M,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OF_X: tl.constexpr,
    OF_SCORES: tl.constexpr,
):
    """Write the gradients gx (B, T, D) with OF_X and gscores (B, T) with OF_SCORES, 0 past the end. x and out
    are read only with OF_SCORES."""
    row = tl.program_id(0).to(tl.int64)
    b, t = row // T, row % T
    d = tl.arange(0, BLOCK_D)
    there = t < tl.load(lengths + b)
    chunk = b * M + tl.load(frame_to_chunk + row)
    inside = (d < D) & there
    score = tl.load(scores + row, mask=there, other=0.0)
    share = tl.where(there, tl.exp(score - tl.load(norms + chunk, mask=there, other=0.0)), 0.0)
    g = tl.load(gout + chunk * D + d, mask=inside, other=0.0).to(tl.float32)
    if OF_X:
        tl.store(gx + row * D + d, share * g, mask=d < D)
    if OF_SCORES:
        values = tl.load(x + row * D + d, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(out + chunk * D + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(gscores + row, share * tl.sum(g * (values - mean), 0))


def _launch(
    function: Any,
    rows: int,
    width: int,
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    *flags: bool,
) -> None:
    block = triton.next_power_of_2(width)
    launch(
        function,
        (rows, 1, 1),
        tensors,
        numbers,
        (width, block, *flags),
        num_warps=max(1, min(8, block // 256)),
    )


def _forward(
    x: Tensor,
    scores: Tensor,
    starts: Tensor,
    frame_to_chunk: Tensor,
    num_chunks: Tensor,
    lengths: Tensor,
    scores_learn: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means, the logarithms of the sums of weights, and the means before rounding to x's dtype."""
    batch, frames, width = x.shape
    chunks = starts.shape[1]
    # The gradient of the scores is a sum of differences from the means, which must not be rounded.
    dtype = torch.float32 if scores_learn else x.dtype
    means = torch.empty(batch, chunks, width, dtype=dtype, device=x.device)
    norms = torch.empty(batch, chunks, dtype=torch.float32, device=x.device)
    _launch(
        pool_kernel,
        batch * chunks,
        width,
        (x, scores, starts, num_chunks, lengths, means, norms),
        (starts.stride(0), frames, chunks),
    )
    return means.to(x.dtype), norms, means


def _save(inputs: tuple, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Save the frames and the means only if the scores need a gradient."""
    x, scores, _, frame_to_chunk, _, lengths, scores_learn = inputs
    _, norms, means = outputs
    return (scores, norms, frame_to_chunk, lengths, *((x, means) if scores_learn else ()))


def _backward(
    grads: Sequence[Tensor], saved: list[Tensor], wanted: list[bool], scores_learn: bool
) -> tuple[Tensor, Tensor]:
    scores, norms, frame_to_chunk, lengths, *kept = saved
    gout = grads[0].contiguous()
    (batch, frames), width = scores.shape, gout.shape[2]
    of_x, of_scores = wanted
    gx = torch.empty((batch, frames, width) if of_x else 0, dtype=gout.dtype, device=gout.device)
    gscores = torch.empty_like(scores) if of_scores else scores
    x, means = kept or (gout, gout)
    _launch(
        pool_backward_kernel,
        batch * frames,
        width,
        (gout, x, scores, means, norms, frame_to_chunk, lengths, gx, gscores),
        (frames, norms.shape[1]),
        of_x,
        of_scores,
    )
    return gx, gscores


# Without ``fake``: the chunker waits for the number of chunks, which breaks the graph anyway.
_pool_chunks_op = KernelOp("pool_chunks", _forward, backward=_backward, differentiable=(0, 1), save=_save)


def pool_chunks(
    x: Tensor, scores: Tensor, starts: Tensor, frame_to_chunk: Tensor, num_chunks: Tensor, lengths: Tensor
) -> Tensor:
    """Compute :func:`hmamba_asr.ops.segment.pool_chunks`."""
    scores_learn = scores.requires_grad and torch.is_grad_enabled()
    frame_to_chunk, num_chunks, lengths = (y.contiguous() for y in (frame_to_chunk, num_chunks, lengths))
    starts = starts if starts.stride(1) == 1 else starts.contiguous()
    x, scores = x.contiguous(), scores.float().contiguous()
    return _pool_chunks_op(x, scores, starts, frame_to_chunk, num_chunks, lengths, scores_learn)
