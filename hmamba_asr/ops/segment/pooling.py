"""A state for each chunk of frames: their mean, weighted by exp(score)."""

from __future__ import annotations

import torch
from torch import Tensor

from hmamba_asr.lengths import valid_mask
from hmamba_asr.ops.dispatch import resolve


def pool_chunks(
    x: Tensor,
    scores: Tensor,
    *,
    chunk_frames: Tensor,
    frame_to_chunk: Tensor,
    counts: Tensor,
    lengths: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Mean of each chunk's frames (B, M, D), weighted by exp(scores), 0 past counts; frames past the end are
    not read.

    x (B, T, D), scores (B, T); chunk_frames (B, M), the frame that each of counts (B,) chunks begins at, the
    first one at the first frame; frame_to_chunk (B, T); lengths (B,). Sums are float32 at least, the means
    x's dtype. For the backends and what they raise see :func:`~hmamba_asr.ops.dispatch.resolve`.
    """
    if resolve(backend, x, operation="pool_chunks") == "triton":
        from hmamba_asr.ops.segment.pooling_kernels import pool_chunks as by_kernel

        return by_kernel(x, scores, chunk_frames, frame_to_chunk, counts, lengths)
    outside = ~valid_mask(lengths, x.shape[1])
    # Weights of zero would not hide what is not finite there.
    wide = (x if x.dtype == torch.float64 else x.float()).masked_fill(outside.unsqueeze(-1), 0.0)
    scores = scores.to(wide.dtype)
    best = scores.new_full(chunk_frames.shape, -torch.inf)
    best = best.scatter_reduce(1, frame_to_chunk, scores.detach().masked_fill(outside, -torch.inf), "amax")
    weights = (scores - best.gather(1, frame_to_chunk)).masked_fill(outside, -torch.inf).exp()
    total = weights.new_zeros(chunk_frames.shape).scatter_add(1, frame_to_chunk, weights)
    shares = weights / total.clamp(min=torch.finfo(total.dtype).tiny).gather(1, frame_to_chunk)
    weighted = shares.unsqueeze(-1) * wide
    pooled = weighted.new_zeros(*chunk_frames.shape, x.shape[2])
    return pooled.scatter_add(1, frame_to_chunk.unsqueeze(-1).expand_as(x), weighted).to(x.dtype)
