"""Sentences for a language model, read from disk as they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch.utils.data import Dataset

from hmamba_asr.data.manifest import read_transcripts

_SCAN_BYTES = 1 << 24


class TextDataset(Dataset):
    """Sentences of text files and manifests. An item has ``id`` and ``tokens`` (int64 (U,)).

    Only the place of each line of a text file is kept in memory, 12 bytes a line. Empty lines are left out.
    So is the unknown piece, because it shares its id with the padding of the language model.

    Parameters
    ----------
    files
        Text files with a sentence a line, and manifests (``.csv``, column ``wrd``).
    tokenizer
        Turns sentences into tokens.
    max_tokens
        Longer sentences are cut to this number of tokens.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file is compressed, is no manifest or holds no sentence, or no file is given.
    """

    def __init__(
        self, files: Sequence[str | Path], *, tokenizer: SentencePieceProcessor, max_tokens: int
    ) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        if not files:
            raise ValueError(
                "there is no text to train or test a language model on; name files with a sentence a line, "
                "or manifests."
            )
        self._sources = [
            _Manifest(path) if path.suffix == ".csv" else _TextFile(path) for path in map(Path, files)
        ]
        self._ends = np.cumsum([len(source) for source in self._sources])
        self._unknown = tokenizer.unk_id()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sentence(self, index: int) -> str:
        """Return one sentence, with single spaces."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[place].read(index - int(self._ends[place - 1]) if place else index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = [token for token in self.tokenizer.encode(self.sentence(index)) if token != self._unknown]
        return {
            "id": f"sentence-{index}",
            "tokens": torch.tensor(tokens[: self.max_tokens], dtype=torch.long),
        }


class _TextFile:
    """A file with a sentence a line, of which lines are read as they are asked for."""

    def __init__(self, path: Path) -> None:
        _require(path)
        if path.suffix in (".gz", ".xz", ".zip", ".bz2"):
            raise ValueError(
                f"{path} is compressed, and lines are read from the middle of a file; unpack it first."
            )
        self.path = path
        self._descriptor: int | None = None
        starts, ends = _lines(path)
        filled = ends > starts
        self.starts, self.sizes = starts[filled], (ends - starts)[filled].astype(np.int32)
        _require_sentences(path, len(self))

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, index: int) -> str:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        # Not seek and read: workers that were forked share the position in the file.
        line = os.pread(self._descriptor, int(self.sizes[index]), int(self.starts[index]))
        return " ".join(line.decode("utf-8", errors="replace").split())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}


class _Manifest:
    """The transcripts of a manifest, in memory."""

    def __init__(self, path: Path) -> None:
        _require(path)
        self.sentences = read_transcripts(path)
        _require_sentences(path, len(self))

    def __len__(self) -> int:
        return len(self.sentences)

    def read(self, index: int) -> str:
        return self.sentences[index]


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return where each line of the file starts and ends, in bytes, without the line break."""
    found, position, last = [], 0, b""
    with path.open("rb") as file:
        while block := file.read(_SCAN_BYTES):
            found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position)
            position, last = position + len(block), block[-1:]
    unended = [position] if last not in (b"", b"\n") else []
    ends = np.concatenate([*found, np.array(unended, dtype=np.int64)]).astype(np.int64)
    return np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1] + 1]), ends


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no text {path}; give a file with a sentence a line, or a manifest."
        )


def _require_sentences(path: Path, count: int) -> None:
    if not count:
        raise ValueError(f"{path} holds no sentence; give a file with a sentence a line, or a manifest.")
