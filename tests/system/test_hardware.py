"""What the machine is, and how many of its cores this process may use."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from hmamba_asr.system.hardware import default_device, hardware, machine_name, usable_cores


def test_hardware_names_the_machine_but_not_the_host():
    found = hardware("cpu")
    assert found["device"] == "cpu" and found["cpu"] and found["gpu"] is None
    assert found["cores"] >= 1 and found["torch_threads"] == torch.get_num_threads()
    assert set(found) >= {"gpu_memory_mib", "platform", "cuda"}
    assert platform.node() not in json.dumps(found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_named():
    found = hardware("cuda")
    assert found["gpu"] == torch.cuda.get_device_name() == machine_name(found)
    assert found["gpu_memory_mib"] > 0 and default_device() == "cuda"


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ({"gpu": "H200", "cpu": "Xeon", "torch_threads": 8}, "H200"),
        ({"gpu": None, "cpu": "Xeon", "torch_threads": 8}, "Xeon, 8 threads"),
        ({"gpu": None, "cpu": "Xeon", "torch_threads": 1}, "Xeon, 1 thread"),
    ],
)
def test_a_machine_is_named_in_a_few_words(machine, name):
    assert machine_name(machine) == name


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("250000 100000", 3),  # two and a half cores are used by three threads
        ("50000 100000", 1),
        ("3200000 100000", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_a_container_with_a_quota_has_fewer_cores(monkeypatch, quota, cores):
    def read(path):
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError
        return quota

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", read)
    assert usable_cores() == cores
