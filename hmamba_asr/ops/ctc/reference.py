"""CTC prefix scores in plain PyTorch.

Source: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition",
Algorithm 2. The score of prefix g followed by label c is a sum over the frame t at which c begins::

    psi(g c) = sum_t phi(t - 1) p_t(c)

where phi is the probability of the paths that give g or, if c repeats g's last label, of those among them
that end in a blank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import valid_mask

IMPOSSIBLE = -1e20  # log-probability of what no path gives; finite, so that no difference of two is NaN
MIN_LOG_PROB = -1e4  # of a label at a frame: sums over frames stay far from IMPOSSIBLE
MIN_PRODUCT = 1e-35  # of the matrix product, before its logarithm


@dataclass
class Posteriors:
    """A batch of CTC posteriors, prepared for prefix scores.

    Attributes
    ----------
    log_probs : Tensor
        (B, T, vocab), at least ``MIN_LOG_PROB``.
    probs : Tensor
        (B, T, vocab), 0 past the end.
    blanks : Tensor
        (B, T) float64, log-probability of a blank, 0 past the end.
    blank_sums : Tensor
        (B, 1, T) float64, the cumulative sum of ``blanks``.
    outside : Tensor
        (B, 1, T) bool, True past the end.
    last_frame : Tensor
        (B,), index of the last valid frame.
    blank : int
        Index of the blank.
    """

    log_probs: Tensor
    probs: Tensor
    blanks: Tensor
    blank_sums: Tensor
    outside: Tensor
    last_frame: Tensor
    blank: int

    @classmethod
    def prepare(cls, log_probs: Tensor, lengths: Tensor, *, blank: int) -> Posteriors:
        """Prepare ``log_probs`` (B, T, vocab), which is changed in place; lengths (B,), 1 or more."""
        log_probs, lengths = log_probs.contiguous(), lengths.contiguous()
        outside = ~valid_mask(lengths, log_probs.shape[1]).unsqueeze(1)
        probs = log_probs.exp().masked_fill_(outside.transpose(1, 2), 0.0)
        log_probs = log_probs.clamp_(min=MIN_LOG_PROB)  # no copy: a batch takes tens of megabytes
        blanks = log_probs[..., blank].double().masked_fill(outside[:, 0], 0.0)
        return cls(log_probs, probs, blanks, blanks.cumsum(1).unsqueeze(1), outside, lengths - 1, blank)

    def keep(self, rows: Tensor) -> Posteriors:
        """Return the posteriors of the given utterances only."""
        return Posteriors(
            self.log_probs[rows],
            self.probs[rows],
            self.blanks[rows],
            self.blank_sums[rows],
            self.outside[rows],
            self.last_frame[rows],
            self.blank,
        )


def next_scores(
    in_label: Tensor,
    in_blank: Tensor,
    score: Tensor,
    last: Tensor,
    posteriors: Posteriors,
    *,
    window: Tensor | None,
    eos: int,
) -> Tensor:
    """Compute :func:`hmamba_asr.ops.ctc.next_scores`.

    phi is the same for all labels but the repeated one. So the scores of the whole vocabulary are one matrix
    product (prefixes x frames) (frames x vocabulary), in which phi is scaled to 1 at its largest. A label
    whose product is below e^-80 of that is given e^-80.
    """
    total = torch.logaddexp(in_label, in_blank)
    before = _before(total, last, posteriors, window)
    largest = before.amax(-1, keepdim=True)
    phi = (before - largest).exp().to(posteriors.probs.dtype)
    scores = (phi @ posteriors.probs).clamp_(min=MIN_PRODUCT).log_().add_(largest - score.unsqueeze(-1))
    repeated = last.where(last >= 0, posteriors.blank)  # the empty prefix repeats nothing
    again = _psi(_before(in_blank, last, posteriors, window), _columns(repeated, posteriors)) - score
    scores.scatter_(-1, repeated.unsqueeze(-1), again.to(scores.dtype).unsqueeze(-1))
    scores[..., eos] = (_at_end(total, posteriors) - score).to(scores.dtype)
    scores[..., posteriors.blank] = IMPOSSIBLE
    return scores


def extend(
    in_label: Tensor,
    in_blank: Tensor,
    last: Tensor,
    parents: Tensor,
    labels: Tensor,
    posteriors: Posteriors,
    *,
    window: Tensor | None,
    eos: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`hmamba_asr.ops.ctc.extend`.

    The recurrences of the forward variables are first-order and linear. Cumulative sums in float64 solve them
    for all frames at once.
    """
    at = parents.unsqueeze(-1).expand(-1, -1, in_label.shape[-1])
    in_label, in_blank, last = in_label.gather(1, at), in_blank.gather(1, at), last.gather(1, parents)
    total = torch.logaddexp(in_label, in_blank)
    phi = torch.where((labels == last).unsqueeze(-1), in_blank, total)
    before, x = _before(phi, last, posteriors, window), _columns(labels, posteriors)
    score = torch.where(labels == eos, _at_end(total, posteriors), _psi(before, x))
    # r_t = p_t (r_{t-1} + phi_{t-1}): divided by the product of the p so far, this is a cumulative sum.
    through, blank_sums = x.cumsum(-1), posteriors.blank_sums
    forbidden = _forbidden(posteriors, window)
    in_label = (through + (before - (through - x)).logcumsumexp(-1)).masked_fill(forbidden, IMPOSSIBLE)
    in_blank = blank_sums + _shift((in_label - blank_sums).logcumsumexp(-1), IMPOSSIBLE)
    in_blank = in_blank.clamp(min=IMPOSSIBLE)
    if window is not None:
        in_blank = in_blank.masked_fill(forbidden, IMPOSSIBLE)
    return in_label, in_blank, score


def _before(phi: Tensor, last: Tensor, posteriors: Posteriors, window: Tensor | None) -> Tensor:
    """Shift phi by one frame: what precedes a label that begins at frame t. Only the empty prefix stands in
    front of frame 0."""
    before = _shift(phi, 0.0)
    before[..., 0].masked_fill_(last >= 0, IMPOSSIBLE)
    return before.masked_fill_(_forbidden(posteriors, window), IMPOSSIBLE)


def _forbidden(posteriors: Posteriors, window: Tensor | None) -> Tensor:
    """Return where no label may begin, boolean (B, 1, T)."""
    if window is None:
        return posteriors.outside
    frames = torch.arange(posteriors.outside.shape[-1], device=window.device)
    return posteriors.outside | ((frames < window[:, :1]) | (frames >= window[:, 1:])).unsqueeze(1)


def _columns(labels: Tensor, posteriors: Posteriors) -> Tensor:
    """Return the log-probabilities (B, K, T) of each prefix' label over the frames."""
    index = labels.unsqueeze(-1).expand(-1, -1, posteriors.log_probs.shape[1])
    columns = posteriors.log_probs.transpose(1, 2).gather(1, index).double()
    return columns.masked_fill_(posteriors.outside, 0.0)


def _psi(before: Tensor, x: Tensor) -> Tensor:
    return (before + x).logsumexp(-1)


def _at_end(total: Tensor, posteriors: Posteriors) -> Tensor:
    last_frame = posteriors.last_frame.view(-1, 1, 1).expand(-1, total.shape[1], -1)
    return total.gather(-1, last_frame).squeeze(-1)


def _shift(x: Tensor, first: float) -> Tensor:
    """Move ``x`` one frame later along the last axis, with ``first`` in front."""
    return F.pad(x[..., :-1], (1, 0), value=first)
