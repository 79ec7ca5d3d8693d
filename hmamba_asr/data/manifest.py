"""Manifests: the CSV files that list a split's utterances. This is the one place that reads and writes them.

A manifest is in SpeechBrain's format, with the columns ``ID``, ``duration`` (seconds), ``wav`` (a path that
may begin with ``$data_root``), ``spk_id`` (the speaker) and ``wrd`` (the transcript). ``hmamba-asr prepare``
makes manifests.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hmamba_asr.system.files import write_atomically

DATA_ROOT = "$data_root"
"""Stands for the corpus' folder in the column ``wav``."""

_COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
_READ = ("ID", "duration", "wav", "wrd")  # a manifest of other make needs no speakers


@dataclass(frozen=True)
class ManifestRow:
    """One utterance of a manifest.

    Attributes
    ----------
    id
        The utterance's ID.
    audio
        Its recording.
    duration
        Its length in seconds.
    text
        Its transcript.
    """

    id: str
    audio: Path
    duration: float
    text: str


def write_manifest(path: str | Path, rows: Iterable[tuple[ManifestRow, str]]) -> None:
    """Write a manifest, sorted by utterance ID. The file appears whole or not at all.

    Parameters
    ----------
    path
        The CSV file.
    rows
        The utterances, each with its speaker. ``audio`` is relative to the corpus' folder.
    """
    with write_atomically(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row, speaker in sorted(rows, key=lambda pair: pair[0].id):
            audio = f"{DATA_ROOT}/{row.audio.as_posix()}"
            writer.writerow((row.id, f"{row.duration:.6f}", audio, speaker, row.text))


def read_manifest(path: str | Path, *, data_folder: str | Path = "") -> dict[str, ManifestRow]:
    """Read a manifest.

    Parameters
    ----------
    path
        The CSV file.
    data_folder
        What ``$data_root`` in the recordings' paths stands for.

    Returns
    -------
    dict
        The rows by utterance ID, in the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column or a cell is missing, a duration is not a number, or an ID comes twice.
    """
    rows: dict[str, ManifestRow] = {}
    for number, row in enumerate(_read_rows(path, _READ), start=2):
        identifier = row["ID"]
        if None in map(row.get, _READ):
            raise ValueError(f"{path}, line {number} has too few cells; prepare the data again.")
        if identifier in rows:
            raise ValueError(f"{path}, line {number} repeats the ID {identifier}; prepare the data again.")
        try:
            duration = float(row["duration"])
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: the duration '{row['duration']}' is not a number; prepare the data "
                "again."
            ) from error
        audio = Path(row["wav"].replace(DATA_ROOT, str(data_folder)))
        rows[identifier] = ManifestRow(identifier, audio, duration, row["wrd"])
    return rows


def read_transcripts(path: str | Path) -> list[str]:
    """Read the transcripts of a manifest, of which only the column ``wrd`` is needed.

    Returns
    -------
    list
        The transcripts in the order of the file, with single spaces, without the empty ones.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the column ``wrd`` is missing.
    """
    return [text for row in _read_rows(path, ("wrd",)) if (text := " ".join((row["wrd"] or "").split()))]


def _read_rows(path: str | Path, columns: tuple[str, ...]) -> list[Mapping[str, str]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no manifest {path}; prepare the data first (hmamba-asr prepare).")
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]}; give a manifest that `hmamba-asr prepare` wrote."
            )
        return list(reader)
