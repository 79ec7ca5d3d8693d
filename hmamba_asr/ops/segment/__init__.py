"""Where chunks begin: how probable it is that a label begins at a frame, and a budget of boundaries for the
newest frames.

Everything is defined for each utterance on its own frames; what lies behind its end is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import valid_mask
from hmamba_asr.ops.dispatch import resolve

MIN_NOVELTY = 1e-6  # of a frame that differs from the one before it by more than float32's rounding
LEAST_NOVELTY = 1e-5  # of a frame at which a label hardly begins, but a chunk may
MIN_SPREAD = 0.1  # in logits: less is noise, which standardising would blow up
SHARPNESS = 2.0  # a frame one standard deviation above the threshold has p = 0.88
FAR = 1e4  # in logits: beyond every score
MOST_FURTHER = 0.5  # of a window's share of the chunks, for its labels
ROUNDING = 0.02  # of a number of labels
MAX_WINDOW = 512  # of the kernel
BLOCK, GPU_BLOCK = 2**21, 2**27  # logits at a time: 8 MB, of which a CPU's caches hold much, and half a GB


@dataclass
class Boundaries:
    """Of a padded batch: scores, prob and mask (B, T), prob and mask 0 past the end; counts (B,) of the mask;
    frame_to_chunk (B, T), the chunk of each frame; and chunk_frames (B, T), the frames that chunks begin at,
    in the first counts places, 0 after them."""

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
    """The probability that a label begins at each frame (B, T), the sum over labels c but the blank of P_t(c)
    (1 - P_{t-1}(c)), ``LEAST_NOVELTY`` at least: sure blanks are all alike, but nothing keeps them from
    beginning chunks. 0 past the end.

    P_t is the softmax of a linear head, weight (vocab, D) and bias (vocab,), on x (B, T, D), of which some
    ``BLOCK`` logits are there at a time (but for a compiler, which would unroll it for every T); float32, or
    float64 of such. Where it is not a number no label is expected. No gradient. For the backends see
    :func:`~hmamba_asr.ops.dispatch.resolve`.

    Raises
    ------
    ValueError, RuntimeError
        As ``resolve`` does, and ValueError for a ``blank`` that is no label; negative ones count from the
        end.
    """
    if not -weight.shape[0] <= blank < weight.shape[0]:
        raise ValueError(f"blank is {blank}, and the head has the labels 0 to {weight.shape[0] - 1}.")
    if resolve(backend, x, operation="label_novelty") == "triton":
        from hmamba_asr.ops.segment.kernels import label_novelty as of_logits
    else:
        of_logits = _label_novelty
    (batch, frames, width), vocab = x.shape, weight.shape[0]
    states, rows = x.reshape(-1, width), batch * frames
    step = rows if torch.compiler.is_compiling() else max(1, (GPU_BLOCK if x.is_cuda else BLOCK) // vocab)
    parts, settings = [], {"frames": frames, "blank": blank % vocab, "least": LEAST_NOVELTY}
    for start in range(0, rows, max(1, step)):
        ahead = min(1, start)  # a frame is compared with the one before it
        logits = F.linear(states[start - ahead : start + step], weight, bias)
        parts.append(of_logits(logits, lengths, start=start, ahead=ahead, **settings))
    return (torch.cat(parts) if len(parts) > 1 else parts[0] if parts else x.new_zeros(0)).view(batch, frames)


def _label_novelty(
    logits: Tensor, lengths: Tensor, *, start: int, ahead: int, frames: int, blank: int, least: float
) -> Tensor:
    """Of N frames from ``start`` on (N,), utterances of ``frames`` in line; logits (ahead + N, vocab), with
    ``ahead`` frames in front of these."""
    prob = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    prob[:, blank] = 0.0  # not 1 - P(blank), of which rounding leaves little where the blank is sure
    stays = F.pad(torch.linalg.vecdot(prob[1:], prob[:-1]), (1, 0))[ahead:]
    at = torch.arange(start, start + len(prob) - ahead, device=logits.device)
    novelty = prob[ahead:].sum(-1) - stays.masked_fill(at % frames == 0, 0.0)
    return novelty.nan_to_num(least).clamp(least, 1.0).masked_fill(at % frames >= lengths[at // frames], 0.0)


def on_budget(
    novelty: Tensor,
    lengths: Tensor,
    *,
    target_ratio: float,
    window: int | None = None,
    chunks_per_label: float = 0.0,
    backend: str = "auto",
) -> Boundaries:
    """Boundaries at the newest frames: ceil(L / ``target_ratio``) of an utterance's L, the first one always,
    of equals the earlier ones; fewer only where frames are not new at all. Every ``window`` frames (None: the
    utterance) get their part of these, and with ``chunks_per_label`` at least so many for each label to
    expect, the sum of their novelties, but at most ``MOST_FURTHER`` of their part more.

    novelty (B, T), from 0 to 1, NaN as 0; the first frame's counts only as a label's. A frame's score s_t is
    the logit of its novelty, standardised over the utterance (the first one's: a standard deviation above the
    mean); p_t = sigmoid(s_t - threshold), the threshold half-way between the last score inside its window's
    budget and the first outside it. p is 1 at the first frame and 0 at a frame that is not new at all.

    The kernel has no gradient and takes windows of up to ``MAX_WINDOW`` frames: "auto" is "reference"
    otherwise.

    Raises
    ------
    ValueError, RuntimeError
        As :func:`~hmamba_asr.ops.dispatch.resolve` does, and ValueError where the kernel is asked for what it
        does not take.
    """
    plain = (novelty.requires_grad and torch.is_grad_enabled()) or window is None or window > MAX_WINDOW
    if plain and backend == "triton":
        raise ValueError(
            f"the triton backend of on_budget has no gradient and needs a window of at most {MAX_WINDOW} frames."
        )
    if resolve(backend, novelty, operation="on_budget") == "triton" and not plain:
        from hmamba_asr.ops.segment.kernels import on_budget as by_kernel

        settings = (
            float(target_ratio),
            window,
            float(chunks_per_label),
            MIN_NOVELTY,
            MIN_SPREAD,
            SHARPNESS,
            FAR,
        )
        return Boundaries(*by_kernel(novelty, lengths, (*settings, MOST_FURTHER, ROUNDING)))
    valid = valid_mask(lengths, novelty.shape[1])
    novelty = (novelty if novelty.dtype == torch.float64 else novelty.float()).masked_fill(
        ~valid | novelty.isnan(), 0.0
    )
    differs = novelty[:, 1:] > MIN_NOVELTY
    scores = SHARPNESS * _standardized(novelty[:, 1:].clamp(MIN_NOVELTY, 1 - MIN_NOVELTY).logit(), differs)
    scores = F.pad(scores, (1, 0), value=SHARPNESS)
    ranked = F.pad(scores[:, 1:].detach().masked_fill(~differs, -FAR), (1, 0), value=FAR)
    differs = F.pad(differs, (1, 0), value=True)
    ends = _window_ends(lengths, novelty.shape[1], window)
    thresholds, within = _first_of_windows(
        ranked, window, _due(ends, novelty.detach(), target_ratio, chunks_per_label)
    )
    prob = (scores - thresholds).sigmoid() * differs
    prob = torch.cat([torch.ones_like(prob[:, :1]), prob[:, 1:]], 1) * valid
    mask = within & differs & valid
    return Boundaries(scores, prob, mask, *positions(mask))


def positions(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """frame_to_chunk, chunk_frames and counts of a mask (B, T), as :class:`Boundaries` has them."""
    index = mask.long().cumsum(1) - 1
    frames = torch.arange(mask.shape[1], device=mask.device).expand_as(index)
    # One slot more than there are frames takes what is no boundary.
    slots = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.long, device=mask.device)
    slots = slots.scatter(1, torch.where(mask, index, mask.shape[1]), frames)
    return index.clamp(min=0), slots[:, :-1], mask.sum(1)


def _window_ends(lengths: Tensor, length: int, window: int | None) -> Tensor:
    """(B, windows + 1), from 0 to each utterance's length."""
    window = window or max(1, length)
    return torch.minimum(
        torch.arange(-(-length // window) + 1, device=lengths.device) * window, lengths.unsqueeze(1)
    )


def _due(ends: Tensor, novelty: Tensor, target_ratio: float, chunks_per_label: float) -> Tensor:
    """How many chunks are to begin in each window (B, windows)."""
    due = (ends.double() / target_ratio).ceil().long()
    if chunks_per_label:
        share = ends.diff(dim=1).double() / target_ratio
        labels = F.pad(novelty.double().cumsum(1), (1, 0)).gather(1, ends).diff(dim=1)
        further = (chunks_per_label * labels - share).clamp(min=0.0).minimum(MOST_FURTHER * share)
        # A sure CTC expects whole numbers but for rounding, which must not decide.
        due = due + F.pad((further.cumsum(1) - ROUNDING).ceil().clamp(min=0).long(), (1, 0))
    return due.diff(dim=1)


def _first_of_windows(scores: Tensor, window: int | None, due: Tensor) -> tuple[Tensor, Tensor]:
    """Of every frame (B, T), its window's threshold, between the last of scores (B, T) inside the budget and
    the next one, and whether the frame is inside; due (B, windows)."""
    (batch, length), count = scores.shape, due.shape[1]
    window = window or max(1, length)
    windows = F.pad(scores, (0, count * window - length), value=-FAR).view(batch, count, window)
    last = due.clamp(max=window).unsqueeze(-1)
    ordered, order = windows.sort(dim=-1, descending=True, stable=True)
    within = torch.zeros_like(windows, dtype=torch.bool).scatter(
        -1, order, torch.arange(window, device=scores.device) < last
    )
    ordered = F.pad(F.pad(ordered, (1, 0), value=FAR), (0, 1), value=-FAR)
    thresholds = ((ordered.gather(-1, last) + ordered.gather(-1, last + 1)) / 2).expand(-1, -1, window)
    return tuple(of_windows.reshape(batch, count * window)[:, :length] for of_windows in (thresholds, within))


def _standardized(x: Tensor, where: Tensor) -> Tensor:
    """x (B, T) with mean 0 and standard deviation 1 over the frames of its row that ``where`` (B, T) marks, 0
    elsewhere."""
    count = where.sum(1, keepdim=True).clamp(min=1)
    centred = (x - x.masked_fill(~where, 0.0).sum(1, keepdim=True) / count).masked_fill(~where, 0.0)
    return centred / (centred.square().sum(1, keepdim=True) / count + MIN_SPREAD**2).sqrt()
