"""Segmentation of frames into chunks: how new each frame is, at which frames chunks begin, and the mean of
each chunk's frames.

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
from hmamba_asr.ops.segment.reference import (
    LEAST_NOVELTY,
    positions,
    reference_boundaries,
    reference_novelty,
    reference_pool,
)

__all__ = ["LEAST_NOVELTY", "Boundaries", "label_novelty", "pool_chunks", "positions", "select_boundaries"]

MAX_WINDOW = 512  # of the kernel, in frames
BLOCK, GPU_BLOCK = 2**21, 2**27  # logits at a time: 8 MB, of which a CPU's caches hold much, and half a GB


@dataclass
class Boundaries:
    """Where the chunks of a padded batch begin.

    Attributes
    ----------
    scores : Tensor
        (B, T), how new each frame is, in standard deviations times a sharpness.
    prob : Tensor
        (B, T), probability in [0, 1] that a chunk begins; 0 past the end.
    mask : Tensor
        (B, T) bool, True where a chunk begins.
    frame_to_chunk : Tensor
        (B, T), index of the chunk that each frame belongs to.
    chunk_frames : Tensor
        (B, T), the frames at which chunks begin, in the first ``counts`` places; 0 after them.
    counts : Tensor
        (B,), number of chunks.
    """

    scores: Tensor
    prob: Tensor
    mask: Tensor
    frame_to_chunk: Tensor
    chunk_frames: Tensor
    counts: Tensor


@torch.no_grad()
def label_novelty(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor, *, blank: int, backend: str = "auto"
) -> Tensor:
    """Return the probability that a label begins at each frame.

    The novelty of frame t is the sum over all labels c but the blank of P_t(c) (1 - P_{t-1}(c)), where P_t is
    the softmax of a linear head. It is at least ``LEAST_NOVELTY``: frames of sure blanks are all alike, but
    chunks may begin at them. Where it is NaN no label is expected.

    The logits of a whole batch may not fit in memory, so only some ``BLOCK`` of them exist at a time. Under
    ``torch.compile``, which would unroll the loop for every T, all of them do. There is no gradient.

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
    novelty_of = reference_novelty
    if resolve_backend(backend, x, operation="label_novelty") == "triton":
        from hmamba_asr.ops.segment.kernels import kernel_novelty

        novelty_of = kernel_novelty
    (batch, frames, width), vocab = x.shape, weight.shape[0]
    states, rows = x.reshape(-1, width), batch * frames
    step = rows if torch.compiler.is_compiling() else max(1, (GPU_BLOCK if x.is_cuda else BLOCK) // vocab)
    parts = []
    for start in range(0, rows, max(1, step)):
        ahead = min(1, start)  # a frame is compared with the one before it
        logits = F.linear(states[start - ahead : start + step], weight, bias)
        parts.append(novelty_of(logits, lengths, start, ahead, frames, blank % vocab, LEAST_NOVELTY))
    return (torch.cat(parts) if len(parts) > 1 else parts[0] if parts else x.new_zeros(0)).view(batch, frames)


def select_boundaries(
    novelty: Tensor,
    lengths: Tensor,
    *,
    target_ratio: float,
    window: int | None = None,
    chunks_per_label: float = 0.0,
    backend: str = "auto",
) -> Boundaries:
    """Let chunks begin at the newest frames, within a budget of one chunk for ``target_ratio`` frames.

    An utterance of L frames gets ceil(L / target_ratio) chunks. The first frame always begins one, and of
    equally new frames the earlier one does. There are fewer chunks only where frames are not new at all. The
    score s_t of a frame is the logit of its novelty, standardised over the utterance and times a sharpness;
    the first frame scores one standard deviation above the mean. Its probability is
    p_t = sigmoid(s_t - threshold), where the threshold lies half-way between the lowest score inside the
    window's budget and the highest one outside. p is 1 at the first frame and 0 at a frame that is not new.

    Parameters
    ----------
    novelty : Tensor
        (B, T) in [0, 1]; NaN counts as 0. At the first frame it counts only as part of a label.
    lengths : Tensor
        (B,), valid frames of each utterance.
    target_ratio : float
        Frames for each chunk, N.
    window : int, optional
        Every ``window`` frames get their share of the budget; the whole utterance is one window if None.
    chunks_per_label : float
        A window gets at least this many chunks for each label expected in it, which is the sum of its
        novelties, but at most half of its share more.
    backend : str
        "reference", "triton" or "auto". The kernel has no gradient and takes windows of up to ``MAX_WINDOW``
        frames; where that does not do, "auto" is "reference".

    Raises
    ------
    ValueError
        If the backend is unknown, or "triton" is asked for with inputs that the kernel does not take.
    RuntimeError
        If the backend cannot run here.
    """
    learns = novelty.requires_grad and torch.is_grad_enabled()
    suits = not learns and window is not None and window <= MAX_WINDOW
    if backend == "triton" and not suits:
        raise ValueError(
            "the triton backend of select_boundaries has no gradient and needs a window of at most "
            f"{MAX_WINDOW} frames; use another backend."
        )
    found = resolve_backend(backend, novelty, operation="select_boundaries", kernels_suit=suits)
    if found == "triton":
        from hmamba_asr.ops.segment.kernels import kernel_boundaries

        assert window is not None
        return Boundaries(*kernel_boundaries(novelty, lengths, target_ratio, window, chunks_per_label))
    scores, prob, mask = reference_boundaries(novelty, lengths, target_ratio, window, chunks_per_label)
    return Boundaries(scores, prob, mask, *positions(mask))


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
    """Return the mean of each chunk's frames, weighted by exp(scores).

    Parameters
    ----------
    x : Tensor
        (B, T, D), frames.
    scores : Tensor
        (B, T), logarithms of the weights.
    chunk_frames : Tensor
        (B, M), the frame at which each chunk begins; the first chunk begins at the first frame.
    frame_to_chunk : Tensor
        (B, T), index of each frame's chunk.
    counts : Tensor
        (B,), number of chunks.
    lengths : Tensor
        (B,), valid frames of each utterance.
    backend : str
        "reference", "triton" or "auto".

    Returns
    -------
    Tensor
        (B, M, D) in x's dtype, 0 past ``counts``. Sums are float32, or float64 for such inputs.

    Raises
    ------
    ValueError
        If the backend is unknown or does not take the dtype.
    RuntimeError
        If the backend cannot run here.
    """
    if resolve_backend(backend, x, operation="pool_chunks") == "triton":
        from hmamba_asr.ops.segment.pooling_kernels import kernel_pool

        return kernel_pool(x, scores, chunk_frames, frame_to_chunk, counts, lengths)
    return reference_pool(x, scores, chunk_frames, frame_to_chunk, lengths)
