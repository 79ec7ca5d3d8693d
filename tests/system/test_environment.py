"""What a figure depends on: versions, command, commit. Nothing names the host or somebody's folders."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import numpy as np

from hmamba_asr.system.environment import _command_line, _git_state, collect_environment
from hmamba_asr.system.hardware import hardware


def test_environment_names_versions_but_not_the_host():
    environment = collect_environment("cpu")
    assert environment["python"] == platform.python_version()
    assert {"torch", "speechbrain", "numpy"} <= environment["packages"].keys()
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["hardware"] == hardware("cpu")
    assert platform.node() not in json.dumps(environment | {"command": ""})


def test_command_is_what_the_user_typed(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "hparams/x.yaml", "--data_folder", "my data"])
    assert _command_line() == "python train.py hparams/x.yaml --data_folder 'my data'"
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert _command_line().startswith("torchrun --nproc-per-node 4 train.py hparams/x.yaml")
    assert collect_environment("cpu")["world_size"] == 4
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert _command_line().startswith("torchrun --nnodes 2 --nproc-per-node 4 train.py")
    # A console script stands in argv with its whole path, which is nobody's business.
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setattr(sys, "argv", ["/home/somebody/.venv/bin/hmamba-asr", "report"])
    assert _command_line() == "hmamba-asr report"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sub" / "train.py")])
    assert _command_line() == "python sub/train.py"


def test_git_state(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set when a git hook runs the tests
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package, installed = tmp_path / "package", tmp_path / ".venv" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "module.py").write_text("a = 1\n")
    assert _git_state(package) is None  # outside git
    git("init", "--quiet")
    git("add", "package")
    assert _git_state(package) is None  # no commit yet
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")
    assert _git_state(package) == {"commit": commit, "dirty": False}
    assert _git_state(installed) is None  # inside the checkout, but not of it
    (package / "module.py").write_text("a = 2\n")
    assert _git_state(package) == {"commit": commit, "dirty": True}
