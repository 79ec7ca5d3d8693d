"""Segmentation of frames into chunks: novelty of each frame, boundaries, and the mean of each chunk's frames.

Everything is defined for each utterance on its own frames; frames past the end are not read.

:mod:`.reference` holds the plain steps, :mod:`.kernels` the Triton kernels for novelty and boundaries, and
:mod:`.pooling_kernels` those for the means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.ops.dispatch import resolve_backend
from hmamba_asr.ops.segment import reference
from hmamba_asr.ops.segment.reference import LEAST_NOVELTY, positions

__all__ = ["LEAST_NOVELTY", "Boundaries", "label_novelty", "pool_chunks", "positions", "select_boundaries"]

MAX_WINDOW = 512  # of the kernel, in frames
BLOCK, GPU_BLOCK = 2**21, 2**27  # logits at a time: 8 MB, of which a CPU's caches hold much, and half a GB


@dataclass
class Boundaries:
    """Where the chunks of a padded batch begin.

    Attributes
    ----------
    scores : Tensor
        (B, T), the standardised novelty of each frame, times a sharpness.
    prob : Tensor
        (B, T), soft selection score in [0, 1]; 0 past the end.
    mask : Tensor
        (B, T) bool, True where a chunk begins.
    frame_to_chunk : Tensor
        (B, T), index of the chunk that each frame belongs to.
    starts : Tensor
        (B, T), the frame at which each chunk begins, in the first ``num_chunks`` places; 0 after them.
    num_chunks : Tensor
        (B,), number of chunks.
    """

    scores: Tensor
    prob: Tensor
    mask: Tensor
    frame_to_chunk: Tensor
    starts: Tensor
    num_chunks: Tensor


@torch.no_grad()
def label_novelty(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor, *, blank: int, backend: str = "auto"
) -> Tensor:
    """Return the probability that a label begins at each frame.

    The novelty of frame t is the sum over all labels c but the blank of P_t(c) (1 - P_{t-1}(c)), where P_t is
    the softmax of a linear head. Valid frames have at least ``LEAST_NOVELTY``, so that chunks may begin at
    frames of sure blanks. A frame whose novelty would be NaN gets ``LEAST_NOVELTY``.

    The logits of a whole batch may not fit in memory, so only some ``BLOCK`` of them exist at a time. Under
    ``torch.compile``, which would unroll the loop for every T, all of them exist at once. There is no
    gradient.

    Parameters
    ----------
    x : Tensor
        (B, T, D), states.
    weight, bias : Tensor
        (vocab, D) and (vocab,), the head.
    lengths : Tensor
        (B,), valid frames of each utterance.
    blank : int
        Index of the blank; a negative one counts from the end.
    backend : str
        "reference", "triton" or "auto".

    Returns
    -------
    Tensor
        (B, T) in [0, 1], 0 past the end; float32, or float64 for such inputs.

    Raises
    ------
    ValueError
        If the backend is unknown or does not take the dtype, or ``blank`` is no label of the head.
    RuntimeError
        If the backend cannot run here.
    """
    if not -weight.shape[0] <= blank < weight.shape[0]:
        raise ValueError(f"blank is {blank}, and the head has the labels 0 to {weight.shape[0] - 1}.")
    novelty_of = reference.label_novelty
    if resolve_backend(backend, x, operation="label_novelty") == "triton":
        from hmamba_asr.ops.segment import kernels

        novelty_of = kernels.label_novelty
    (batch, frames, width), vocab = x.shape, weight.shape[0]
    states, rows = x.reshape(-1, width), batch * frames
    step = rows if torch.compiler.is_compiling() else max(1, (GPU_BLOCK if x.is_cuda else BLOCK) // vocab)
    parts = []
    for start in range(0, rows, max(1, step)):
        ahead = min(1, start)  # a frame is compared with the one before it
        logits = F.linear(states[start - ahead : start + step], weight, bias)
        parts.append(novelty_of(logits, lengths, start, ahead, frames, blank % vocab, LEAST_NOVELTY))
    return (torch.cat(parts) if len(parts) > 1 else parts[0] if parts else x.new_zeros(0)).view(batch, frames)


@torch.no_grad()
def select_boundaries(
    novelty: Tensor,
    lengths: Tensor,
    *,
    target_ratio: float,
    window: int | None = None,
    chunks_per_label: float = 0.0,
    backend: str = "auto",
) -> Boundaries:
    """Start chunks at the frames with the highest novelty, within a budget of one chunk per ``target_ratio``
    frames.

    An utterance of L frames gets ceil(L / target_ratio) chunks. The first frame always starts one, and of
    frames with equal novelty the earlier one comes first. A frame with novelty 0 (1e-6 at most) never starts
    a chunk, except the first; an utterance with too few other frames gets fewer chunks. The novelty that
    :func:`label_novelty` gives a valid frame is never that low.

    The score s_t of a frame is the logit of its novelty, standardised over the utterance and multiplied by a
    sharpness; the first frame scores one standard deviation above the mean. ``prob`` is
    p_t = sigmoid(s_t - threshold). The threshold lies half-way between the lowest score inside the window's
    budget and the highest one outside. p is 1 at the first frame and 0 at other frames with novelty 0. There
    is no gradient.

    Parameters
    ----------
    novelty : Tensor
        (B, T) in [0, 1]; NaN counts as 0. That of the first frame matters only for ``chunks_per_label``.
    lengths : Tensor
        (B,), valid frames of each utterance.
    target_ratio : float
        Frames per chunk, N.
    window : int, optional
        Every ``window`` frames get their share of the budget; the whole utterance is one window if None.
    chunks_per_label : float
        Minimum number of chunks in a window per label expected there; the sum of the window's novelties is
        the expected number of labels. A window gets at most 1.5 times its share of the budget.
    backend : str
        "reference", "triton" or "auto". The kernel takes windows of up to ``MAX_WINDOW`` frames; for larger
        ones, and for None, "auto" is "reference".

    Returns
    -------
    Boundaries
        Scores and probabilities in float32; by "reference" in float64 for such novelties.

    Raises
    ------
    ValueError
        If the backend is unknown, or "triton" is asked for with inputs that the kernel does not take.
    RuntimeError
        If the backend cannot run here.
    """
    suits = window is not None and window <= MAX_WINDOW
    if backend == "triton" and not suits:
        raise ValueError(
            f"the triton backend of select_boundaries needs a window of at most {MAX_WINDOW} frames, not "
            f"{window}; use another backend."
        )
    found = resolve_backend(backend, novelty, operation="select_boundaries", kernels_suit=suits)
    if found == "triton":
        from hmamba_asr.ops.segment import kernels

        assert window is not None
        return Boundaries(
            *kernels.select_boundaries(novelty, lengths, target_ratio, window, chunks_per_label)
        )
    scores, prob, mask = reference.select_boundaries(novelty, lengths, target_ratio, window, chunks_per_label)
    return Boundaries(scores, prob, mask, *positions(mask))


def pool_chunks(
    x: Tensor,
    scores: Tensor,
    *,
    starts: Tensor,
    frame_to_chunk: Tensor,
    num_chunks: Tensor,
    lengths: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Return the mean of each chunk's frames, weighted by exp(scores).

    Parameters
    ----------
    x : Tensor
        (B, T, D), frames.
    scores : Tensor
        (B, T), logarithms of the weights.
    starts : Tensor
        (B, M), the frame at which each chunk begins; the first chunk begins at the first frame.
    frame_to_chunk : Tensor
        (B, T), index of each frame's chunk.
    num_chunks : Tensor
        (B,), number of chunks.
    lengths : Tensor
        (B,), valid frames of each utterance.
    backend : str
        "reference", "triton" or "auto".

    Returns
    -------
    Tensor
        (B, M, D) in x's dtype, 0 past ``num_chunks``. Sums are float32, or float64 for such inputs.

    Raises
    ------
    ValueError
        If the backend is unknown or does not take the dtype.
    RuntimeError
        If the backend cannot run here.
    """
    if resolve_backend(backend, x, operation="pool_chunks") == "triton":
        from hmamba_asr.ops.segment import pooling_kernels

        return pooling_kernels.pool_chunks(x, scores, starts, frame_to_chunk, num_chunks, lengths)
    return reference.pool_chunks(x, scores, starts, frame_to_chunk, lengths)
