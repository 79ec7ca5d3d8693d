"""Forced alignments of utterances: tiers of labelled intervals, read from Praat's TextGrid files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Seconds = float
# Labels of silence of the Montreal Forced Aligner and similar ones; spn, an unknown word, is not among them.
SILENCES = frozenset({"", "sil", "sp", "<eps>"})


@dataclass(frozen=True)
class Tiers:
    """An utterance's alignment: for each tier, its intervals (start, end, label), in seconds.

    A TextGrid has the tiers "phones" and "words". A CTC's alignment has "tokens" and "words", and no silence.
    """

    intervals: Mapping[str, Sequence[tuple[Seconds, Seconds, str]]]

    def boundaries(self, tier: str) -> np.ndarray:
        """Return the times between two intervals, unless both are silent."""
        labelled = self.intervals[tier]
        pairs = zip(labelled[:-1], labelled[1:], strict=True)
        return np.array(
            [after[0] for before, after in pairs if not (_silent(before[2]) and _silent(after[2]))]
        )

    def silent(self, times: Sequence[Seconds] | np.ndarray) -> np.ndarray:
        """Return whether each time lies in silence. Needs the tier "phones"."""
        pauses = [(start, end) for start, end, label in self.intervals["phones"] if _silent(label)]
        instants = np.asarray(times, dtype=float)
        inside = np.zeros(len(instants), dtype=bool)
        for start, end in pauses:
            inside |= (instants >= start) & (instants < end)
        return inside

    @property
    def silent_seconds(self) -> Seconds:
        """Total duration of silence. Needs the tier "phones"."""
        return sum(end - start for start, end, label in self.intervals["phones"] if _silent(label))

    @property
    def seconds(self) -> Seconds:
        """Time from the first interval's start to the last one's end. Needs the tier "phones"."""
        return self.intervals["phones"][-1][1] - self.intervals["phones"][0][0]


def _silent(label: str) -> bool:
    return label.strip().lower() in SILENCES


def read_textgrid(path: str | Path) -> Tiers:
    """Read the tiers "phones" and "words" of a Praat TextGrid. Needs praatio.

    Raises
    ------
    ValueError
        If the file is no TextGrid, or lacks one of the tiers.
    """
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
        tiers = {name: tuple(map(tuple, grid.getTier(name).entries)) for name in ("phones", "words")}
    except (PraatioException, KeyError, ValueError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} is not a TextGrid with the tiers phones and words ({' '.join(str(error).split())})."
        ) from error
    if not all(tiers.values()):
        raise ValueError(f"{path} has a tier without intervals; align this utterance again.")
    return Tiers(tiers)


def read_textgrids(folder: str | Path, ids: Iterable[str]) -> dict[str, Tiers]:
    """Read the alignments of utterances that have an `ID.TextGrid` in `folder` or below.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        As `read_textgrid`.
    """
    wanted = set(ids)
    files = {path.stem: path for path in sorted(Path(folder).rglob("*.TextGrid")) if path.stem in wanted}
    if not files:
        raise FileNotFoundError(
            f"{folder} has no ID.TextGrid of any of the {len(wanted)} utterances; give their alignments' "
            "folder."
        )
    return {key: read_textgrid(path) for key, path in files.items()}
