"""The memory of this process and its GPU: peaks, what a call adds, what is left, how pages are kept."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 1024**2  # bytes


def keep_freed_memory() -> None:
    """Keep the pages of freed tensors in the process, on a CPU under glibc.

    By default glibc maps every large tensor anew, and the kernel clears its pages at first touch. That costs
    a fifth of the training time of a small model.
    """
    m_trim_threshold, m_mmap_threshold, unlimited = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc: nothing to do
        return
    mallopt(m_mmap_threshold, unlimited)
    mallopt(m_trim_threshold, unlimited)


def peak_memory_mib(device: str | torch.device) -> float:
    """Return the peak memory of this process so far, in MiB. `peak_memory_kind` says which memory.

    On CUDA it is the most that tensors took since the start or `torch.cuda.reset_peak_memory_stats`. On a CPU
    it is the peak resident set, which holds libraries too and cannot be reset. NaN where the platform does
    not tell.
    """
    import torch

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
    """Say which memory `peak_memory_mib` measures on this device."""
    import torch

    return "CUDA max_memory_allocated" if torch.device(device).type == "cuda" else "peak resident set"


def added_memory_mib(run: Callable[[], object], device: str | torch.device) -> float | None:
    """Measure the most memory that one call of ``run`` holds at once, on top of what was held before, in MiB.

    On CUDA it is the memory of tensors. On a CPU it is that of resident pages, whose peak Linux counts anew
    on demand. None where the platform does not. Call ``run`` once before, so that what is loaded at first use
    does not count.
    """
    import torch

    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - held) / MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)  # pages that were freed and kept would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        before = _resident_peak_mib()
    except (OSError, AttributeError, StopIteration):
        return None
    run()
    return _resident_peak_mib() - before


def available_memory_mib(device: str | torch.device) -> float | None:
    """Return the memory that this process can still get without swapping, in MiB.

    None where the platform does not tell.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (unused + kept) / MIB
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


def _resident_peak_mib() -> float:
    """Return the kernel's high-water mark of the resident set."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
