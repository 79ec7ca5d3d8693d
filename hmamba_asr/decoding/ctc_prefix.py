"""CTC prefix scores for a joint beam search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmamba_asr.ops.ctc import IMPOSSIBLE, Posteriors, extend, next_scores


@dataclass
class PrefixState:
    """Forward variables of K prefixes of each of B utterances, as float64 log-probabilities.

    Attributes
    ----------
    in_label, in_blank
        (B, K, T). The probability of all paths over frames 0 to t that give the prefix and end in its last
        label, and of those that end in a blank.
    score
        (B, K). The probability of all label sequences that begin with the prefix.
    last
        (B, K). The last label of the prefix, -1 for the empty prefix.
    """

    in_label: Tensor
    in_blank: Tensor
    score: Tensor
    last: Tensor

    def keep(self, rows: Tensor) -> PrefixState:
        """Return the prefixes of the given utterances."""
        return PrefixState(self.in_label[rows], self.in_blank[rows], self.score[rows], self.last[rows])


class CTCPrefixScorer:
    """CTC prefix scores of a batch of utterances, by :mod:`hmamba_asr.ops.ctc`.

    ``window`` (B, 2), if given, says in which frames a label may begin: the first one, and one past the last.

    Parameters
    ----------
    log_probs : Tensor
        (B, T, vocab), of the CTC head; may be changed in place.
    lengths : Tensor
        (B,), 1 or more.
    blank, eos : int
        Indices of the blank and of the end of the sequence.
    backend : str
        "auto", "reference" or "triton".
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, *, blank: int, eos: int, backend: str = "auto"):
        self.posteriors = Posteriors.prepare(log_probs, lengths, blank=blank)
        self.eos, self.backend = eos, backend

    def start(self) -> PrefixState:
        """Return the empty prefix of each utterance."""
        in_blank = self.posteriors.blank_sums.clone()
        none = torch.full_like(in_blank, IMPOSSIBLE)
        score = in_blank.new_zeros(in_blank.shape[0], 1)
        return PrefixState(none, in_blank, score, torch.full_like(score, -1, dtype=torch.long))

    def next_scores(self, state: PrefixState, window: Tensor | None = None) -> Tensor:
        """Return log psi(g c) - log psi(g) for each prefix g and every label c, (B, K, vocab).

        The score of eos is that of g as the whole sequence. The blank scores ``IMPOSSIBLE``.
        """
        prefixes = (state.in_label, state.in_blank, state.score, state.last)
        return next_scores(*prefixes, self.posteriors, window=window, eos=self.eos, backend=self.backend)

    def extend(
        self, state: PrefixState, parents: Tensor, labels: Tensor, window: Tensor | None = None
    ) -> PrefixState:
        """Append ``labels`` (B, K') to the prefixes ``parents`` (B, K') and score the results exactly.

        After eos, the score is that of the parent as the whole sequence, and the forward variables have no
        meaning.
        """
        in_label, in_blank, score = extend(
            state.in_label,
            state.in_blank,
            state.last,
            parents,
            labels,
            self.posteriors,
            window=window,
            eos=self.eos,
            backend=self.backend,
        )
        return PrefixState(in_label, in_blank, score, labels)

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""
        self.posteriors = self.posteriors.keep(rows)
