"""Chunks of a padded batch: how they are built from boundaries, and how further boundaries are added.

A chunk begins at a boundary frame and lasts until the next one. Its state is that of its first frame, or a
mean of its frames. Shapes: B utterances, T frames, M chunks, D the width of the frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hmamba_asr.lengths import valid_mask, zero_padding
from hmamba_asr.ops.segment import positions


@dataclass
class Chunks:
    """The chunks of a padded batch.

    Attributes
    ----------
    states : Tensor
        Chunk states (B, M, D), zero past the end.
    num_chunks : Tensor
        Number of chunks (B,).
    starts : Tensor
        Frame at which each chunk begins (B, M).
    frame_to_chunk : Tensor
        Chunk to which each frame belongs (B, T).
    prob : Tensor
        Soft selection score of each frame in [0, 1], (B, T), zero past the end. It is a probability only for
        H-Net's router.
    mask : Tensor
        Whether each frame starts a chunk (B, T).
    num_chosen : Tensor
        Number of chunks (B,) that the chunker itself chose, before any were added to reach a minimum.
    """

    states: Tensor
    num_chunks: Tensor
    starts: Tensor
    frame_to_chunk: Tensor
    prob: Tensor
    mask: Tensor
    num_chosen: Tensor


def gather_chunks(
    x: Tensor, prob: Tensor, mask: Tensor, *, num_chosen: Tensor | None = None, max_chunks: int | None = None
) -> Chunks:
    """Return chunks whose states are those of their first frames.

    Parameters
    ----------
    x : Tensor
        Frames (B, T, D).
    prob, mask : Tensor
        Soft selection scores and boundaries (B, T), both zero past the end.
    num_chosen : Tensor, optional
        Number of boundaries (B,) that the chunker itself chose, if different from their number in ``mask``.
    max_chunks : int, optional
        See :func:`trim_starts`.
    """
    frame_to_chunk, starts, num_chunks = positions(mask)
    starts = trim_starts(starts, num_chunks, max_chunks)
    states = zero_padding(x.gather(1, starts.unsqueeze(-1).expand(-1, -1, x.shape[2])), num_chunks)
    num_chosen = num_chunks if num_chosen is None else num_chosen
    return Chunks(states, num_chunks, starts, frame_to_chunk, prob, mask, num_chosen)


def every_frame(x: Tensor, lengths: Tensor) -> Chunks:
    """Return chunks of one frame each, all frames x (B, T, D) of utterances of ``lengths`` (B,)."""
    valid = valid_mask(lengths, x.shape[1])
    return gather_chunks(x, valid.float(), valid, max_chunks=x.shape[1])


def trim_starts(starts: Tensor, num_chunks: Tensor, max_chunks: int | None) -> Tensor:
    """Return the columns of ``starts`` (B, T) that hold chunks: (B, M).

    M is ``max_chunks``, which no utterance may exceed. If it is None, M is the largest of ``num_chunks``
    (B,), and the host waits for the device to know it.
    """
    if max_chunks is None:
        max_chunks = int(num_chunks.max()) if len(num_chunks) else 1
    return starts[:, : max(1, max_chunks)]


def add_boundaries(score: Tensor, mask: Tensor, lengths: Tensor, min_chunks: Tensor) -> Tensor:
    """Add boundaries to utterances that have fewer than ``min_chunks``, until they have that many.

    An utterance with fewer frames than ``min_chunks`` gets a boundary at every frame.

    Parameters
    ----------
    score : Tensor
        Score of each frame (B, T), 0 or more. Frames are added by descending score, ties to the earlier
        frame; NaN counts as 0.
    mask : Tensor
        Boundaries so far (B, T).
    lengths, min_chunks : Tensor
        Number of frames, and minimum number of chunks (B,).

    Returns
    -------
    Tensor
        ``mask`` itself if no utterance lacks boundaries, else a new mask (B, T).
    """
    wanted = torch.minimum(min_chunks, lengths)
    if not (mask.sum(1) < wanted).any():
        return mask
    score = score.detach().nan_to_num(0.0).masked_fill(mask, math.inf)
    score = score.masked_fill(~valid_mask(lengths, score.shape[1]), -1.0)
    order = score.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return mask | torch.zeros_like(mask).scatter(1, order, ranks < wanted.unsqueeze(1))
