"""The recordings of a run's test utterances, where they still lie, and short clips of them."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import yaml


@dataclass(frozen=True)
class Recording:
    """An utterance's audio file, duration and transcript."""

    id: str
    path: Path
    seconds: float
    text: str


@cache
def _manifest(path: Path) -> dict[str, tuple[str, float, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["ID"]: (row["wav"], float(row["duration"]), row["wrd"]) for row in csv.DictReader(stream)}


def _data_root(hparams: str) -> str | None:
    return next((node.value for key, node in yaml.compose(hparams).value if key.value == "data_folder"), None)


def split_recordings(folder: Path, split: str, *, hparams: str) -> list[Recording]:
    """The recordings of a split of the run in `folder` with the resolved YAML `hparams`, sorted by ID.

    Raises:
        FileNotFoundError: the run has no manifest of the split, or the recordings are not where it says.
    """
    manifest = folder / "manifests" / f"{split}.csv"
    if not manifest.is_file():
        known = ", ".join(sorted(path.stem for path in manifest.parent.glob("*.csv"))) or "none"
        raise FileNotFoundError(f"there is no {manifest}; give one of the run's splits: {known}.")
    root = _data_root(hparams) or ""
    rows = sorted(_manifest(manifest).items())
    found = [
        Recording(key, Path(wav.replace("$data_root", root)), seconds, text)
        for key, (wav, seconds, text) in rows
    ]
    gone = [item for item in found if not item.path.is_file()]
    if gone or not found:
        raise FileNotFoundError(
            f"{len(gone)} of the {len(found)} recordings of {split} are not where {manifest} says "
            f"({gone[0].path if gone else root}); bring the corpus back to its place."
        )
    return found


def spread_over_durations(found: Sequence[Recording], count: int) -> list[Recording]:
    """As many of the recordings (all, if there are fewer), evenly spaced in the order of their durations, the
    shortest and the longest among them."""
    ordered = sorted(found, key=lambda item: (item.seconds, item.id))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def find_recording(folder: Path, split: str, utterance: str, *, hparams: str) -> Path | None:
    """The audio file of a test utterance of the run in `folder` with the resolved YAML `hparams`; None where
    it is gone."""
    manifest = folder / "manifests" / f"{split}.csv"
    if not manifest.is_file():
        return None
    file, *_ = _manifest(manifest).get(utterance, (None,))
    root = _data_root(hparams)
    if file is None or root is None:
        return None
    path = Path(file.replace("$data_root", root))
    return path if path.is_file() else None


def read_samples(path: Path) -> tuple[np.ndarray, int]:
    """Mono samples (S,) and their rate in Hz.

    Raises:
        ValueError: the file is no recording.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise ValueError(f"{path} cannot be read as audio ({error}).") from error
    return samples[:, 0], rate


def as_data_uri(samples: np.ndarray, rate: int) -> str:
    """The samples as MP3, which every browser plays, in a data: address."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="MP3")
    return f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
