"""The recordings of a run's splits, as the run's manifests list them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from hmamba_asr.config.hparams import top_level_nodes
from hmamba_asr.data.manifest import ManifestRow, read_manifest


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
    manifest = folder / "manifests" / f"{split}.csv"
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
    manifest, data_folder = folder / "manifests" / f"{split}.csv", _data_folder(hparams)
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
