"""Large tensors' memory."""

import subprocess
import sys

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
