"""Where the chunks of utterances begin, and the file chunks.jsonl that records it for a split.

A chunk that begins at frame t begins half-way between the centres of frames t - 1 and t.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hmamba_asr.system.files import write_atomically

Seconds = float


@dataclass(frozen=True)
class Segmentation:
    """Where the chunks of one utterance begin.

    Attributes
    ----------
    id
        The utterance.
    frames
        Its number of encoder frames.
    first, step
        Seconds: frame t begins at `first + step * t`.
    starts
        For each chunking stage, outermost first, the frames at which its chunks begin. The first one is 0.
    """

    id: str
    frames: int
    first: Seconds
    step: Seconds
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Segmentation:
        """Make a segmentation from its JSON object."""
        return cls(**{**record, "starts": tuple(tuple(starts) for starts in record["starts"])})

    def seconds(self, frames: Any) -> np.ndarray:
        """Return when frames begin."""
        return self.first + self.step * np.asarray(frames, dtype=float)

    def boundaries(self, stage: int = 0) -> np.ndarray:
        """Return the starts of a stage's chunks in seconds, without the first one."""
        return self.seconds(self.starts[stage][1:])

    def durations(self, stage: int = 0) -> np.ndarray:
        """Return the durations of a stage's chunks in seconds."""
        return self.step * np.diff([*self.starts[stage], self.frames])


def write_segmentations(path: str | Path, items: Iterable[Segmentation]) -> None:
    """Write each utterance's segmentation as a line with a JSON object, sorted by ID."""
    with write_atomically(path) as stream:
        for item in sorted(items, key=lambda item: item.id):
            stream.write(json.dumps(vars(item)) + "\n")


def read_segmentations(path: str | Path) -> list[Segmentation]:
    """Read a file of `write_segmentations`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is not such an object.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no {path}; only runs that chunk have one. Evaluate an older run again (the same "
            "command with --test_only)."
        )
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(Segmentation.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number} does not describe an utterance's chunks ({error})."
            ) from error
    return found


def check_stage(items: Sequence[Segmentation], stage: int) -> None:
    """Refuse a stage that these segmentations do not have.

    Raises
    ------
    ValueError
        If there is no such stage.
    """
    if not 0 <= stage < len(items[0].starts):
        raise ValueError(
            f"there is no chunking stage {stage}; these chunks have {len(items[0].starts)}, counted from 0."
        )
