"""The output folder of a run that was trained and evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hmamba_asr.data.manifest import ManifestRow
from hmamba_asr.evaluation.alignment import AlignedUtterance
from hmamba_asr.evaluation.recordings import split_recordings, spread_over_durations
from hmamba_asr.evaluation.results import Entry, Results, load_results
from hmamba_asr.evaluation.wer import align, read_trn


@dataclass(frozen=True)
class RunFolder:
    """A finished run.

    Attributes
    ----------
    folder
        The output folder of `train.py`.
    results
        Its results.
    label
        A name that tells the run apart from others.
    """

    folder: Path
    results: Results
    label: str
    _aligned: dict[tuple[str, str], list[AlignedUtterance]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def aligned(self, split: str, search: str) -> list[AlignedUtterance]:
        """Align the words that a search recognised. The alignment is kept for the next call.

        Raises
        ------
        FileNotFoundError
            If the transcripts do not exist.
        """
        if (split, search) not in self._aligned:
            self._aligned[split, search] = align(*read_trn(self.folder / "test" / split / search))
        return self._aligned[split, search]

    def scored(self) -> Iterator[tuple[str, str, Entry]]:
        """Yield split, search and entry of everything that was evaluated."""
        for split, searches in self.results.evaluation.items():
            for search, entry in searches.items():
                yield split, search, entry


def load_run(folder: str | Path, *, label: str | None = None) -> RunFolder:
    """Load the run in an output folder of `train.py`.

    Raises
    ------
    FileNotFoundError
        If the folder has no results.json.
    ValueError
        If that file is not as it should be.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; give the output folder of a run that was evaluated (train.py does so)."
        )
    (results,) = load_results([path])
    return RunFolder(Path(folder), results, label or results.name)


def sample_recordings(run: RunFolder, split: str | None, count: int) -> tuple[str, list[ManifestRow]]:
    """Take some recordings of a split, evenly spaced over their durations.

    Parameters
    ----------
    run
        The run.
    split
        One of its splits; None stands for the first one that was evaluated.
    count
        How many recordings to take.

    Returns
    -------
    tuple
        The split and its recordings.

    Raises
    ------
    FileNotFoundError
        If the recordings do not exist.
    ValueError
        If the count is below 1, or the run was evaluated on no split.
    """
    if count < 1:
        raise ValueError(f"there is nothing to measure on {count} utterances; give 1 or more.")
    splits = list(run.results.evaluation)
    if not splits:
        raise ValueError(
            f"{run.folder} was evaluated on no split; evaluate it (the same command with --test_only)."
        )
    split = split or splits[0]
    found = split_recordings(run.folder, split, hparams=run.results.hparams)
    return split, spread_over_durations(found, count)
