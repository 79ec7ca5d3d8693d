"""Processing speed: time per stage, real-time factor, peak memory, and the hardware they were measured on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

Seconds = float
MIB = 1024**2  # bytes


class StageTimer:
    """Accumulates wall-clock seconds per named stage: `with timer.stage("encoder"): ...`.

    A CUDA device is synchronised when a stage begins and when it ends, so that each stage pays for its own
    kernels. Measure warm: run one batch first, then `reset()`. Stages must not nest: time would count twice.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, Seconds] = {}
        self._running: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to stage `name`, also when the block raises.

        Raises:
            RuntimeError: another stage is being timed.
        """
        if self._running is not None:
            raise RuntimeError(f"Stage '{name}' begins inside '{self._running}': its time would count twice.")
        self._synchronize()
        self._running = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self._running = None
            self._synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def reset(self) -> None:
        """Forget the times measured so far (after warming up)."""
        self.seconds = {}

    @property
    def total(self) -> Seconds:
        """Seconds of all stages together."""
        return sum(self.seconds.values())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Efficiency:
    """How fast a split was decoded.

    Attributes:
        audio_seconds: duration of the audio processed. stage_seconds: processing time per stage (read,
        features, encoder, ...), summed over processes. wall_seconds: elapsed time from the first to the last
        utterance, in the slowest process; of an evaluation that was
            interrupted the sum of its pieces, without what lies between them.
        batch: utterances per batch, or a description such as "dynamic, at most 200 s".
        hardware: what `hardware` returned.
        processes: number of processes (ranks) the work was spread over.
    """

    audio_seconds: Seconds
    stage_seconds: dict[str, Seconds]
    wall_seconds: Seconds
    batch: int | str
    hardware: dict[str, Any]
    processes: int = 1

    @property
    def processing_seconds(self) -> Seconds:
        """Time of all stages, of all processes."""
        return sum(self.stage_seconds.values())

    @property
    def rtf(self) -> float:
        """Real-time factor of one process: processing seconds per audio second. Lower is faster.

        Both add over processes, so that the figure of 4 GPUs compares with that of one.

        Raises:
            ValueError: no audio was processed.
        """
        if self.audio_seconds <= 0:
            raise ValueError("No real-time factor: no audio was processed.")
        return self.processing_seconds / self.audio_seconds

    def to_dict(self) -> dict[str, Any]:
        """All fields and the RTF, as results.json holds them."""
        return {"rtf": self.rtf, "processing_seconds": self.processing_seconds, **asdict(self)}


def merge(parts: Sequence[Efficiency]) -> Efficiency:
    """One measurement of several: audio and stage times add, the wall-clock time is the slowest process's.

    Batch descriptions and hardware that differ between processes are all named, joined by " + ".

    Raises:
        ValueError: `parts` is empty.
    """
    if not parts:
        raise ValueError("Nothing to merge: no process measured its speed.")
    stages = dict.fromkeys(name for part in parts for name in part.stage_seconds)
    keys = dict.fromkeys(key for part in parts for key in part.hardware)
    return Efficiency(
        audio_seconds=sum(part.audio_seconds for part in parts),
        stage_seconds={name: sum(part.stage_seconds.get(name, 0.0) for part in parts) for name in stages},
        wall_seconds=max(part.wall_seconds for part in parts),
        batch=_common([part.batch for part in parts]),
        hardware={key: _common([part.hardware.get(key) for part in parts]) for key in keys},
        processes=sum(part.processes for part in parts),
    )


def _common(values: Sequence[Any]) -> Any:
    """The value all share, or the distinct ones joined."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else " + ".join(sorted(map(str, distinct)))
