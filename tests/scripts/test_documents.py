"""Shell scripts and documents parse, name what exists, and their commands are accepted."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hmamba_asr import cli
from hmamba_asr.data import librispeech
from hmamba_asr.data.download import ARCHIVES
from hmamba_asr.data.subsets import SUBSETS

ROOT = Path(__file__).resolve().parents[2]


RECIPES = ROOT / "recipes" / "librispeech"


SHELL = sorted(
    [
        *ROOT.glob("scripts/*.sh"),
        *ROOT.glob("recipes/**/*.sh"),
        *ROOT.glob("recipes/**/*.slurm"),
        ROOT / ".ci/run",
    ]
)


DOCUMENTS = [ROOT / "README.md", RECIPES / "README.md", ROOT / "TRAINING_SUMMARY.md"]


PLACEHOLDER = re.compile(r"/X\.")


NAMED_FILE = re.compile(
    r"(?<![\w/.<])((?:hparams|scripts|recipes|tests|hmamba_asr)/[\w./-]*\w|train\.py|[A-Z_]{4,}\.md)(?![\w$<{*])"
)


def _named_files(text: str) -> set[str]:
    """Files and folders of the repository that ``text`` names: in commands, in prose and as links."""
    return {name for name in NAMED_FILE.findall(text) if not PLACEHOLDER.search(name)}


def _missing(text: str) -> set[str]:
    return {name for name in _named_files(text) if not (ROOT / name).exists()}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SHELL, ids=_name)
def test_shell_scripts_parse_stop_at_errors_and_are_explained(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert "set -euo pipefail" in lines or any(
        line.startswith('. "') and "setup.sh" in line for line in lines
    )


def test_a_full_disk_is_said_before_anything_is_installed(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    df = tmp_path / "bin" / "df"
    df.parent.mkdir()
    df.write_text(
        "#!/bin/sh\necho Filesystem 1048576-blocks Used Available Capacity Mounted on\necho /dev/x 9 9 3100 "
        "99% /\n"
    )
    df.chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/setup.sh"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{df.parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert re.fullmatch(
        rf"error: installing takes \d+ MB of disk in {re.escape(str(tmp_path))}, where 3100 MB are free; "
        r".*\n",
        done.stderr,
    )


@pytest.mark.parametrize("path", [*SHELL, *DOCUMENTS, *sorted(ROOT.glob("hparams/**/*.yaml"))], ids=_name)
def test_named_files_exist(path):
    # Kept results appear with the first measured row.
    assert _missing(path.read_text(encoding="utf-8")) <= {"recipes/librispeech/results"}


@pytest.mark.parametrize(
    "text", ["`hparams/gone.yaml`", "python scripts/gone.py", "(tests/ops/test_gone.py)", "see GONE_ABOUT.md"]
)
def test_a_file_that_is_not_there_is_seen(text):
    assert _missing(text)


def test_every_yaml_and_recipe_is_in_the_documents():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in ROOT.glob("hparams/*.yaml") if _name(path) not in readme] == []
    recipes = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert [
        path.name
        for path in RECIPES.glob("*")
        if path.suffix in (".sh", ".slurm") and path.name not in recipes
    ] == []


def test_commands_in_the_documents_are_accepted(monkeypatch):
    """Each `hmamba-asr ...` line of a code block parses, with splits that can be downloaded."""
    called = []
    monkeypatch.setattr(cli.download, "download", lambda **options: called.append(options["splits"]) or {})
    monkeypatch.setattr(
        librispeech, "prepare_manifests", lambda **options: called.append(options["splits"]) or {}
    )
    monkeypatch.setattr(cli.demo, "run", lambda args: called.append([]) or 0)
    for name in ("transcribe", "tune", "compare", "boundaries", "efficiency", "report"):
        monkeypatch.setattr(getattr(cli, name), "run", lambda args: 0)
    for path in DOCUMENTS:
        for block in re.findall(
            r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        ):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("hmamba-asr "):
                    assert cli.main(line.split("#")[0].split()[1:]) == 0, line
                    if line.startswith("hmamba-asr download "):
                        assert set(called[-1]) <= {*ARCHIVES, *SUBSETS, "an4"}, line
    assert len(called) >= 2


def test_the_readmes_encoder_example_runs():
    """The README shows how to add an encoder: the example has the contract's shapes and lengths."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [
        b
        for b in re.findall(r"^```python\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
        if "EncoderOutput" in b
    ]

    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    (name,) = [node.name for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]
    encoder = scope[name](num_layers=2, d_model=8, dropout=0.0).eval()
    x, lengths = torch.randn(2, 7, 8), torch.tensor([7, 4])
    together = encoder(x, lengths)
    assert together.states.shape == (2, 7, 8) and together.lengths.tolist() == [7, 4]
    alone = encoder(x[1:, :4], lengths[1:])
    torch.testing.assert_close(together.states[1, :4], alone.states[0], rtol=0, atol=1e-5)
    assert not together.states[1, 4:].any()


def _requirements() -> list[str]:
    """Direct dependencies of pyproject.toml, those of the `cuda` extra apart: it is built for the machine's
    own CUDA."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = dict(re.findall(r"^(\w+) = (\[.*?\])", text, flags=re.DOTALL | re.MULTILINE))
    wanted = [
        item for name in ("dependencies", "ngram", "demo", "dev") for item in ast.literal_eval(lists[name])
    ]
    return [re.split(r"[<>=!~\[ ;]", item)[0] for item in wanted]


def test_every_direct_dependency_is_pinned():
    text = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-") for line in lines if re.match(r"[\w.-]+==\d", line)
    }
    assert len(_requirements()) >= 10
    assert [name for name in _requirements() if name.lower().replace("_", "-") not in pinned] == []
    assert [line for line in lines if line and "==" not in line] == []
