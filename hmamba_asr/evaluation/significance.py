"""How sure a word error rate is, and whether two systems differ on the same utterances.

Utterances are what is resampled. They are taken as independent, which those of one speaker are not quite:
with few speakers the intervals are too narrow. Nothing here speaks of other seeds: the tests compare two
trained models.

Sources: M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
ICASSP 2004; L. Gillick and S. Cox, "Some statistical issues in the comparison of speech recognition
algorithms", ICASSP 1989.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from hmamba_asr.evaluation.wer import AlignedUtterance

LEVEL = 0.95  # of every interval
RESAMPLES = 10_000
SEED = 0
BETWEEN_SEGMENTS = 2  # words that both systems have right, the count of NIST's implementation
_BLOCK = 2**21  # utterances drawn at once: 16 MiB of indices


class Interval(NamedTuple):
    """Both ends, in percent of the reference words."""

    low: float
    high: float


def bootstrap_interval(
    errors: Sequence[int], words: Sequence[int], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """95% percentile interval of the WER of a corpus whose utterances have these errors and reference words
    (U,).

    Raises:
        ValueError: both are of different length, or there are no words.
    """
    rates, _ = _resampled_rates([errors], words, resamples=resamples, seed=seed)
    return _percentiles(rates[0])


@dataclass(frozen=True)
class PairedBootstrap:
    """WER of B less that of A in percentage points, its 95% interval, and the two-sided p-value of no
    difference."""

    difference: float
    interval: Interval
    p: float


def paired_bootstrap(
    errors_a: Sequence[int],
    errors_b: Sequence[int],
    words: Sequence[int],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> PairedBootstrap:
    """Resample utterances, the same ones for both systems.

    The p-value is twice the smaller share of resamples in which the difference is not above, or not below 0,
    each with one resample added, so that it is never 0 (Davison and Hinkley, 1997, section 4.2).

    Raises:
        ValueError: lengths differ, or there are no words.
    """
    rates, observed = _resampled_rates([errors_a, errors_b], words, resamples=resamples, seed=seed)
    differences = rates[1] - rates[0]
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return PairedBootstrap(
        observed[1] - observed[0], _percentiles(differences), min(1.0, 2 * (int(tail) + 1) / (resamples + 1))
    )


@dataclass(frozen=True)
class MatchedPairs:
    """Matched-pairs sentence-segment word error test: `z` of the mean difference (B - A) in errors over the
    segments, and its two-sided p-value. Both are None where there is no spread to judge by: fewer than two
    segments, or all differ alike."""

    segments: int
    z: float | None
    p: float | None


def matched_pairs(
    aligned_a: Sequence[AlignedUtterance], aligned_b: Sequence[AlignedUtterance]
) -> MatchedPairs:
    """MAPSSWE: segments are stretches with errors of either system, between stretches of at least two words
    that both have right, and ends of utterances; errors of different segments are taken as independent.

    Raises:
        ValueError: the two are not alignments of the same references.
    """
    differences: list[int] = []
    for one, other in _same_references(aligned_a, aligned_b):
        differences += _segment_differences(_errors_by_place(one), _errors_by_place(other))
    if not any(differences):
        return MatchedPairs(len(differences), 0.0, 1.0)
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    if spread == 0:
        return MatchedPairs(len(differences), None, None)
    z = float(np.mean(differences)) / (spread / math.sqrt(len(differences)))
    return MatchedPairs(len(differences), z, math.erfc(abs(z) / math.sqrt(2)))


def _same_references(
    aligned_a: Sequence[AlignedUtterance], aligned_b: Sequence[AlignedUtterance]
) -> Iterator[tuple[AlignedUtterance, AlignedUtterance]]:
    if [item.id for item in aligned_a] != [item.id for item in aligned_b]:
        raise ValueError(
            "the two runs were not scored on the same utterances; evaluate both on the same split."
        )
    for one, other in zip(aligned_a, aligned_b, strict=True):
        references = [[ref for ref, _ in item.pairs if ref is not None] for item in (one, other)]
        if references[0] != references[1]:
            raise ValueError(
                f"the two runs have different references of utterance {one.id}; evaluate both on the same split."
            )
        yield one, other


def _errors_by_place(aligned: AlignedUtterance) -> list[int]:
    """Errors at each place of the reference (2 words + 1,): its words at odd places, between them the
    insertions."""
    places = [0]
    for reference, hypothesis in aligned.pairs:
        if reference is None:
            places[-1] += 1
        else:
            places += [int(reference != hypothesis), 0]
    return places


def _segment_differences(errors_a: Sequence[int], errors_b: Sequence[int]) -> list[int]:
    """Errors of B less those of A in each segment of an utterance."""
    found: list[int] = []
    right = (
        BETWEEN_SEGMENTS  # words right since the last error; an utterance's beginning separates as they do
    )
    for place, (a, b) in enumerate(zip(errors_a, errors_b, strict=True)):
        if a or b:
            if right >= BETWEEN_SEGMENTS:
                found.append(0)
            found[-1] += b - a
            right = 0
        elif place % 2:
            right += 1
    return found


def _resampled_rates(
    systems: Sequence[Sequence[int]], words: Sequence[int], *, resamples: int, seed: int
) -> tuple[np.ndarray, list[float]]:
    """WER of each system in percent, of the resamples (systems, resamples) and as observed."""
    counts = np.asarray(words)
    errors = [np.asarray(system) for system in systems]
    if any(len(system) != len(counts) for system in errors):
        raise ValueError(
            "each utterance needs a count of errors and one of words; there are more of the one than of the other."
        )
    if not counts.sum():
        raise ValueError(
            "no WER without words: the references are empty. Check the transcripts of this split."
        )
    random = np.random.default_rng(seed)
    rates = np.empty((len(errors), resamples))
    step = max(1, _BLOCK // len(counts))
    for start in range(0, resamples, step):
        drawn = random.integers(len(counts), size=(min(step, resamples - start), len(counts)))
        # A resample of nothing but wordless utterances has no rate; it counts as one word.
        total = np.maximum(counts[drawn].sum(1), 1)
        for row, system in zip(rates, errors, strict=True):
            row[start : start + len(drawn)] = 100.0 * system[drawn].sum(1) / total
    return rates, [100.0 * float(system.sum()) / float(counts.sum()) for system in errors]


def _percentiles(values: np.ndarray) -> Interval:
    outside = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [outside, 100 - outside])
    return Interval(float(low), float(high))
