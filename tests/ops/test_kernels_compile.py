"""The kernels compile for the GPUs they are meant for. The interpreter accepts much that the compiler does
not."""

import ast
import importlib
import re
import subprocess

import pytest

pytest.importorskip("triton.backends.nvidia")


@pytest.fixture
def inspect_kernels(monkeypatch, repo):
    """Import the script after the kernels: it unsets TRITON_INTERPRET, which they read when imported."""
    for module, _ in kernels_of(repo):
        importlib.import_module(module)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # restores the variable afterwards
    return importlib.import_module("inspect_kernels")


def kernels_of(repo):
    """Return module and name of every function that is decorated with ``launch.kernel``."""
    return [
        (".".join(file.relative_to(repo).with_suffix("").parts), node.name)
        for file in sorted((repo / "hmamba_asr" / "ops").rglob("*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator) in ("kernel", "launch.kernel") for decorator in node.decorator_list)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--capability", "80", "--also", "86", "90"],
        ["--capability", "90", "--states", "32", "--dtype", "fp32", "--kernels", "backward", "tile"],
    ],
    ids=" ".join,
)
def test_every_kernel_compiles_and_stays_in_its_registers(options, repo, python):
    done = subprocess.run(
        [python, "scripts/benchmarks/inspect_kernels.py", "--brief", *options],
        cwd=repo,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    spilled = {
        line.split("  ")[0]: [int(count) for count in re.findall(r"(\d+) bytes spilled", line)]
        for line in done.stdout.splitlines()[1:]
    }
    assert len(spilled) >= 2
    assert all(len(counts) == 1 + 2 * ("--also" in options) for counts in spilled.values())
    assert all(max(counts) <= 256 for counts in spilled.values()), spilled


def test_the_catalogue_has_every_kernel(inspect_kernels, repo):
    """What is not in the catalogue is compiled by no test."""
    found = [getattr(importlib.import_module(module), name) for module, name in kernels_of(repo)]
    assert len(found) > 10
    in_catalogue = {id(function) for function, _, _ in inspect_kernels.variants(16, False, True).values()}
    assert in_catalogue == {id(function) for function in found}


def test_a_kernel_that_is_not_there_is_named(inspect_kernels, capsys):
    with pytest.raises(SystemExit) as stopped:
        inspect_kernels.main(["--kernels", "scam"])
    assert stopped.value.code == 2
    assert "there is no kernel scam; there are: scan, " in capsys.readouterr().err
