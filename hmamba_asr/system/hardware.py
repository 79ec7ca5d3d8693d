"""The machine: its processor, the cores that this process may use, its GPU."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def default_device() -> str:
    """Return "cuda" if there is a GPU, otherwise "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def hardware(device: str | torch.device) -> dict[str, Any]:
    """Describe the machine that a device belongs to.

    Parameters
    ----------
    device
        The device that computes.

    Returns
    -------
    dict
        What JSON can hold: ``device`` (its type), ``cpu`` (model), ``cores`` (usable), ``torch_threads``,
        ``gpu`` (name), ``gpu_memory_mib`` and ``cuda`` (version; all three None on a CPU), and ``platform``.
    """
    import torch

    device = torch.device(device)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_mib": gpu.total_memory // 1024**2 if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "platform": platform.platform(),
    }


def machine_name(machine: Mapping[str, Any]) -> str:
    """Name what `hardware` describes in a few words: the GPU, or the CPU and the threads."""
    threads = machine["torch_threads"]
    return machine["gpu"] or f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores that this process may use.

    Both its affinity and the CPU quota of its container (cgroup v2) set a limit.
    """
    # macOS has no affinity call.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
