"""Processing speed: time per stage, real-time factor, peak memory, and the hardware they were measured on."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
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
        audio_seconds: duration of the audio processed.
        stage_seconds: processing time per stage (read, features, encoder, ...), summed over processes.
        wall_seconds: elapsed time from the first to the last utterance, in the slowest process; of an evaluation that was
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


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hardware(device: str | torch.device) -> dict[str, Any]:
    """Describe the machine: CPU, usable cores, torch threads, GPU and its memory (None on CPU), platform."""
    device = torch.device(device)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_mib": gpu.total_memory // MIB if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "platform": platform.platform(),
    }


def machine_name(machine: Mapping[str, Any]) -> str:
    """What `hardware` describes, in a few words: the GPU, or the CPU and the threads."""
    threads = machine["torch_threads"]
    return machine["gpu"] or f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}"


def peak_memory_mib(device: str | torch.device) -> float:
    """Peak memory of this process so far, in MiB; `peak_memory_kind` says which memory.

    On CUDA the most that tensors took since the start or `torch.cuda.reset_peak_memory_stats`. On CPU the
    peak resident set, which holds libraries too and cannot be reset; NaN where the platform does not tell.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        import resource  # not on Windows
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024  # macOS counts bytes, Linux KiB


def peak_memory_kind(device: str | torch.device) -> str:
    """Which memory `peak_memory_mib` measures on this device."""
    return "CUDA max_memory_allocated" if torch.device(device).type == "cuda" else "peak resident set"


def added_memory_mib(run: Callable[[], object], device: str | torch.device) -> float | None:
    """The most memory that one call of `run` held at once, on top of what was held before it, in MiB.

    On CUDA of tensors. On CPU of resident pages, which Linux counts anew on demand; None where it does not. Call `run` once
    before, so that what is loaded at first use does not count.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)  # pages that were freed and kept would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        before = _resident_peak_mib()
    except (OSError, AttributeError, StopIteration):
        return None
    run()
    return _resident_peak_mib() - before


def _resident_peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def available_memory_mib(device: str | torch.device) -> float | None:
    """Memory that this process can still have without swapping, in MiB; None where the platform does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + kept) / MIB
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024
    except (OSError, StopIteration):
        return None
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        return min(free, (int(limit) - int(used)) / MIB)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def _common(values: Sequence[Any]) -> Any:
    """The value all share, or the distinct ones joined."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else " + ".join(sorted(map(str, distinct)))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores this process may use: its affinity, and the CPU quota of its container."""
    # macOS has no affinity call.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
