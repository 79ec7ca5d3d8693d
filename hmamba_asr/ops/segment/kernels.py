"""Novelty and boundaries by Triton kernels: two launches instead of some ninety plain operations.

A program of the first kernel reads the logits of a frame and of the one before it once, block by block, with
running softmaxes of both (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867). A program of the
second kernel handles an utterance, window by window. It finds a frame's rank in its window by comparing all
pairs of frames. Budgets are computed in float64, as in the reference, so that rounding adds no chunk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmamba_asr.ops.launch import kernel, launch
from hmamba_asr.ops.register import KernelOp
from hmamba_asr.ops.segment.reference import (
    FAR,
    MAX_EXTRA,
    MIN_NOVELTY,
    MIN_SPREAD,
    ROUNDING,
    SHARPNESS,
)

BLOCK_V, BLOCK_T, PAIRS = 512, 1024, 4096  # labels, frames, and pairs of frames to compare at a time
WARPS = 4  # per utterance in the second kernel; the first has one per frame, whose sums need no barrier


@kernel
def label_novelty_kernel(
    logits, lengths, novelty, start, ahead, T, V, blank, LEAST: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Write the novelty (N,) of the frames from ``start`` on; the batch is T frames per utterance, in a row.

    logits (ahead + N, V). A program handles one frame.
    """
    row = tl.program_id(0).to(tl.int64)
    t = ((start + row) % T).to(tl.int32)
    logits += ahead * V
    if t < tl.load(lengths + (start + row) // T):
        first = t == 0
        now, before = tl.full([], -1e30, tl.float32), tl.full([], -1e30, tl.float32)  # largest logits
        all_now, all_before = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
        labels, both = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
        for block in range(0, V, BLOCK_V):
            c = block + tl.arange(0, BLOCK_V)
            a = tl.load(logits + row * V + c, mask=c < V, other=float("-inf")).to(tl.float32)
            b = tl.load(logits + (row - 1) * V + c, mask=(c < V) & (first == 0), other=float("-inf")).to(
                tl.float32
            )
            higher_now, higher_before = tl.maximum(now, tl.max(a, 0)), tl.maximum(before, tl.max(b, 0))
            shrink_now, shrink_before = tl.exp(now - higher_now), tl.exp(before - higher_before)
            a, b = tl.exp(a - higher_now), tl.exp(b - higher_before)
            all_now = all_now * shrink_now + tl.sum(a, 0)
            all_before = all_before * shrink_before + tl.sum(b, 0)
            a = tl.where(c == blank, 0.0, a)
            labels = labels * shrink_now + tl.sum(a, 0)
            both = both * shrink_now * shrink_before + tl.sum(a * b, 0)
            now, before = higher_now, higher_before
        stays = tl.where(first, 0.0, both / tl.where(first, 1.0, all_before))
        value = (labels - stays) / all_now
        bounded = tl.minimum(tl.maximum(value, LEAST), 1.0)
        tl.store(novelty + row, tl.where(value == value, bounded, LEAST))  # LEAST for NaN
    else:
        tl.store(novelty + row, 0.0)


@triton.jit
def _novelty(novelty, i, there):
    """Load the novelty of the frames i; 0 where ``there`` is False and where it is NaN."""
    n = tl.load(novelty + i, mask=there, other=0.0)
    return tl.where(n == n, n, 0.0)


@triton.jit
def _logits(novelty, i, length, MIN_NOVELTY: tl.constexpr):
    """Return the logit of the novelty of an utterance's frames i, and which of them are valid, not the first,
    and above MIN_NOVELTY."""
    n = _novelty(novelty, i, (i > 0) & (i < length))
    z = tl.minimum(tl.maximum(n, MIN_NOVELTY), 1.0 - MIN_NOVELTY)
    return tl.log(z / (1.0 - z)), n > MIN_NOVELTY


@triton.jit
def _ranked(
    novelty,
    i,
    end,
    length,
    mean,
    spread,
    MIN_NOVELTY: tl.constexpr,
    SHARPNESS: tl.constexpr,
    FAR: tl.constexpr,
):
    """Return the scores of the frames i, the values to rank them by, and which may start a chunk. Frames from
    ``end`` on, past the window, rank below all others."""
    logits, differs = _logits(novelty, i, length, MIN_NOVELTY)
    scores = tl.where(i == 0, SHARPNESS, tl.where(differs, SHARPNESS * ((logits - mean) / spread), 0.0))
    ranked = tl.where(i == 0, FAR, tl.where(differs, scores, -FAR))
    return scores, tl.where(i < end, ranked, -2.0 * FAR), differs | (i == 0)


@kernel
def select_boundaries_kernel(
    novelty,
    lengths,
    scores,
    prob,
    mask,
    frame_to_chunk,
    starts,
    num_chunks,
    T,
    RATIO: tl.constexpr,
    WINDOW: tl.constexpr,
    PER_LABEL: tl.constexpr,
    MIN_NOVELTY: tl.constexpr,
    MIN_SPREAD: tl.constexpr,
    SHARPNESS: tl.constexpr,
    FAR: tl.constexpr,
    MAX_EXTRA: tl.constexpr,
    ROUNDING: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Write the fields of Boundaries for novelty (B, T); of ``starts`` only the first ``num_chunks`` places.
    A program handles one utterance."""
    b = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + b).to(tl.int32)
    novelty += b * T
    total, count = tl.full([], 0.0, tl.float32), tl.full([], 0, tl.int32)
    for start in range(0, length, BLOCK_T):
        logits, differs = _logits(novelty, start + tl.arange(0, BLOCK_T), length, MIN_NOVELTY)
        total += tl.sum(tl.where(differs, logits, 0.0), 0)
        count += tl.sum(differs.to(tl.int32), 0)
    among = tl.maximum(count, 1).to(tl.float32)
    mean = total / among
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, length, BLOCK_T):
        logits, differs = _logits(novelty, start + tl.arange(0, BLOCK_T), length, MIN_NOVELTY)
        total += tl.sum(tl.where(differs, (logits - mean) * (logits - mean), 0.0), 0)
    spread = tl.sqrt(total / among + MIN_SPREAD * MIN_SPREAD)

    ratio, extra = tl.full([], RATIO, tl.float64), tl.full([], 0.0, tl.float64)
    quota_before, taken = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for first in range(0, T, WINDOW):
        i = first + tl.arange(0, WIDTH)
        end = first + WINDOW
        score, ranked, differs = _ranked(novelty, i, end, length, mean, spread, MIN_NOVELTY, SHARPNESS, FAR)
        rank = tl.zeros([WIDTH], tl.int32)
        for start in range(first, end, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            _, other, _ = _ranked(novelty, j, end, length, mean, spread, MIN_NOVELTY, SHARPNESS, FAR)
            earlier = (other[None, :] == ranked[:, None]) & (j[None, :] < i[:, None])
            rank += tl.sum(((other[None, :] > ranked[:, None]) | earlier).to(tl.int32), 1)

        begins, ends = tl.minimum(first, length), tl.minimum(end, length)
        quota = tl.ceil(ends.to(tl.float64) / ratio).to(tl.int32)
        if PER_LABEL > 0:
            own = _novelty(novelty, i, (i < end) & (i < length)).to(tl.float64)
            share = (ends - begins).to(tl.float64) / ratio
            wanted = tl.sum(own, 0) * tl.full([], PER_LABEL, tl.float64) - share
            extra += tl.minimum(tl.maximum(wanted, 0.0), share * MAX_EXTRA)
            quota += tl.maximum(tl.ceil(extra - tl.full([], ROUNDING, tl.float64)), 0.0).to(tl.int32)
        last = tl.minimum(quota - quota_before, WINDOW)
        quota_before = quota

        least = tl.where(last == 0, FAR, tl.sum(tl.where(rank == last - 1, ranked, 0.0), 0))
        most = tl.where(last == WINDOW, -FAR, tl.sum(tl.where(rank == last, ranked, 0.0), 0))
        p = tl.where(differs, 1.0 / (1.0 + tl.exp((least + most) / 2 - score)), 0.0)
        there = (i < end) & (i < length)
        selected = (rank < last) & differs & there
        index = taken + tl.cumsum(selected.to(tl.int32), 0) - 1
        written = (i < end) & (i < T)
        tl.store(scores + b * T + i, score, mask=written)
        tl.store(prob + b * T + i, tl.where(there, tl.where(i == 0, 1.0, p), 0.0), mask=written)
        tl.store(mask + b * T + i, selected, mask=written)
        tl.store(frame_to_chunk + b * T + i, tl.maximum(index, 0).to(tl.int64), mask=written)
        tl.store(starts + b * T + index, i.to(tl.int64), mask=selected)
        taken += tl.sum(selected.to(tl.int32), 0)
    tl.store(num_chunks + b, taken.to(tl.int64))


def _label_novelty(
    logits: Tensor,
    lengths: Tensor,
    start: int,
    ahead: int,
    frames: int,
    blank: int,
    least: float,
) -> Tensor:
    rows, vocab = logits.shape[0] - ahead, logits.shape[1]
    novelty = torch.empty(rows, dtype=torch.float32, device=logits.device)
    launch(
        label_novelty_kernel,
        (rows, 1, 1),
        (logits.contiguous(), lengths.contiguous(), novelty),
        (start, ahead, frames, vocab, blank),
        (least, min(BLOCK_V, triton.next_power_of_2(vocab))),
        num_warps=1,
    )
    return novelty


def _select_boundaries(
    novelty: Tensor, lengths: Tensor, window: int, target_ratio: float, chunks_per_label: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, frames), width = novelty.shape, triton.next_power_of_2(window)
    novelty = novelty.float().contiguous()
    scores, prob = torch.empty_like(novelty), torch.empty_like(novelty)
    mask = torch.empty_like(novelty, dtype=torch.bool)
    frame_to_chunk = torch.empty_like(novelty, dtype=torch.long)
    starts = torch.zeros_like(frame_to_chunk)
    num_chunks = torch.empty(batch, dtype=torch.long, device=novelty.device)
    out = (scores, prob, mask, frame_to_chunk, starts, num_chunks)
    launch(
        select_boundaries_kernel,
        (batch, 1, 1),
        (novelty, lengths.contiguous(), *out),
        (frames,),
        (
            float(target_ratio),
            window,
            float(chunks_per_label),
            MIN_NOVELTY,
            MIN_SPREAD,
            SHARPNESS,
            FAR,
            MAX_EXTRA,
            ROUNDING,
            width,
            BLOCK_T,
            max(1, PAIRS // width),
        ),
        num_warps=WARPS,
    )
    return out


# Without ``fake``: the chunker waits for the number of chunks, which breaks the graph anyway.
_label_novelty_op = KernelOp("label_novelty", _label_novelty)
_select_boundaries_op = KernelOp("select_boundaries", _select_boundaries, results=6)


def label_novelty(
    logits: Tensor, lengths: Tensor, start: int, ahead: int, frames: int, blank: int, least: float
) -> Tensor:
    """Compute :func:`hmamba_asr.ops.segment.reference.label_novelty` in float32."""
    return _label_novelty_op(logits, lengths, start, ahead, frames, blank, least)


def select_boundaries(
    novelty: Tensor, lengths: Tensor, target_ratio: float, window: int, chunks_per_label: float
) -> tuple[Tensor, ...]:
    """Return the fields of :class:`hmamba_asr.ops.segment.Boundaries` in float32, for the arguments of
    :func:`hmamba_asr.ops.segment.select_boundaries`."""
    return _select_boundaries_op(novelty, lengths, window, target_ratio, chunks_per_label)
