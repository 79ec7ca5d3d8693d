"""Confidence intervals of word error rates, and tests of a difference between two systems on the same
utterances.

The bootstrap resamples utterances and takes them as independent. Utterances of one speaker are not quite
independent, so with few speakers the intervals are too narrow. The tests compare two trained models and say
nothing about other seeds.

Sources: M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
ICASSP 2004; L. Gillick and S. Cox, "Some statistical issues in the comparison of speech recognition
algorithms", ICASSP 1989.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hmamba_asr.evaluation.word_alignment import AlignedUtterance

LEVEL = 0.95  # confidence level of every interval
RESAMPLES = 10_000
SEED = 0
BETWEEN_SEGMENTS = 2  # correct words of both systems that separate two segments, as in NIST's implementation
_BLOCK = 2**21  # number of utterances drawn at once: 16 MiB of indices


class Interval(NamedTuple):
    """Both ends of an interval, in percent of the reference words."""

    low: float
    high: float


def bootstrap_interval(
    errors: Sequence[int], words: Sequence[int], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Return the 95% percentile interval of a corpus' WER in percent (Bisani and Ney, 2004).

    Parameters
    ----------
    errors, words
        Word errors and reference words of each utterance (U,).
    resamples, seed
        Number of resamples, and the seed that draws them.

    Raises
    ------
    ValueError
        If the two have different lengths, or there are no words.
    """
    rates, _ = _resampled_rates([errors], words, resamples=resamples, seed=seed)
    return _percentiles(rates[0])


@dataclass(frozen=True)
class PairedBootstrap:
    """WER of B minus WER of A in percentage points, its 95% interval, and the two-sided p-value."""

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
    """Test a difference in WER by resampling utterances, the same ones for both systems (Bisani and Ney,
    2004).

    Two shares of the resamples count: those with a difference of at most 0, and those with a difference of at
    least 0. The p-value is twice the smaller share. Each count gets one resample more, so that the p-value is
    never 0 (Davison and Hinkley, 1997, section 4.2).

    Parameters
    ----------
    errors_a, errors_b
        Word errors of each system in each utterance (U,).
    words
        Reference words of each utterance (U,).
    resamples, seed
        Number of resamples, and the seed that draws them.

    Raises
    ------
    ValueError
        If lengths differ, or there are no words.
    """
    rates, observed = _resampled_rates([errors_a, errors_b], words, resamples=resamples, seed=seed)
    differences = rates[1] - rates[0]
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return PairedBootstrap(
        observed[1] - observed[0], _percentiles(differences), min(1.0, 2 * (int(tail) + 1) / (resamples + 1))
    )


@dataclass(frozen=True)
class MatchedPairs:
    """Result of the matched-pairs test.

    Attributes
    ----------
    segments
        Number of segments.
    z, p
        z-score of the mean difference in errors (B - A) over segments, and its two-sided p-value. Both are
        None with fewer than two segments, or if all segments differ by the same number.
    """

    segments: int
    z: float | None
    p: float | None


def matched_pairs(
    aligned_a: Sequence[AlignedUtterance], aligned_b: Sequence[AlignedUtterance]
) -> MatchedPairs:
    """Run the matched-pairs sentence-segment word error test, MAPSSWE (Gillick and Cox, 1989).

    A segment is a stretch of an utterance with errors of either system. Segments are separated by at least
    `BETWEEN_SEGMENTS` words that both systems have right, or by the end of an utterance. The test takes
    errors of different segments as independent.

    Raises
    ------
    ValueError
        If the two are not alignments of the same references.
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
        if one.reference != other.reference:
            raise ValueError(
                f"the two runs have different references of utterance {one.id}; evaluate both on the same "
                "split."
            )
        yield one, other


def _errors_by_place(aligned: AlignedUtterance) -> list[int]:
    """Return the errors at each place of the reference (2 words + 1,): words at odd places, insertions
    between them."""
    places = [0]
    for reference, hypothesis in aligned.pairs:
        if reference is None:
            places[-1] += 1
        else:
            places += [int(reference != hypothesis), 0]
    return places


def _segment_differences(errors_a: Sequence[int], errors_b: Sequence[int]) -> list[int]:
    """Return the errors of B minus those of A in each segment of an utterance."""
    found: list[int] = []
    right = BETWEEN_SEGMENTS  # correct words since the last error; the utterance's beginning separates too
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
    """Return each system's WER in percent: of the resamples (systems, resamples), and as observed."""
    counts = np.asarray(words)
    errors = [np.asarray(system) for system in systems]
    if any(len(system) != len(counts) for system in errors):
        raise ValueError(
            f"there are errors of {' and '.join(str(len(system)) for system in errors)} utterances, but "
            f"words of {len(counts)}; give both "
            "for each utterance."
        )
    if not counts.sum():
        raise ValueError(
            "no WER without words: the references are empty; check the transcripts of this split."
        )
    random = np.random.default_rng(seed)
    rates = np.empty((len(errors), resamples))
    step = max(1, _BLOCK // len(counts))
    for start in range(0, resamples, step):
        drawn = random.integers(len(counts), size=(min(step, resamples - start), len(counts)))
        # A resample of wordless utterances alone has no rate; its words count as one.
        total = np.maximum(counts[drawn].sum(1), 1)
        for row, system in zip(rates, errors, strict=True):
            row[start : start + len(drawn)] = 100.0 * system[drawn].sum(1) / total
    return rates, [100.0 * float(system.sum()) / float(counts.sum()) for system in errors]


def _percentiles(values: np.ndarray) -> Interval:
    outside = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [outside, 100 - outside])
    return Interval(float(low), float(high))
