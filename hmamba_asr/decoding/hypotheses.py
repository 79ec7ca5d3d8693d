"""Where a beam search stands, and what it found, read back from its trellis."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Beams:
    """Where a search stands: B utterances, K hypotheses each."""

    tokens: Tensor  # (B, K) the newest token
    sums: Tensor  # (B, K) weighted scores so far, -inf of what is finished or ruled out
    parts: Tensor  # (B, K, scorers) each scorer's own share
    peaks: Tensor  # (B, K) frame that the last token attended to most
    first_end: Tensor  # (B,) tokens in front of the earliest end of sentence
    limit: Tensor  # (B,) tokens with the end of sentence
    steps: Tensor  # (B,) done so far, the same number for all
    finished: Tensor  # (B,) number of finished hypotheses
    best: Tensor  # (B, topk) scores of the best finished ones
    done: Tensor  # (B,) whether the utterance takes no more

    def carried(self) -> list[tuple[object, str]]:
        return [(self, name) for name in vars(self)]

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


@dataclass
class Hypothesis:
    """One result of a search.

    ``score`` is the weighted sum of ``parts`` (each scorer's own log-probability, unweighted), divided by the
    number of tokens with the end of sentence if the search normalises by length. ``log_probs`` are the
    decoder's, weighted, one for each token and one for the end of sentence. ``ended`` is false if the step
    limit cut the hypothesis off.
    """

    tokens: list[int]
    score: float
    parts: dict[str, float] = field(default_factory=dict)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = True


@dataclass
class Step:
    """One step of a search over B utterances with K hypotheses each; all (B, K), ``parts`` (B, K, scorers).

    ``accepted``: the hypothesis is finished and a result. ``parents`` index the step before.
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    log_probs: Tensor
    parts: Tensor
    accepted: Tensor


class Trellis:
    """The steps of a search, kept on the device and brought home at the end, once for each change of its
    utterances."""

    def __init__(self, part_names: list[str], eos: int):
        self.part_names, self.eos = part_names, eos
        self._segments: list[tuple[list[int], list[Step]]] = []

    def utterances(self, rows: list[int]) -> None:
        """From the next step on the batch consists of these utterances."""
        self._segments.append((rows, []))

    def add(self, step: Step) -> None:
        self._segments[-1][1].append(step)

    def best(self, count: int) -> dict[int, list[Hypothesis]]:
        """The ``count`` best results of each utterance that has any, best first, of equals the earliest, no
        tokens twice."""
        steps, found = [], {}  # steps: (row of each utterance, fields of the step as lists)
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
            different: dict[
                tuple[int, ...], Hypothesis
            ] = {}  # those cut off may differ in the token they gave up alone
            for end in sorted(ends, key=lambda end: -end[0]):
                hypothesis = self._trace(steps, utterance, *end)
                different.setdefault(tuple(hypothesis.tokens), hypothesis)
                if len(different) == count:
                    break
            results[utterance] = list(different.values())
        return results

    def _trace(self, steps: list, utterance: int, score: float, last: int, k: int) -> Hypothesis:
        place, fields = steps[last]
        parts = dict(zip(self.part_names, fields["parts"][place[utterance], k].tolist(), strict=True))
        tokens, log_probs = [], []
        for place, fields in reversed(steps[: last + 1]):
            row = place[utterance]
            tokens.append(int(fields["tokens"][row, k]))
            log_probs.append(float(fields["log_probs"][row, k]))
            k = int(fields["parents"][row, k])
        # A hypothesis that is cut off gives its last place to the end of sentence, as SpeechBrain's search
        # has it.
        return Hypothesis(tokens[:0:-1], score, parts, log_probs[::-1], ended=tokens[0] == self.eos)
