"""The kernels compile for the GPUs they are meant for. The interpreter accepts much that the compiler does
not."""

import re
import subprocess

import pytest

pytest.importorskip("triton.backends.nvidia")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--capability", "80"],
        ["--capability", "86", "--states", "8", "--dtype", "fp16", "--kernels", "scan", "backward"],
        [
            "--capability",
            "90",
            "--states",
            "32",
            "--dtype",
            "fp32",
            "--kernels",
            "scan",
            "backward",
            "tile",
            "conv_silu_backward",
        ],
    ],
    ids=" ".join,
)
def test_every_kernel_compiles_and_stays_in_its_registers(options, repo, python):
    done = subprocess.run(
        [python, "scripts/benchmarks/inspect_kernels.py", *options], cwd=repo, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    spilled = {
        line.split("  ")[0]: int(re.search(r"(\d+) bytes spilled", line).group(1))
        for line in done.stdout.splitlines()[1:]
    }
    assert len(spilled) >= 2
    assert all(count <= 256 for count in spilled.values()), spilled


def test_a_kernel_that_is_not_there_is_named(repo, python):
    done = subprocess.run(
        [python, "scripts/benchmarks/inspect_kernels.py", "--kernels", "scam"],
        cwd=repo,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "there is no kernel scam; there are: scan, " in done.stderr
