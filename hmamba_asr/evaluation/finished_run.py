"""A finished run, read from its output folder: results, transcripts and recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from hmamba_asr.config.hparams import top_level_nodes
from hmamba_asr.data.manifest import ManifestRow, read_manifest
from hmamba_asr.evaluation.results import Entry, Results, load_results
from hmamba_asr.evaluation.wer import align, read_trn
from hmamba_asr.evaluation.word_alignment import AlignedUtterance
from hmamba_asr.system.run_layout import RunLayout


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes
    ----------
    folder
        The output folder of train.py.
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
            self._aligned[split, search] = align(*read_trn(RunLayout(self.folder).transcripts(split, search)))
        return self._aligned[split, search]

    def scored(self) -> Iterator[tuple[str, str, Entry]]:
        """Yield split, search and entry of everything that was evaluated."""
        for split, searches in self.results.evaluation.items():
            for search, entry in searches.items():
                yield split, search, entry


def load_run(folder: str | Path, *, label: str | None = None) -> FinishedRun:
    """Load the run in an output folder of `train.py`.

    Raises
    ------
    FileNotFoundError
        If the folder has no results.json.
    ValueError
        If that file is not as it should be.
    """
    path = RunLayout(folder).results
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; give the output folder of a run that was evaluated (train.py does so)."
        )
    (results,) = load_results([path])
    return FinishedRun(Path(folder), results, label or results.name)


def sample_recordings(run: FinishedRun, split: str | None, count: int) -> tuple[str, list[ManifestRow]]:
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


def split_recordings(folder: Path, split: str, *, hparams: str) -> list[ManifestRow]:
    """List the recordings of a split, sorted by ID.

    Parameters
    ----------
    folder
        The run's output folder.
    split
        One of its splits.
    hparams
        Its resolved YAML, whose ``data_folder`` holds the recordings.

    Raises
    ------
    FileNotFoundError
        If the run has no manifest of the split, or a recording does not exist.
    """
    manifest = RunLayout(folder).manifest(split)
    if not manifest.is_file():
        known = ", ".join(sorted(path.stem for path in manifest.parent.glob("*.csv"))) or "none"
        raise FileNotFoundError(f"there is no {manifest}; give one of the run's splits: {known}.")
    data_folder = _data_folder(hparams) or ""
    found = sorted(_rows(manifest, data_folder).values(), key=lambda row: row.id)
    gone = [row for row in found if not row.audio.is_file()]
    if gone or not found:
        raise FileNotFoundError(
            f"{len(gone)} of the {len(found)} recordings of {split} are not where {manifest} says "
            f"({gone[0].audio if gone else data_folder}); bring the corpus back to its place."
        )
    return found


def find_recording(folder: Path, split: str, utterance: str, *, hparams: str) -> Path | None:
    """Return the audio file of one utterance, or None if it is not there. For the rest see
    `split_recordings`."""
    manifest, data_folder = RunLayout(folder).manifest(split), _data_folder(hparams)
    if not manifest.is_file() or data_folder is None:
        return None
    row = _rows(manifest, data_folder).get(utterance)
    return row.audio if row is not None and row.audio.is_file() else None


def spread_over_durations(found: Sequence[ManifestRow], count: int) -> list[ManifestRow]:
    """Return ``count`` recordings, evenly spaced in the order of their durations; all, if there are fewer.

    The shortest and the longest are among them.
    """
    ordered = sorted(found, key=lambda row: (row.duration, row.id))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


@cache
def _rows(manifest: Path, data_folder: str) -> dict[str, ManifestRow]:
    return read_manifest(manifest, data_folder=data_folder)


def _data_folder(hparams: str) -> str | None:
    node = top_level_nodes(hparams).get("data_folder")
    return None if node is None else str(node.value)
