"""Processing time: seconds of each phase, real-time factor, and the sum over processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from hmamba_asr.evaluation.results import EfficiencyRecord

Seconds = float


class PhaseTimer:
    """Add up wall-clock seconds of named phases: `with timer.phase("encoder"): ...`.

    A CUDA device is synchronised when a phase begins and when it ends, so that each phase pays for its own
    kernels. Run one batch first to warm up, then call `reset`.

    Parameters
    ----------
    device
        Where the phases compute.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, Seconds] = {}
        self._running: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to phase `name`, also when the block raises.

        Raises
        ------
        RuntimeError
            If another phase is being timed: its time would count twice.
        """
        if self._running is not None:
            raise RuntimeError(f"phase '{name}' begins inside '{self._running}'; its time would count twice.")
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
        """Set all times back to zero, after warming up."""
        self.seconds = {}

    @property
    def total(self) -> Seconds:
        """Seconds of all phases together."""
        return sum(self.seconds.values())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Efficiency:
    """How fast a split was decoded.

    Attributes
    ----------
    audio_seconds
        Duration of the audio.
    phase_seconds
        Processing time of each phase (read, features, encoder, decoding), summed over processes.
    wall_seconds
        Elapsed time from the first to the last utterance in the slowest process. Of an interrupted evaluation
        it is the sum of the pieces, without the time between them.
    batch
        Utterances in a batch, or a description such as "at most 200 s of audio and 16 utterances".
    hardware
        What `system.hardware.hardware` returned.
    processes
        Number of processes (ranks) that shared the work.
    """

    audio_seconds: Seconds
    phase_seconds: Mapping[str, Seconds]
    wall_seconds: Seconds
    batch: int | str
    hardware: Mapping[str, Any]
    processes: int = 1

    @property
    def processing_seconds(self) -> Seconds:
        """Time of all phases, summed over processes."""
        return sum(self.phase_seconds.values())

    @property
    def rtf(self) -> float:
        """Real-time factor of one process: processing seconds for each second of audio. Lower is faster.

        Both sums run over all processes, so that the figure of 4 GPUs compares with the figure of one.

        Raises
        ------
        ValueError
            If no audio was processed.
        """
        if self.audio_seconds <= 0:
            raise ValueError(
                "no real-time factor: no audio was processed; check that the split has utterances."
            )
        return self.processing_seconds / self.audio_seconds

    def record(self) -> EfficiencyRecord:
        """Return the record for results.json, with the real-time factor."""
        fields = {
            "rtf": self.rtf,
            "processing_seconds": self.processing_seconds,
            "audio_seconds": self.audio_seconds,
            "stage_seconds": dict(self.phase_seconds),
            "wall_seconds": self.wall_seconds,
            "batch": self.batch,
            "hardware": dict(self.hardware),
            "processes": self.processes,
        }
        return msgspec.convert(fields, EfficiencyRecord)


def merge(parts: Sequence[Efficiency]) -> Efficiency:
    """Join the measurements of several processes.

    Audio and phase times are summed. The wall-clock time is that of the slowest process. Batch descriptions
    and hardware that differ between processes are all named, joined by " + ".

    Raises
    ------
    ValueError
        If there are no parts.
    """
    if not parts:
        raise ValueError("nothing to merge: no process measured its speed.")
    phases = dict.fromkeys(name for part in parts for name in part.phase_seconds)
    keys = dict.fromkeys(key for part in parts for key in part.hardware)
    return Efficiency(
        audio_seconds=sum(part.audio_seconds for part in parts),
        phase_seconds={name: sum(part.phase_seconds.get(name, 0.0) for part in parts) for name in phases},
        wall_seconds=max(part.wall_seconds for part in parts),
        batch=_common([part.batch for part in parts]),
        hardware={key: _common([part.hardware.get(key) for part in parts]) for key in keys},
        processes=sum(part.processes for part in parts),
    )


def _common(values: Sequence[Any]) -> Any:
    """Return the value that all share, or the distinct ones joined."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else " + ".join(sorted(map(str, distinct)))
