"""Chunks of frames: gathered, smoothed, returned to their frames, and the loss of their number.

Source: Hwang, Wang and Gu, "Dynamic Chunking for End-to-End Hierarchical Sequence Modeling",
https://arxiv.org/abs/2507.07955, section 2.2: downsampling, smoothing, upsampling, ratio loss.

A chunk begins at a boundary frame; its state is that frame's, or a mean of its frames'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hmamba_asr.lengths import valid_mask, zero_padding
from hmamba_asr.ops.ema import ema
from hmamba_asr.ops.segment import positions

THRESHOLD = 0.5  # a frame at least this likely to begin a chunk does


@dataclass
class ChunkOutput:
    """Chunks of a padded batch.

    chunks (B, M, D) with chunk_lengths (B,), zero past the end; chunk_frames (B, M): the frame that each
    chunk begins at; frame_to_chunk (B, T): the chunk of each frame; boundary_prob (B, T), zero past the end,
    and boundary_mask (B, T). chosen (B,) counts the chunks before a floor added any.
    """

    chunks: Tensor
    chunk_lengths: Tensor
    chunk_frames: Tensor
    frame_to_chunk: Tensor
    boundary_prob: Tensor
    boundary_mask: Tensor
    chosen: Tensor


def gather_chunks(
    x: Tensor,
    boundary_prob: Tensor,
    boundary_mask: Tensor,
    *,
    chosen: Tensor | None = None,
    most: int | None = None,
) -> ChunkOutput:
    """The frames x (B, T, D) at the boundaries (B, T), packed to the front in one scatter of their positions;
    chosen (B,) where it is not the number of boundaries. For ``most`` see :func:`as_many_as`."""
    frame_to_chunk, chunk_frames, counts = positions(boundary_mask)
    chunk_frames = as_many_as(counts, most, chunk_frames)
    chunks = zero_padding(x.gather(1, chunk_frames.unsqueeze(-1).expand(-1, -1, x.shape[2])), counts)
    return ChunkOutput(
        chunks=chunks,
        chunk_lengths=counts,
        chunk_frames=chunk_frames,
        frame_to_chunk=frame_to_chunk,
        boundary_prob=boundary_prob,
        boundary_mask=boundary_mask,
        chosen=counts if chosen is None else chosen,
    )


def as_many_as(counts: Tensor, most: int | None, chunk_frames: Tensor) -> Tensor:
    """The places of chunk_frames (B, T) that counts (B,) chunks need (B, M): ``most``, which no utterance
    exceeds, or, where it is None, those of the utterance with the most chunks, for which a GPU is waited
    for."""
    if most is None:
        most = int(counts.max()) if len(counts) else 1
    return chunk_frames[:, : max(1, most)]


def with_at_least(rank: Tensor, boundary_mask: Tensor, lengths: Tensor, min_chunks: Tensor) -> Tensor:
    """The mask with further boundaries where an utterance has fewer than min_chunks (B,), so that it has as
    many: where rank (B, T), from 0 on, is highest, earlier frames first among equals. An utterance shorter
    than its floor gets a boundary at every frame."""
    wanted = torch.minimum(min_chunks, lengths)
    if not (boundary_mask.sum(1) < wanted).any():
        return boundary_mask
    ranked = rank.detach().nan_to_num(0.0).masked_fill(boundary_mask, math.inf)
    ranked = ranked.masked_fill(~valid_mask(lengths, rank.shape[1]), -1.0)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return boundary_mask | torch.zeros_like(boundary_mask).scatter(1, order, ranks < wanted.unsqueeze(1))


def choose(prob: Tensor, lengths: Tensor, min_chunks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Boundaries (B, T) of prob (B, T), 0 past the end: those above the threshold, and what a floor adds; and
    how many (B,) are above the threshold."""
    mask = prob >= THRESHOLD
    chosen = mask.sum(1)
    return mask if min_chunks is None else with_at_least(prob, mask, lengths, min_chunks), chosen


def ratio_loss(
    chosen: Tensor, mean_prob: Tensor, *, target_ratio: float, current_ratio: float | None = None
) -> Tensor:
    """N / (N - 1) ((N - 1) F G + (1 - F)(1 - G)) for each utterance (B,); where F = G, least at F = G = 1 /
    N, where it is 1.

    F, ``chosen`` (B,), is the fraction of frames that the router itself made boundaries, without those that a
    floor added; G, ``mean_prob`` (B,), is their mean probability, which alone has a gradient. N =
    ``target_ratio`` may be any number above 1; at 1 there is nothing to learn and the loss is 0. Each
    utterance has its own F and G, so that its loss does not depend on its batch mates and averages over
    batches, ranks and accumulation steps as the other losses do.

    While a target is raised, ``current_ratio`` stands for N in the bracket, and the factor in front stays the
    final one: near N = 1 its own would be without bound.
    """
    if target_ratio == 1:
        return mean_prob.new_zeros(mean_prob.shape)
    n = target_ratio if current_ratio is None else current_ratio
    return target_ratio / (target_ratio - 1) * ((n - 1) * chosen * mean_prob + (1 - chosen) * (1 - mean_prob))


def smooth_chunks(states: Tensor, chunked: ChunkOutput, *, clamp: float = 1e-4) -> Tensor:
    """Moving average over chunk states (B, M, D), each weighted with its boundary probability: a chunk that
    hardly is one borrows from the chunk before it, and its probability gets a gradient.

    Probabilities are kept ``clamp`` away from 0 and 1, where the average forgets all or nothing; the first
    chunk stands alone.
    """
    weights = chunked.boundary_prob.gather(1, chunked.chunk_frames)
    sure = weights == 1.0  # the first frame, a fixed stride, and N = 1: exactly as they are
    weights = torch.where(sure, weights, weights.clamp(clamp, 1.0 - clamp))
    return ema(states, weights, lengths=chunked.chunk_lengths)


def dechunk(states: Tensor, chunked: ChunkOutput, lengths: Tensor) -> Tensor:
    """Chunk states (B, M, D) at every frame of their chunks (B, T, D), zero past the end.

    Multiplied with the confidence in each frame's decision by a straight-through estimator: 1 forwards, and
    the gradient of p_t at boundaries and of 1 - p_t elsewhere.
    """
    frames = states.gather(1, chunked.frame_to_chunk.unsqueeze(-1).expand(-1, -1, states.shape[2]))
    confidence = torch.where(chunked.boundary_mask, chunked.boundary_prob, 1.0 - chunked.boundary_prob)
    straight_through = confidence + (1.0 - confidence).detach()
    return zero_padding(frames * straight_through.unsqueeze(-1).to(frames.dtype), lengths)
