"""The state of a beam search, and its results, read back from the trellis of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class BeamState:
    """The state of a search over B utterances with K hypotheses each.

    Attributes
    ----------
    tokens
        (B, K). The newest token.
    sums
        (B, K). The weighted score so far, -inf for a hypothesis that is finished or ruled out.
    parts
        (B, K, scorers). The share of each scorer, unweighted.
    peaks
        (B, K). The encoder state that the last token attended to most.
    first_end
        (B,). Number of tokens before the earliest end of sentence.
    limit
        (B,). Largest number of tokens, the end of sentence included.
    steps
        (B,). Number of steps so far, the same for all utterances.
    finished
        (B,). Number of finished hypotheses.
    best_scores
        (B, topk). Scores of the best finished hypotheses.
    done
        (B,). Whether the search of an utterance is over.
    """

    tokens: Tensor
    sums: Tensor
    parts: Tensor
    peaks: Tensor
    first_end: Tensor
    limit: Tensor
    steps: Tensor
    finished: Tensor
    best_scores: Tensor
    done: Tensor

    def carried(self) -> list[tuple[object, str]]:
        """Name the tensors that a step replaces and the next one reads, each as owner and attribute."""
        return [(self, name) for name in vars(self)]

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


@dataclass
class Hypothesis:
    """One result of a search.

    Attributes
    ----------
    tokens
        The tokens, without the end of sentence.
    score
        The weighted sum of ``parts``, divided by the number of tokens with the end of sentence if the search
        normalises by length.
    parts
        The log-probability by each scorer, unweighted.
    log_probs
        The decoder's weighted log-probability of each token and of the end of sentence.
    ended
        False if the step limit cut the hypothesis off.
    """

    tokens: list[int]
    score: float
    parts: dict[str, float] = field(default_factory=dict)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = True


@dataclass
class Step:
    """One step of a search over B utterances with K hypotheses each.

    Attributes
    ----------
    tokens
        (B, K). The token that the step added.
    parents
        (B, K). The hypothesis of the previous step that the new one continues.
    scores
        (B, K). The score so far, normalised by length if the search does so.
    log_probs
        (B, K). The decoder's weighted log-probability of the token.
    parts
        (B, K, scorers). The share of each scorer so far, unweighted.
    accepted
        (B, K). Whether the hypothesis is finished and a result.
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    log_probs: Tensor
    parts: Tensor
    accepted: Tensor


class Trellis:
    """The steps of a search.

    They stay on the device until the search ends. They are then copied to the host, in one copy for each set
    of utterances that the batch consisted of.

    Parameters
    ----------
    part_names
        Name of each scorer, in the order of ``Step.parts``.
    eos
        The end of sentence.
    """

    def __init__(self, part_names: list[str], eos: int):
        self.part_names, self.eos = part_names, eos
        self._segments: list[tuple[list[int], list[Step]]] = []

    def utterances(self, rows: list[int]) -> None:
        """Declare which utterances the batch consists of from the next step on."""
        self._segments.append((rows, []))

    def add(self, step: Step) -> None:
        """Append a step."""
        self._segments[-1][1].append(step)

    def best(self, count: int) -> dict[int, list[Hypothesis]]:
        """Return the best results of each utterance that has any.

        Parameters
        ----------
        count
            Largest number of results per utterance.

        Returns
        -------
        dict
            Results by utterance, best first. Of equal scores the earliest comes first. No two results have
            the same tokens.
        """
        # The row of each utterance and the arrays of each step.
        steps: list[tuple[dict[int, int], dict[str, np.ndarray]]] = []
        # (score, step, hypothesis) of each result.
        found: dict[int, list[tuple[float, int, int]]] = {}
        for rows, segment in self._segments:
            place = {utterance: row for row, utterance in enumerate(rows)}
            fields = {
                name: torch.stack([getattr(s, name) for s in segment]).cpu().numpy()
                for name in Step.__dataclass_fields__
            }
            for index, row, k in zip(*fields["accepted"].nonzero(), strict=True):
                found.setdefault(rows[row], []).append(
                    (float(fields["scores"][index, row, k]), len(steps) + int(index), int(k))
                )
            steps += [
                (place, {name: values[index] for name, values in fields.items()})
                for index in range(len(segment))
            ]
        results: dict[int, list[Hypothesis]] = {}
        for utterance, ends in found.items():
            # Two hypotheses that were cut off may differ only in the token that the end of sentence replaced.
            different: dict[tuple[int, ...], Hypothesis] = {}
            for end in sorted(ends, key=lambda end: -end[0]):
                hypothesis = self._trace(steps, utterance, *end)
                different.setdefault(tuple(hypothesis.tokens), hypothesis)
                if len(different) == count:
                    break
            results[utterance] = list(different.values())
        return results

    def _trace(
        self,
        steps: list[tuple[dict[int, int], dict[str, np.ndarray]]],
        utterance: int,
        score: float,
        last: int,
        k: int,
    ) -> Hypothesis:
        """Follow a result back to its first token."""
        place, fields = steps[last]
        parts = dict(zip(self.part_names, fields["parts"][place[utterance], k].tolist(), strict=True))
        tokens: list[int] = []
        log_probs: list[float] = []
        for place, fields in reversed(steps[: last + 1]):
            row = place[utterance]
            tokens.append(int(fields["tokens"][row, k]))
            log_probs.append(float(fields["log_probs"][row, k]))
            k = int(fields["parents"][row, k])
        # As in SpeechBrain's search, the end of sentence replaces the last token of a hypothesis cut off.
        return Hypothesis(tokens[:0:-1], score, parts, log_probs[::-1], ended=tokens[0] == self.eos)
