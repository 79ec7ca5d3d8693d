"""What a figure depends on besides the YAML: versions, commit, hardware, command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmamba_asr.system.hardware import hardware

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "hmamba-asr",
    "torch",
    "torchaudio",
    "speechbrain",
    "hyperpyyaml",
    "numpy",
    "sentencepiece",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
)


def collect_environment(device: str | torch.device) -> dict[str, Any]:
    """Collect what a figure depends on besides the YAML. The host's name is not part of it.

    Parameters
    ----------
    device
        The device that computes.

    Returns
    -------
    dict
        What JSON can hold: ``python`` and ``packages`` (versions), ``git`` (commit, and whether files were
        changed; None outside a checkout), ``hardware`` (see `hardware`), ``command`` and ``world_size``
        (processes under torchrun).
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # optional, or run from the source folder
    return {
        "python": platform.python_version(),
        "packages": versions,
        "git": _git_state(Path(__file__).resolve().parent),
        "hardware": hardware(device),
        "command": _command_line(),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout that tracks ``folder``, and whether files were changed.

    None outside a checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        # An installed package may lie in another checkout (in its .venv), whose commit says nothing about it.
        git("ls-files", "--error-unmatch", ".")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _command_line() -> str:
    """Return the command as the user typed it. The part of torchrun is rebuilt from what torchrun sets."""
    script = Path(sys.argv[0])
    if script.is_absolute():
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else Path(script.name)
    launcher = ["python"] if script.suffix == ".py" else []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = ["--nnodes", str(world // local)] if world > local else []
        launcher = ["torchrun", *nodes, "--nproc-per-node", str(local)]
    return shlex.join([*launcher, str(script), *sys.argv[1:]])
