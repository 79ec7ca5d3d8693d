"""What memory is measured, and that the pages of large tensors are used again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hmamba_asr.system.memory import added_memory_mib, available_memory_mib, peak_memory_kind, peak_memory_mib

FAULTS = """
import resource, torch
from hmamba_asr.system.memory import keep_freed_memory
keep_freed_memory()
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 18)  # 64 MB, which glibc would always map anew
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_of_freed_tensors_are_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    faults, pages = [int(line) for line in done.stdout.split()], 64 << 20 >> 12
    # The first ones may find no hole that they fit in, where something small has taken a bit of it.
    assert faults[0] > pages / 2 and sum(faults[-20:]) < pages


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is Linux's")
def test_peak_memory_on_cpu_is_the_kernels_high_water_mark():
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    assert peak_memory_mib("cpu") == pytest.approx(kib / 1024, rel=0.01)
    assert peak_memory_kind("cpu") == "peak resident set"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts the peak anew")
def test_added_memory_is_that_of_the_call():
    """Also of a smaller call after a larger one, and without what was held before."""
    held = torch.ones(2**22)
    for mib in (64, 16):
        run = lambda mib=mib: torch.ones(mib * 2**18) * held[0]  # noqa: E731
        run()  # starts a thread for each core, whose stacks are memory too
        found = added_memory_mib(run, "cpu")
        if found is None:
            pytest.skip("this kernel does not let the peak be reset")
        assert found == pytest.approx(2 * mib, abs=4)  # the ones and their product
    available = available_memory_mib("cpu")
    assert 0 < available < 2**24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_cuda_is_that_of_tensors():
    held = torch.ones(2**20, device="cuda")
    assert peak_memory_mib("cuda") >= held.numel() * 4 / 2**20
    assert added_memory_mib(lambda: torch.ones(2**22, device="cuda"), "cuda") == pytest.approx(16)
    assert 0 < available_memory_mib("cuda") <= torch.cuda.get_device_properties("cuda").total_memory / 2**20
