"""Decoding with the CTC head: greedy, and prefix scores for a joint beam search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmamba_asr.lengths import valid_mask
from hmamba_asr.ops.dispatch import unavailable_reason

IMPOSSIBLE = (
    -1e20
)  # log-probability of what no path gives; finite, so that differences of two of them are no NaN
LEAST = -1e4  # log-probability of a label: sums over frames stay far from IMPOSSIBLE


def ctc_greedy(logits: Tensor, lengths: Tensor, *, blank: int) -> list[list[int]]:
    """Best token of each frame, repeats merged, blanks dropped. logits (B, T, vocab), lengths (B,) -> token
    ids."""
    best = logits.argmax(-1).cpu()
    hypotheses = []
    for frames, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(frames[:length])
        hypotheses.append(merged[merged != blank].tolist())
    return hypotheses


@dataclass
class PrefixState:
    """Forward variables of K prefixes of each of B utterances, as float64 log-probabilities.

    ``in_label`` and ``in_blank`` (B, K, T): of the paths over frames 0 to t that give the prefix, those that
    end in its last label and those that end in a blank. ``score`` (B, K): of all label sequences that begin
    with the prefix. ``last`` (B, K): its last label, -1 for the empty prefix.
    """

    in_label: Tensor
    in_blank: Tensor
    score: Tensor
    last: Tensor

    def total(self) -> Tensor:
        return torch.logaddexp(self.in_label, self.in_blank)

    def keep(self, rows: Tensor) -> PrefixState:
        return PrefixState(self.in_label[rows], self.in_blank[rows], self.score[rows], self.last[rows])


class CTCPrefixScorer:
    """CTC prefix scores (Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech
    Recognition", alg. 2).

    The score of prefix g followed by label c is a sum over the frame t at which c begins::

        psi(g c) = sum_t phi(t - 1) p_t(c)        phi = paths that give g, or, if c repeats g's last label,
        end in a blank

    As phi is the same for all labels but the repeated one, the scores of the whole vocabulary are one matrix
    product (prefixes x frames) (frames x vocabulary), with phi scaled to 1 at its largest; a label that comes
    out below e^-80 of that is given e^-80. What a search picks is scored again in log space by ``extend``,
    which also solves the recurrences of its forward variables: first-order and linear, for all frames at once
    by cumulative sums in float64. On a GPU, where that would be some eighty kernels a step, Triton kernels
    (:mod:`~hmamba_asr.ops.ctc.kernels`) do the same in four (``fused``).

    ``window`` (B, 2), where given, is the first frame and the last plus one at which a label may begin.
    """

    def __init__(
        self, log_probs: Tensor, lengths: Tensor, *, blank: int, eos: int, fused: bool | None = None
    ):
        """log_probs (B, T, vocab) of the CTC head, which may be changed, to at least ``LEAST``; lengths (B,),
        1 or more."""
        log_probs, lengths = log_probs.contiguous(), lengths.contiguous()
        can_fuse = (
            log_probs.is_cuda
            and log_probs.dtype == torch.float32
            and unavailable_reason(log_probs.device) is None
        )
        self.fused = can_fuse if fused is None else fused
        self.blank, self.eos, self.last_frame = blank, eos, lengths - 1
        self.outside = ~valid_mask(lengths, log_probs.shape[1]).unsqueeze(1)  # (B, 1, T)
        self.probs = log_probs.exp().masked_fill_(self.outside.transpose(1, 2), 0.0)
        self.log_probs = log_probs.clamp_(min=LEAST)  # no copy: of a batch they are tens of megabytes
        self.each_blank = self.log_probs[..., blank].double().masked_fill(self.outside[:, 0], 0.0)
        self.blanks = self.each_blank.cumsum(1).unsqueeze(1)

    def start(self) -> PrefixState:
        """The empty prefix of each utterance."""
        none = torch.full_like(self.blanks, IMPOSSIBLE)
        score = self.blanks.new_zeros(self.blanks.shape[0], 1)
        return PrefixState(none, self.blanks.clone(), score, torch.full_like(score, -1, dtype=torch.long))

    def next_scores(self, state: PrefixState, window: Tensor | None = None) -> Tensor:
        """log psi(g c) - log psi(g) for every label c (B, K, vocab); eos stands for "g is all", and blank is
        impossible."""
        if self.fused:
            from hmamba_asr.ops.ctc import kernels as ctc_triton

            return ctc_triton.next_scores(
                state.in_label,
                state.in_blank,
                state.score,
                state.last,
                log_probs=self.log_probs,
                probs=self.probs,
                last_frame=self.last_frame,
                window=window,
                blank=self.blank,
                eos=self.eos,
            )
        total = state.total()
        began = self._before(total, state.last, window)
        largest = began.amax(-1, keepdim=True)
        scale = largest - state.score.unsqueeze(-1)
        scores = (
            ((began - largest).exp().to(self.probs.dtype) @ self.probs).clamp_(min=1e-35).log_().add_(scale)
        )
        repeated = state.last.where(state.last >= 0, self.blank)  # the empty prefix repeats nothing
        again = (
            self._psi(self._before(state.in_blank, state.last, window), self._columns(repeated)) - state.score
        )
        scores.scatter_(-1, repeated.unsqueeze(-1), again.to(scores.dtype).unsqueeze(-1))
        scores[..., self.eos] = (self._at_end(total) - state.score).to(scores.dtype)
        scores[..., self.blank] = IMPOSSIBLE
        return scores

    def extend(
        self, state: PrefixState, parents: Tensor, labels: Tensor, window: Tensor | None = None
    ) -> PrefixState:
        """The prefixes ``parents`` (B, K') each followed by its label (B, K'), with exact scores.

        After eos the score is that of the parent being all, and the forward variables mean nothing.
        """
        if self.fused:
            from hmamba_asr.ops.ctc import kernels as ctc_triton

            in_label, in_blank, score = ctc_triton.extend(
                state.in_label,
                state.in_blank,
                state.last,
                parents,
                labels,
                log_probs=self.log_probs,
                blanks=self.each_blank,
                last_frame=self.last_frame,
                window=window,
                eos=self.eos,
            )
            return PrefixState(in_label, in_blank, score, labels)
        at = parents.unsqueeze(-1).expand(-1, -1, state.in_label.shape[-1])
        in_label, in_blank, last = (
            state.in_label.gather(1, at),
            state.in_blank.gather(1, at),
            state.last.gather(1, parents),
        )
        total = torch.logaddexp(in_label, in_blank)
        phi = torch.where((labels == last).unsqueeze(-1), in_blank, total)
        began, x = self._before(phi, last, window), self._columns(labels)
        score = torch.where(labels == self.eos, self._at_end(total), self._psi(began, x))
        # r_t = p_t (r_{t-1} + began_t): divided by the product of the p so far, a cumulative sum
        through = x.cumsum(-1)
        forbidden = self._forbidden(window)
        in_label = (through + (began - (through - x)).logcumsumexp(-1)).masked_fill(forbidden, IMPOSSIBLE)
        in_blank = (self.blanks + _shift((in_label - self.blanks).logcumsumexp(-1), IMPOSSIBLE)).clamp(
            min=IMPOSSIBLE
        )
        if window is not None:
            in_blank = in_blank.masked_fill(forbidden, IMPOSSIBLE)
        return PrefixState(in_label, in_blank, score, labels)

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""
        for name in ("last_frame", "outside", "probs", "log_probs", "each_blank", "blanks"):
            setattr(self, name, getattr(self, name)[rows])

    def _before(self, phi: Tensor, last: Tensor, window: Tensor | None) -> Tensor:
        """phi one frame earlier: what precedes a label that begins at frame t; in front of frame 0 there is
        the empty prefix."""
        before = _shift(phi, 0.0)
        before[..., 0].masked_fill_(last >= 0, IMPOSSIBLE)
        return before.masked_fill_(self._forbidden(window), IMPOSSIBLE)

    def _forbidden(self, window: Tensor | None) -> Tensor:
        """Boolean (B, 1, T): where no label may begin."""
        if window is None:
            return self.outside
        frames = torch.arange(self.outside.shape[-1], device=window.device)
        return self.outside | ((frames < window[:, :1]) | (frames >= window[:, 1:])).unsqueeze(1)

    def _columns(self, labels: Tensor) -> Tensor:
        """Log-probabilities (B, K, T) of each prefix' label over the frames."""
        index = labels.unsqueeze(-1).expand(-1, -1, self.log_probs.shape[1])
        return self.log_probs.transpose(1, 2).gather(1, index).double().masked_fill_(self.outside, 0.0)

    def _psi(self, began: Tensor, x: Tensor) -> Tensor:
        return (began + x).logsumexp(-1)

    def _at_end(self, total: Tensor) -> Tensor:
        return total.gather(-1, self.last_frame.view(-1, 1, 1).expand(-1, total.shape[1], -1)).squeeze(-1)


def _shift(x: Tensor, first: float) -> Tensor:
    """One frame later along the last axis, with ``first`` in front."""
    return torch.nn.functional.pad(x[..., :-1], (1, 0), value=first)
