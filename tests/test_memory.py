"""Large tensors' memory."""

import subprocess
import sys

FAULTS = """
import resource, torch
from hmamba_asr.memory import keep_freed_memory
keep_freed_memory()
def touch():
    torch.ones(64 << 18)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = touch()
print(touch() - first, 64 << 20 >> 12)
"""


def test_pages_of_freed_tensors_are_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    faults, pages = map(int, done.stdout.split())
    assert faults < pages / 10
