"""Chunk means by Triton: a program takes a chunk through its frames, in the backward pass a frame to its
chunk; no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmamba_asr.ops.launch import kernel, launch


@kernel
def pool_kernel(
    x, scores, chunk_frames, counts, lengths, out, norms, s_b, T, M, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """out (B, M, D): means of x (B, T, D) weighted by exp(scores (B, T)); norms (B, M): the log of the
    weights' sum."""
    row = tl.program_id(0).to(tl.int64)
    b, m = row // M, row % M
    d = tl.arange(0, BLOCK_D)
    count = tl.load(counts + b)
    begin = tl.load(chunk_frames + b * s_b + m, mask=m < count, other=0)
    end = tl.load(chunk_frames + b * s_b + m + 1, mask=m + 1 < count, other=0)
    end = tl.where(m + 1 < count, end, tl.where(m < count, tl.load(lengths + b), begin))
    best, total = tl.full([], -1e30, tl.float32), tl.full([], 0.0, tl.float32)
    mean = tl.zeros([BLOCK_D], tl.float32)
    for t in range(begin.to(tl.int32), end.to(tl.int32)):
        score = tl.load(scores + b * T + t)
        higher = tl.maximum(best, score)
        shrink, weight = tl.exp(best - higher), tl.exp(score - higher)
        mean = mean * shrink + weight * tl.load(x + (b * T + t) * D + d, mask=d < D, other=0.0).to(tl.float32)
        total, best = total * shrink + weight, higher
    total = tl.where(total > 0.0, total, 1.0)  # of no frames
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
    """Gradients of x (B, T, D) and scores (B, T), 0 past the end; x and out are read, and gscores written,
    only for OF_SCORES."""
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
    function, rows: int, width: int, tensors: tuple[Tensor, ...], numbers: tuple[int, ...], *flags: bool
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


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scores, chunk_frames, frame_to_chunk, counts, lengths):
        ctx.shape, ctx.dtype = x.shape, x.dtype
        batch, frames, width = x.shape
        x, scores = x.contiguous(), scores.float().contiguous()
        frame_to_chunk, counts, lengths = (y.contiguous() for y in (frame_to_chunk, counts, lengths))
        chunk_frames = chunk_frames if chunk_frames.stride(1) == 1 else chunk_frames.contiguous()
        chunks = chunk_frames.shape[1]
        # A gradient of scores is made of differences from the means, which are not to be rounded.
        out = torch.empty(
            batch, chunks, width, dtype=torch.float32 if ctx.needs_input_grad[1] else x.dtype, device=x.device
        )
        norms = torch.empty(batch, chunks, dtype=torch.float32, device=x.device)
        _launch(
            pool_kernel,
            batch * chunks,
            width,
            (x, scores, chunk_frames, counts, lengths, out, norms),
            (chunk_frames.stride(0), frames, chunks),
        )
        # Of chunkers whose scores learn nothing only the shares are kept.
        kept = (x, out) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(scores, norms, frame_to_chunk, lengths, *kept)
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gout):
        scores, norms, frame_to_chunk, lengths, *kept = ctx.saved_tensors
        of_x, of_scores = ctx.needs_input_grad[:2]
        gout = gout.contiguous()
        gx = torch.empty(ctx.shape if of_x else 0, dtype=ctx.dtype, device=gout.device)
        gscores = torch.empty_like(scores) if of_scores else scores
        x, out = kept or (gout, gout)
        batch, frames, width = ctx.shape
        _launch(
            pool_backward_kernel,
            batch * frames,
            width,
            (gout, x, scores, out, norms, frame_to_chunk, lengths, gx, gscores),
            (frames, norms.shape[1]),
            of_x,
            of_scores,
        )
        return gx if of_x else None, gscores if of_scores else None, None, None, None, None


@torch.compiler.disable
def pool_chunks(
    x: Tensor, scores: Tensor, chunk_frames: Tensor, frame_to_chunk: Tensor, counts: Tensor, lengths: Tensor
) -> Tensor:
    """See :func:`~hmamba_asr.ops.segment.pooling.pool_chunks`."""
    return _Pool.apply(x, scores, chunk_frames, frame_to_chunk, counts, lengths)
