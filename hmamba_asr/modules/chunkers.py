"""Where chunks begin: at the CTC's labels, where a router says (H-Net), or at a fixed stride as the control.

Source: Hwang, Wang and Gu, "Dynamic Chunking for End-to-End Hierarchical Sequence Modeling",
https://arxiv.org/abs/2507.07955, section 2.2, for the routers. Everything is defined for each utterance on
its own frames; what lies behind its end changes nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmamba_asr.lengths import valid_mask, zero_padding
from hmamba_asr.modules.chunk_ops import ChunkOutput, as_many_as, choose, gather_chunks, with_at_least
from hmamba_asr.ops.segment import label_novelty, on_budget, positions
from hmamba_asr.ops.segment.pooling import pool_chunks

CONTEXT = 12  # frames on either side, half a second, whose mean is what a frame is compared against
MIN_CONTRAST = 1e-5  # of a frame's norm: less is float32's rounding


class _Chunker(nn.Module):
    """What chunkers that follow the speech share: at a target_ratio of 1 every frame is a chunk; otherwise
    ``route`` decides, in float32 at least (on a GPU its products are TF32 where that is allowed), whatever
    the precision around it.

    ``forward(x, lengths, min_chunks=None)``: x (B, T, D), lengths (B,) -> :class:`ChunkOutput`;
    ``min_chunks`` (B,) is a floor to the number of chunks.
    """

    smooths = False

    def __init__(self, target_ratio: float):
        super().__init__()
        if not 1 <= target_ratio < math.inf:
            raise ValueError(f"target_ratio must be 1 frame in a chunk or more, not {target_ratio}.")
        self.target_ratio = target_ratio

    def forward(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None = None) -> ChunkOutput:
        if self.target_ratio == 1:
            valid = valid_mask(lengths, x.shape[1])
            return gather_chunks(x, valid.float(), valid, most=x.shape[1])
        with torch.autocast(x.device.type, enabled=False):
            chunked = self.route(x.double() if x.dtype == torch.float64 else x.float(), lengths, min_chunks)
        chunked.chunks = chunked.chunks.to(x.dtype)
        return chunked

    def route(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None) -> ChunkOutput:
        """Chunks of x (B, T, D), in float32 at least; what lies past the end is not to be read."""
        raise NotImplementedError


class _BudgetChunker(_Chunker):
    """Boundaries on a budget (:func:`~hmamba_asr.ops.segment.on_budget`): the frames that are newest, by
    whatever measure, begin chunks, one in ``target_ratio``, and every ``window`` frames get their part of
    these, so that no chunk is longer than two windows where frames differ at all. A chunk's state is the mean
    of its frames weighted by exp(score): nearly its first frame where that stands out, and the whole chunk
    where frames are alike.

    ``backend`` of these operations is "auto"; tests and benchmarks put "reference" or "triton" in its place,
    the latter where there is a window and scores need no gradient.

    Raises
    ------
    ValueError
        For a target_ratio below 1, or a window shorter than a chunk or not a whole number of frames.
    """

    backend = "auto"
    chunks_per_label = 0.0

    def __init__(self, target_ratio: float, window: int | None):
        super().__init__(target_ratio)
        if window is not None and not (window >= target_ratio and window == int(window)):
            raise ValueError(
                f"window must be target_ratio = {target_ratio} whole frames or more (or null), not {window}."
            )
        self.window = None if window is None else int(window)

    def novelty(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Of the frames of x (B, T, D), (B, T) from 0 to 1; a frame of 0 begins no chunk unless it is the
        first."""
        raise NotImplementedError

    def most_chunks(self, length: int) -> int | None:
        """Of an utterance of ``length`` frames; None where that is not known."""
        return None if self.chunks_per_label else math.ceil(length / self.target_ratio)

    def route(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None) -> ChunkOutput:
        novelty = self.novelty(x, lengths)
        found = on_budget(
            novelty,
            lengths,
            target_ratio=self.target_ratio,
            window=self.window,
            chunks_per_label=self.chunks_per_label,
            backend=self.backend,
        )
        mask, places, most = (
            found.mask,
            (found.frame_to_chunk, found.chunk_frames, found.counts),
            self.most_chunks(x.shape[1]),
        )
        if min_chunks is not None:
            # By novelty: probabilities are relative to a window's budget, and compare in it only.
            mask = with_at_least(novelty, mask, lengths, min_chunks)
            if mask is not found.mask:
                places, most = positions(mask), None
        frame_to_chunk, chunk_frames, counts = places
        chunk_frames = as_many_as(counts, most, chunk_frames)
        chunks = pool_chunks(
            x,
            found.scores,
            chunk_frames=chunk_frames,
            frame_to_chunk=frame_to_chunk,
            counts=counts,
            lengths=lengths,
            backend=self.backend,
        )
        return ChunkOutput(
            chunks=chunks,
            chunk_lengths=counts,
            chunk_frames=chunk_frames,
            frame_to_chunk=frame_to_chunk,
            boundary_prob=found.prob,
            boundary_mask=mask,
            chosen=found.counts,
        )


class CTCChunker(_BudgetChunker):
    """Chunks that begin where the CTC on the frames begins a label, on the budget of :class:`_BudgetChunker`.

    ``ctc_head`` (the recogniser's own, trained on the same frames by the intermediate CTC loss) gives label
    probabilities P_t; a frame's novelty is the probability that a label begins there, the sum over labels c
    but the blank of P_t(c) (1 - P_{t-1}(c)). A trained CTC is a spike for each label and blanks between them:
    spikes begin chunks, and what follows joins them. (Frames of one label have been merged before, as by
    Gaido et al. 2021, https://arxiv.org/abs/2102.01578; here there is a budget.)

    The sum of the novelties is the number of labels to expect: with ``chunks_per_label`` every window gets at
    least so many chunks for each of its own, so that the CTC on the chunks has room for fast speech, but at
    most half as many again as its share, which an untrained CTC would ask for everywhere.

    Nothing of it is learned through the chunks: no gradient. Raises ValueError as :class:`_BudgetChunker`
    does and for negative chunks_per_label.
    """

    def __init__(
        self,
        *,
        ctc_head: nn.Module,
        target_ratio: float,
        window: int | None = None,
        chunks_per_label: float = 0.0,
        blank_index: int = 0,
    ):
        super().__init__(target_ratio, window)
        if not chunks_per_label >= 0:
            raise ValueError(f"chunks_per_label must be 0 (no such floor) or more, not {chunks_per_label}.")
        self.chunks_per_label, self.blank_index = chunks_per_label, blank_index
        self._head = [ctc_head]  # not a submodule: it is the recogniser's own, not to be saved twice

    @property
    def ctc_head(self) -> nn.Module:
        return self._head[0]

    def novelty(self, x: Tensor, lengths: Tensor) -> Tensor:
        weight, bias = (
            None if w is None else w.to(x.dtype) for w in (self.ctc_head.w.weight, self.ctc_head.w.bias)
        )
        return label_novelty(x, weight, bias, lengths, blank=self.blank_index, backend=self.backend)


class _Router:
    """What compares neighbouring frames, in a chunker of some ``target_ratio``."""

    def make_router(self, d_model: int, lr_multiplier: float) -> None:
        """Projections that start as the identity: boundaries first fall where neighbours differ."""
        if not lr_multiplier > 0:
            raise ValueError(f"lr_multiplier must be above 0, not {lr_multiplier}.")
        if self.target_ratio == 1:
            return
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        for projection in (self.query, self.key):
            nn.init.eye_(projection.weight)
            projection.weight.lr_multiplier = lr_multiplier  # for whoever builds the optimizer

    def dissimilarity(self, x: Tensor) -> Tensor:
        """How much a frame differs from the one before it, d_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2 of
        H-Net, eq. 4: d (B, T - 1) of all frames of x (B, T, D) but the first; neighbours that are both zero
        are alike."""
        query, key = (
            F.linear(x[:, :-1], self.query.weight.to(x.dtype)),
            F.linear(x[:, 1:], self.key.weight.to(x.dtype)),
        )
        cosine = F.cosine_similarity(query, key, dim=-1)
        silent = (query == 0).all(-1) & (key == 0).all(-1)
        return ((1 - torch.where(silent, 1.0, cosine)) / 2).clamp(0.0, 1.0)


class DynamicChunker(_Router, _BudgetChunker):
    """Learned boundaries on the budget of :class:`_BudgetChunker`: where frames differ most from the one
    before them.

    What is compared is a frame's contrast, its difference from the mean of the frames around it: what all
    frames share, which at the beginning of training is nearly everything, would otherwise decide with
    whatever drifts along the utterance. Through the weights in the chunks' means recognition teaches the
    router which frames to begin chunks with.

    H-Net's own router (:class:`HNetChunker`) decides against a fixed threshold and is held to its rate by a
    loss: its rate swings between the extremes until it settles, and differs from utterance to utterance. Here
    the rate cannot move and no loss is needed.

    Raises
    ------
    ValueError
        For a target_ratio below 1, an lr_multiplier that is not above 0, or a window shorter than a chunk.
    """

    def __init__(
        self, *, d_model: int, target_ratio: float, window: int | None = None, lr_multiplier: float = 1.0
    ):
        super().__init__(target_ratio, window)
        self.make_router(d_model, lr_multiplier)

    def novelty(self, x: Tensor, lengths: Tensor) -> Tensor:
        return F.pad(self.dissimilarity(_contrast(zero_padding(x, lengths), lengths)), (1, 0), value=1.0)


class HNetChunker(_Router, _Chunker):
    """H-Net's routing as published: p_t = d_t, a boundary where p_t >= 0.5 and at the first frame, chunks
    smoothed with their probabilities (:func:`smooth_chunks`), their number held by :func:`ratio_loss`; called
    as :class:`DynamicChunker` is."""

    smooths = True

    def __init__(self, *, d_model: int, target_ratio: float, lr_multiplier: float = 1.0):
        super().__init__(target_ratio)
        self.make_router(d_model, lr_multiplier)

    def route(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None) -> ChunkOutput:
        x = zero_padding(x, lengths)
        prob = zero_padding(F.pad(self.dissimilarity(x), (1, 0), value=1.0), lengths)
        mask, chosen = choose(prob, lengths, min_chunks)
        return gather_chunks(x, prob, mask, chosen=chosen)


def _contrast(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T, D), zero past the end, less the mean of the ``CONTEXT`` frames on either side that are there;
    zero where that is rounding."""

    def sums(values: Tensor) -> Tensor:
        width = 2 * CONTEXT + 1
        return width * F.avg_pool1d(values.transpose(1, 2), width, stride=1, padding=CONTEXT).transpose(1, 2)

    valid = valid_mask(lengths, x.shape[1]).unsqueeze(-1)
    contrast = x - sums(x) / sums(valid.to(x.dtype)).clamp(min=1.0)
    flat = contrast.detach().norm(dim=-1, keepdim=True) <= MIN_CONTRAST * x.detach().norm(
        dim=-1, keepdim=True
    )
    return contrast.masked_fill(flat | ~valid, 0.0)


class FixedStrideChunker(nn.Module):
    """The control: a boundary every ``stride`` frames (a non-integer stride is kept to on average), whatever
    is said; where a floor asks for more chunks, so many at even distances.

    Called as :class:`DynamicChunker` is. ``pooling`` is "first" (the boundary frame) or "mean" of the chunk.
    There is no router to train, and ``target_ratio`` is None.

    Raises
    ------
    ValueError
        For a stride below 1 or an unknown pooling.
    """

    target_ratio = None
    smooths = False
    backend = "auto"  # of the mean

    def __init__(self, *, stride: float, pooling: str = "first"):
        super().__init__()
        if not 1 <= stride < math.inf:
            raise ValueError(f"stride must be 1 frame or more, not {stride}.")
        if pooling not in ("first", "mean"):
            raise ValueError(f"pooling '{pooling}' is unknown; choose first or mean.")
        self.stride, self.pooling = stride, pooling

    def forward(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None = None) -> ChunkOutput:
        valid = valid_mask(lengths, x.shape[1])
        chunk_of = (torch.arange(-1, x.shape[1], device=x.device, dtype=torch.float64) / self.stride).floor()
        mask = (chunk_of[1:] > chunk_of[:-1]) & valid
        most, chosen = math.floor((x.shape[1] - 1) / self.stride) + 1, mask.sum(1)
        if min_chunks is not None:
            wanted, most = torch.minimum(min_chunks, lengths), None
            mask = torch.where((chosen < wanted).unsqueeze(1), _evenly(wanted, lengths, x.shape[1]), mask)
        chunked = gather_chunks(x, mask.float(), mask, chosen=chosen, most=most)
        if self.pooling == "mean":
            chunked.chunks = pool_chunks(
                x,
                torch.zeros_like(chunked.boundary_prob),
                chunk_frames=chunked.chunk_frames,
                frame_to_chunk=chunked.frame_to_chunk,
                counts=chunked.chunk_lengths,
                lengths=lengths,
                backend=self.backend,
            )
        return chunked


def _evenly(counts: Tensor, lengths: Tensor, length: int) -> Tensor:
    """Masks (B, length) of counts (B,) boundaries at even distances over each utterance, at most one for each
    of its frames."""
    frames = torch.arange(-1, length, device=lengths.device)
    chunk_of = (frames * counts.unsqueeze(1)).div(lengths.clamp(min=1).unsqueeze(1), rounding_mode="floor")
    chunk_of[:, 0] = -1  # in front of the first frame
    return (chunk_of[:, 1:] > chunk_of[:, :-1]) & valid_mask(lengths, length)
