"""The recordings of a run's test utterances, where they still lie, and short clips of them."""

from __future__ import annotations

import base64
import csv
import io
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import yaml


@cache
def _manifest(path: Path) -> dict[str, str]:
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["ID"]: row["wav"] for row in csv.DictReader(stream)}


def find_recording(folder: Path, split: str, utterance: str, *, hparams: str) -> Path | None:
    """The audio file of a test utterance of the run in `folder` with the resolved YAML `hparams`; None where it is gone."""
    manifest = folder / "manifests" / f"{split}.csv"
    if not manifest.is_file():
        return None
    file = _manifest(manifest).get(utterance)
    roots = [node.value for key, node in yaml.compose(hparams).value if key.value == "data_folder"]
    if file is None or not roots:
        return None
    path = Path(file.replace("$data_root", roots[0]))
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
