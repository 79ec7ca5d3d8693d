"""Chunkers decide at which frames chunks begin.

A chunk begins where the CTC starts a label, or at a fixed stride as the control. H-Net's learned router is in
:mod:`hmamba_asr.hnet`. Every chunker decides for each utterance from its own frames; batch mates and padding
change nothing.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from speechbrain.nnet.linear import Linear
from torch import Tensor, nn

from hmamba_asr.lengths import valid_mask
from hmamba_asr.modules.chunk_ops import Chunks, add_boundaries, every_frame, gather_chunks, trim_starts
from hmamba_asr.ops.segment import label_novelty, pool_chunks, positions, select_boundaries

ChunkerKind = Literal["ctc", "router", "fixed_stride"]


class Chunker(nn.Module):
    """Base class of every chunker.

    ``forward(x, lengths, min_chunks=None, ctc_head=None)`` returns the :class:`Chunks` of frames x (B, T, D)
    of utterances of ``lengths`` (B,). Every utterance gets at least ``min_chunks`` (B,) chunks, or one per
    frame if it has fewer frames. ``ctc_head`` is the model's own CTC head; only a chunker that ``reads_ctc``
    needs it.

    Attributes
    ----------
    kind : str
        What decides: "ctc", "router" (learned) or "fixed_stride".
    target_ratio : float or None
        The target number of frames per chunk (N); None for a fixed stride, which has no target to miss.
    has_router : bool
        Whether it learns where chunks begin, so that a ratio loss can teach it how many to make.
    blank_index : int or None
        The blank of the CTC that it reads, if it reads one.
    """

    kind: ClassVar[ChunkerKind]
    target_ratio: float | None
    blank_index: int | None = None

    @property
    def reads_ctc(self) -> bool:
        """Whether ``forward`` needs ``ctc_head``."""
        return False

    @property
    def has_router(self) -> bool:
        return False

    def smooth(self, states: Tensor, chunks: Chunks) -> Tensor:
        """Smooth the ``states`` (B, M, D) of ``chunks``, if this chunker's chunks are to be smoothed."""
        return states

    def describe(self) -> dict[str, str | float | None]:
        """Return the ``kind`` and the ``ratio``: the frames per chunk, fixed or aimed at."""
        return {"kind": self.kind, "ratio": self.target_ratio}


class AdaptiveChunker(Chunker):
    """Base class of chunkers that follow the speech and aim at ``target_ratio`` frames per chunk.

    With a target_ratio of 1 every frame is a chunk. Otherwise :meth:`chunk` decides, in float32 at least
    whatever the precision around it, because boundaries are decisions that rounding would change.

    Raises
    ------
    ValueError
        If ``target_ratio`` is below 1.
    """

    target_ratio: float

    def __init__(self, target_ratio: float):
        super().__init__()
        if not 1 <= target_ratio < math.inf:
            raise ValueError(f"target_ratio must be 1 frame per chunk or more, not {target_ratio}.")
        self.target_ratio = target_ratio

    def forward(
        self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None = None, ctc_head: Linear | None = None
    ) -> Chunks:
        if self.target_ratio == 1:
            return every_frame(x, lengths)
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            chunks = self.chunk(wide, lengths, min_chunks, ctc_head)
        chunks.states = chunks.states.to(x.dtype)
        return chunks

    def chunk(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None, ctc_head: Linear | None) -> Chunks:
        """Return the chunks of x (B, T, D), float32 or float64, whose padding may hold anything."""
        raise NotImplementedError


class CTCChunker(AdaptiveChunker):
    """Chunks begin where the CTC on the frames begins a label, within a budget of chunks.

    The model's CTC head, which the intermediate CTC loss trains on the same frames, gives label probabilities
    P_t(c). The *novelty* of frame t is defined as the probability that a label begins there: the sum over all
    labels c except the blank of P_t(c) (1 - P_{t-1}(c)). A trained CTC gives each label a spike and blanks
    between them, so the spikes start chunks and the blanks join them. An utterance of L frames has a budget
    of ceil(L / N) chunks, which go to the frames with the highest novelty, see
    :func:`~hmamba_asr.ops.segment.select_boundaries`. Gaido et al. 2021 (https://arxiv.org/abs/2102.01578)
    merged frames of one label before, without a budget.

    A chunk's state is the mean of its frames, weighted by exp of the score s_t of ``select_boundaries``:
    nearly its first frame if that stands out, the whole chunk if its frames are alike. No gradient reaches
    the CTC head through the chunks.

    Parameters
    ----------
    target_ratio : float
        Frames per chunk (N).
    window : int, optional
        Frames that share a part of the budget, so that no chunk is longer than two windows. By default the
        whole utterance shares it.
    chunks_per_label : float
        Minimum chunks per expected label in a window, so that the CTC on the chunks has room for fast speech.
        The minimum is capped at 1.5 times the window's budget, since an untrained CTC expects labels
        everywhere. 0: no minimum.
    blank_index : int
        The CTC's blank.
    ctc_head : Linear, optional
        Ignored. YAMLs of version 0.1 give it; the model now hands its own head to ``forward``.
    backend : str
        Backend of the operations of :mod:`hmamba_asr.ops.segment`: "auto", "reference", or "triton", which
        needs a window.

    Raises
    ------
    ValueError
        If ``target_ratio`` is below 1, ``window`` is fractional or shorter than a chunk, or
        ``chunks_per_label`` is negative; in ``forward``, if ``ctc_head`` is missing.
    """

    kind = "ctc"
    blank_index: int

    def __init__(
        self,
        *,
        target_ratio: float,
        window: int | None = None,
        chunks_per_label: float = 0.0,
        blank_index: int = 0,
        ctc_head: Linear | None = None,
        backend: str = "auto",
    ):
        super().__init__(target_ratio)
        if window is not None and not (window >= target_ratio and window == int(window)):
            raise ValueError(
                f"window must be null or a whole number of frames >= target_ratio ({target_ratio}), "
                f"not {window}."
            )
        if not chunks_per_label >= 0:
            raise ValueError(f"chunks_per_label must be 0 (no minimum) or more, not {chunks_per_label}.")
        self.window = None if window is None else int(window)
        self.chunks_per_label, self.blank_index, self.backend = chunks_per_label, blank_index, backend

    @property
    def reads_ctc(self) -> bool:
        return self.target_ratio > 1

    def novelty(self, x: Tensor, lengths: Tensor, ctc_head: Linear) -> Tensor:
        """Return the novelty of each frame, (B, T, D) -> (B, T) in [0, 1].

        It is at least ``ops.segment.LEAST_NOVELTY``, so a chunk may start at any frame, and 0 past the end.
        """
        weight, bias = ctc_head.w.weight, ctc_head.w.bias
        return label_novelty(
            x,
            weight.to(x.dtype),
            None if bias is None else bias.to(x.dtype),
            lengths,
            blank=self.blank_index,
            backend=self.backend,
        )

    def max_chunks(self, num_frames: int) -> int | None:
        """Return the most chunks that ``num_frames`` frames can have, None if that depends on the speech."""
        return None if self.chunks_per_label else math.ceil(num_frames / self.target_ratio)

    def chunk(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None, ctc_head: Linear | None) -> Chunks:
        if ctc_head is None:
            raise ValueError(
                "a CTCChunker reads the model's CTC head; "
                "call the encoder as encoder(x, lengths, min_states, ctc_head=ctc_head)."
            )
        novelty = self.novelty(x, lengths, ctc_head)
        found = select_boundaries(
            novelty,
            lengths,
            target_ratio=self.target_ratio,
            window=self.window,
            chunks_per_label=self.chunks_per_label,
            backend=self.backend,
        )
        mask, max_chunks = found.mask, self.max_chunks(x.shape[1])
        frame_to_chunk, starts, num_chunks = found.frame_to_chunk, found.starts, found.num_chunks
        if min_chunks is not None:
            # Rank by novelty: prob is relative to each window's threshold.
            mask = add_boundaries(novelty, mask, lengths, min_chunks)
            if mask is not found.mask:
                (frame_to_chunk, starts, num_chunks), max_chunks = positions(mask), None
        starts = trim_starts(starts, num_chunks, max_chunks)
        states = pool_chunks(
            x,
            found.scores,
            starts=starts,
            frame_to_chunk=frame_to_chunk,
            num_chunks=num_chunks,
            lengths=lengths,
            backend=self.backend,
        )
        return Chunks(states, num_chunks, starts, frame_to_chunk, found.prob, mask, found.num_chunks)


class FixedStrideChunker(Chunker):
    """The control: chunks begin every ``stride`` frames, whatever is said.

    A chunk begins at the first frame at or after each multiple of the stride, which may be fractional. If
    ``min_chunks`` asks for more chunks, that many begin at even distances.

    Parameters
    ----------
    stride : float
        Frames per chunk.
    pooling : str
        A chunk's state: that of its "first" frame, or the "mean" of its frames.
    backend : str
        Backend of the mean, see :func:`~hmamba_asr.ops.segment.pool_chunks`.

    Raises
    ------
    ValueError
        If ``stride`` is below 1 or ``pooling`` unknown.
    """

    kind = "fixed_stride"
    target_ratio = None

    def __init__(self, *, stride: float, pooling: str = "first", backend: str = "auto"):
        super().__init__()
        if not 1 <= stride < math.inf:
            raise ValueError(f"stride must be 1 frame or more, not {stride}.")
        if pooling not in ("first", "mean"):
            raise ValueError(f"pooling '{pooling}' is unknown; choose first or mean.")
        self.stride, self.pooling, self.backend = stride, pooling, backend

    def describe(self) -> dict[str, str | float | None]:
        return {"kind": self.kind, "ratio": self.stride}

    def forward(
        self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None = None, ctc_head: Linear | None = None
    ) -> Chunks:
        num_frames = x.shape[1]
        valid = valid_mask(lengths, num_frames)
        frames = torch.arange(num_frames, device=x.device, dtype=torch.float64)
        mask = _starts_chunk((frames / self.stride).floor()) & valid
        num_chosen = mask.sum(1)
        # Not ceil(L / stride) as a budget: with a fractional stride, the first frame at or after the last
        # multiple inside the utterance may lie behind its end.
        max_chunks: int | None = math.floor((num_frames - 1) / self.stride) + 1
        if min_chunks is not None:
            wanted, max_chunks = torch.minimum(min_chunks, lengths), None
            even = _even_boundaries(wanted, lengths, num_frames)
            mask = torch.where((num_chosen < wanted).unsqueeze(1), even, mask)
        chunks = gather_chunks(x, mask.float(), mask, num_chosen=num_chosen, max_chunks=max_chunks)
        if self.pooling == "mean":
            chunks.states = pool_chunks(
                x,
                torch.zeros_like(chunks.prob),
                starts=chunks.starts,
                frame_to_chunk=chunks.frame_to_chunk,
                num_chunks=chunks.num_chunks,
                lengths=lengths,
                backend=self.backend,
            )
        return chunks


def _even_boundaries(counts: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
    """Return masks (B, num_frames) of ``counts`` (B,) boundaries at even distances, at most one per frame."""
    frames = torch.arange(num_frames, device=lengths.device)
    chunk_of = (frames * counts.unsqueeze(1)).div(lengths.clamp(min=1).unsqueeze(1), rounding_mode="floor")
    return _starts_chunk(chunk_of) & valid_mask(lengths, num_frames)


def _starts_chunk(chunk_of: Tensor) -> Tensor:
    """Return whether each frame starts a chunk, given the index of its chunk (..., T); the first one does."""
    before_first = torch.full_like(chunk_of[..., :1], -1)
    return chunk_of.diff(dim=-1, prepend=before_first) > 0
