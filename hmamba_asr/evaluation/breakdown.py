"""Word errors broken down by speaker, by length of the utterance, and by confused words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hmamba_asr.evaluation.significance import Interval, bootstrap_interval
from hmamba_asr.evaluation.word_alignment import AlignedUtterance

LENGTH_EDGES = (1, 6, 11, 16, 21, 31)  # words: 1 to 5, 6 to 10, ..., 31 and more


@dataclass(frozen=True)
class Part:
    """Utterances that share a property.

    Attributes
    ----------
    name
        The property's value.
    utterances, errors, words
        Number of utterances, word errors and reference words.
    rate, interval
        WER in percent and its 95% interval.
    """

    name: str
    utterances: int
    errors: int
    words: int
    rate: float
    interval: Interval


def by_speaker(aligned: Sequence[AlignedUtterance]) -> list[Part]:
    """Return one part for each speaker, the highest WER first.

    Speakers whose references have no word are left out.
    """
    return sorted(_parts(aligned, lambda item: item.speaker, str), key=lambda part: (-part.rate, part.name))


def by_length(aligned: Sequence[AlignedUtterance], edges: Sequence[int] = LENGTH_EDGES) -> list[Part]:
    """Return one part for each range of reference lengths, the shortest first. Empty ranges are left out.

    Parameters
    ----------
    aligned
        The utterances.
    edges
        Number of words at which each range begins, rising. A range ends before the next one, the last is
        open.
    """

    def name(index: Any) -> str:
        if index + 1 == len(edges):
            return f"{edges[index]}+"
        last = edges[index + 1] - 1
        return str(last) if last == edges[index] else f"{edges[index]}-{last}"

    long_enough = [item for item in aligned if item.words >= edges[0]]
    return _parts(long_enough, lambda item: sum(item.words >= edge for edge in edges) - 1, name)


def confusions(
    aligned: Sequence[AlignedUtterance], most: int = 20
) -> list[tuple[str | None, str | None, int]]:
    """Return the `most` frequent errors as (reference word, hypothesis word, count).

    The reference is None for an inserted word, and the hypothesis for a deleted one.
    """
    counts = Counter(pair for item in aligned for pair in item.pairs if pair[0] != pair[1])
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    return [(*pair, count) for pair, count in ordered[:most]]


def _parts(
    aligned: Sequence[AlignedUtterance],
    key: Callable[[AlignedUtterance], Any],
    name: Callable[[Any], str],
) -> list[Part]:
    groups: dict[Any, list[AlignedUtterance]] = defaultdict(list)
    for item in aligned:
        groups[key(item)].append(item)
    parts = []
    for shared, group in sorted(groups.items()):
        errors, words = [item.errors for item in group], [item.words for item in group]
        if not sum(words):
            continue
        rate = 100 * sum(errors) / sum(words)
        parts.append(
            Part(name(shared), len(group), sum(errors), sum(words), rate, bootstrap_interval(errors, words))
        )
    return parts
