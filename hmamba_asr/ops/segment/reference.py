"""Boundaries and chunk means in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import valid_mask

MIN_NOVELTY = 1e-6  # a lower novelty counts as 0, because it may be float32's rounding
LEAST_NOVELTY = 1e-5  # of a valid frame; above MIN_NOVELTY, so that a chunk may start there
MIN_SPREAD = 0.1  # in logits; a smaller spread is noise, which standardising would blow up
SHARPNESS = 2.0  # a frame one standard deviation above the threshold has p = 0.88
FAR = 1e4  # in logits: beyond every score
MAX_EXTRA = 0.5  # limit of the chunks that labels add to a window, relative to its share of the budget
ROUNDING = 0.02  # in labels; a smaller excess adds no chunk


def label_novelty(
    logits: Tensor, lengths: Tensor, start: int, ahead: int, frames: int, blank: int, least: float
) -> Tensor:
    """Return the novelty of consecutive frames.

    Parameters
    ----------
    logits : Tensor
        (ahead + N, vocab). The utterances of the batch, ``frames`` each, follow one another; these are the
        N frames from ``start`` on, and the ``ahead`` frames before them.
    lengths : Tensor
        (batch,), valid frames of each utterance.
    start, ahead, frames : int
        See ``logits``.
    blank : int
        Index of the blank.
    least : float
        Lowest novelty of a valid frame.

    Returns
    -------
    Tensor
        (N,), 0 past the end of an utterance; float32, or float64 for such logits.
    """
    prob = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    prob[:, blank] = 0.0  # not 1 - P(blank), of which rounding leaves little where the blank is sure
    stays = F.pad(torch.linalg.vecdot(prob[1:], prob[:-1]), (1, 0))[ahead:]
    at = torch.arange(start, start + len(prob) - ahead, device=logits.device)
    novelty = prob[ahead:].sum(-1) - stays.masked_fill(at % frames == 0, 0.0)
    return novelty.nan_to_num(least).clamp(least, 1.0).masked_fill(at % frames >= lengths[at // frames], 0.0)


def select_boundaries(
    novelty: Tensor, lengths: Tensor, target_ratio: float, window: int | None, chunks_per_label: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``scores``, ``prob`` and ``mask`` of :class:`hmamba_asr.ops.segment.Boundaries`, each (B, T).

    The arguments are those of :func:`hmamba_asr.ops.segment.select_boundaries`.
    """
    valid = valid_mask(lengths, novelty.shape[1])
    novelty = (novelty if novelty.dtype == torch.float64 else novelty.float()).masked_fill(
        ~valid | novelty.isnan(), 0.0
    )
    differs = novelty[:, 1:] > MIN_NOVELTY
    scores = SHARPNESS * _standardized(novelty[:, 1:].clamp(MIN_NOVELTY, 1 - MIN_NOVELTY).logit(), differs)
    scores = F.pad(scores, (1, 0), value=SHARPNESS)
    ranked = F.pad(scores[:, 1:].masked_fill(~differs, -FAR), (1, 0), value=FAR)
    differs = F.pad(differs, (1, 0), value=True)
    ends = _window_ends(lengths, novelty.shape[1], window)
    quotas = _quotas(ends, novelty, target_ratio, chunks_per_label)
    thresholds, selected = _select_in_windows(ranked, window, quotas)
    prob = (scores - thresholds).sigmoid() * differs
    prob = torch.cat([torch.ones_like(prob[:, :1]), prob[:, 1:]], 1) * valid
    return scores, prob, selected & differs & valid


def positions(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn a mask of boundaries into positions of chunks.

    Parameters
    ----------
    mask : Tensor
        (B, T) bool, True where a chunk begins.

    Returns
    -------
    tuple of Tensor
        frame_to_chunk (B, T), starts (B, T) and num_chunks (B,), as
        :class:`~hmamba_asr.ops.segment.Boundaries` has them.
    """
    index = mask.long().cumsum(1) - 1
    frames = torch.arange(mask.shape[1], device=mask.device).expand_as(index)
    # The one slot more than frames takes all frames that are not boundaries.
    slots = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.long, device=mask.device)
    slots = slots.scatter(1, torch.where(mask, index, mask.shape[1]), frames)
    return index.clamp(min=0), slots[:, :-1], mask.sum(1)


def pool_chunks(x: Tensor, scores: Tensor, starts: Tensor, frame_to_chunk: Tensor, lengths: Tensor) -> Tensor:
    """Compute :func:`hmamba_asr.ops.segment.pool_chunks`."""
    outside = ~valid_mask(lengths, x.shape[1])
    # The padding may hold NaN, which a weight of zero would not hide.
    wide = (x if x.dtype == torch.float64 else x.float()).masked_fill(outside.unsqueeze(-1), 0.0)
    scores = scores.to(wide.dtype)
    best = scores.new_full(starts.shape, -torch.inf)
    best = best.scatter_reduce(1, frame_to_chunk, scores.detach().masked_fill(outside, -torch.inf), "amax")
    weights = (scores - best.gather(1, frame_to_chunk)).masked_fill(outside, -torch.inf).exp()
    total = weights.new_zeros(starts.shape).scatter_add(1, frame_to_chunk, weights)
    shares = weights / total.clamp(min=torch.finfo(total.dtype).tiny).gather(1, frame_to_chunk)
    weighted = shares.unsqueeze(-1) * wide
    pooled = weighted.new_zeros(*starts.shape, x.shape[2])
    return pooled.scatter_add(1, frame_to_chunk.unsqueeze(-1).expand_as(x), weighted).to(x.dtype)


def _window_ends(lengths: Tensor, length: int, window: int | None) -> Tensor:
    """Return where windows end, (B, windows + 1), from 0 to each utterance's length."""
    window = window or max(1, length)
    return torch.minimum(
        torch.arange(-(-length // window) + 1, device=lengths.device) * window, lengths.unsqueeze(1)
    )


def _quotas(ends: Tensor, novelty: Tensor, target_ratio: float, chunks_per_label: float) -> Tensor:
    """Return the number of chunks to start in each window, (B, windows)."""
    total = (ends.double() / target_ratio).ceil().long()
    if chunks_per_label:
        share = ends.diff(dim=1).double() / target_ratio
        labels = F.pad(novelty.double().cumsum(1), (1, 0)).gather(1, ends).diff(dim=1)
        extra = (chunks_per_label * labels - share).clamp(min=0.0).minimum(MAX_EXTRA * share)
        # A sure CTC expects a whole number of labels, up to rounding; rounding must not add a chunk.
        total = total + F.pad((extra.cumsum(1) - ROUNDING).ceil().clamp(min=0).long(), (1, 0))
    return total.diff(dim=1)


def _select_in_windows(scores: Tensor, window: int | None, quotas: Tensor) -> tuple[Tensor, Tensor]:
    """Select the ``quotas`` (B, windows) highest ``scores`` (B, T) of each window.

    Returns two tensors (B, T): the threshold of each frame's window, half-way between the last selected score
    and the next one, and whether the frame is selected.
    """
    (batch, length), count = scores.shape, quotas.shape[1]
    window = window or max(1, length)
    windows = F.pad(scores, (0, count * window - length), value=-FAR).view(batch, count, window)
    last = quotas.clamp(max=window).unsqueeze(-1)
    ordered, order = windows.sort(dim=-1, descending=True, stable=True)
    selected = torch.zeros_like(windows, dtype=torch.bool).scatter(
        -1, order, torch.arange(window, device=scores.device) < last
    )
    ordered = F.pad(F.pad(ordered, (1, 0), value=FAR), (0, 1), value=-FAR)
    thresholds = ((ordered.gather(-1, last) + ordered.gather(-1, last + 1)) / 2).expand(-1, -1, window)
    thresholds, selected = (x.reshape(batch, count * window)[:, :length] for x in (thresholds, selected))
    return thresholds, selected


def _standardized(x: Tensor, where: Tensor) -> Tensor:
    """Standardise each row of x (B, T) over the frames that ``where`` (B, T) marks; return 0 elsewhere."""
    count = where.sum(1, keepdim=True).clamp(min=1)
    centred = (x - x.masked_fill(~where, 0.0).sum(1, keepdim=True) / count).masked_fill(~where, 0.0)
    return centred / (centred.square().sum(1, keepdim=True) / count + MIN_SPREAD**2).sqrt()
