"""Where the errors lie: by speaker, by the utterance's length, and which words are taken for which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hmamba_asr.evaluation.significance import Interval, bootstrap_interval

if TYPE_CHECKING:
    from hmamba_asr.evaluation.wer import AlignedUtterance

LENGTH_EDGES = (1, 6, 11, 16, 21, 31)  # words: 1 to 5, 6 to 10, ..., 31 and more


@dataclass(frozen=True)
class Part:
    """Utterances that have something in common: their number, errors, words, and WER in percent with its 95%
    interval."""

    name: str
    utterances: int
    errors: int
    words: int
    rate: float
    interval: Interval


def by_speaker(aligned: Sequence[AlignedUtterance]) -> list[Part]:
    """One part for each speaker, the highest WER first. Speakers whose references have no word are left
    out."""
    return sorted(_parts(aligned, lambda item: item.speaker, str), key=lambda part: (-part.rate, part.name))


def by_length(aligned: Sequence[AlignedUtterance], edges: Sequence[int] = LENGTH_EDGES) -> list[Part]:
    """One part for each range of reference lengths in words, the shortest first, where there are any.

    A range begins at each of `edges`, which rise, and ends before the next one; the last is open.
    """

    def name(index: int) -> str:
        if index + 1 == len(edges):
            return f"{edges[index]}+"
        last = edges[index + 1] - 1
        return str(last) if last == edges[index] else f"{edges[index]}-{last}"

    long_enough = [item for item in aligned if item.words >= edges[0]]
    return _parts(long_enough, lambda item: sum(item.words >= edge for edge in edges) - 1, name)


def confusions(
    aligned: Sequence[AlignedUtterance], most: int = 20
) -> list[tuple[str | None, str | None, int]]:
    """The most frequent errors: (reference word, hypothesis word, how often), with None where a word was
    inserted or deleted."""
    counts = Counter(pair for item in aligned for pair in item.pairs if pair[0] != pair[1])
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    return [(*pair, count) for pair, count in ordered[:most]]


def _parts(
    aligned: Sequence[AlignedUtterance],
    key: Callable[[AlignedUtterance], Hashable],
    name: Callable[[Hashable], str],
) -> list[Part]:
    groups = defaultdict(list)
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
