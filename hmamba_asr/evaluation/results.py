"""Results of a run: `results.json`, its schema, and the environment it was measured in.

Schema of results.json, version 1. Every key is required; further keys are kept and ignored. A number that
could not be measured is null, and an empty cell in the table that `summary` makes.

    schema          1
    name            name of the YAML file, without its ending
    overrides       {key: text} of the YAML's keys that the command line changed; not in older files
    seed            int
    date            when the file was written, ISO 8601 in UTC
    environment     what `collect_environment` returns
        python, packages {name: version}, git {commit, dirty} or null, hardware (`efficiency.hardware`),
        command, world_size
    parameters      total, trainable, by_module {name: int}
    hparams         the resolved YAML as text
    training        null if nothing was trained, else
        train_splits [name], epochs, optimizer_steps, audio_seconds, seconds, audio_seconds_per_second,
        peak_memory_mib, precision ("bf16", ...), world_size
    checkpoints     names of the checkpoints that were averaged
    evaluation      {split: {search: entry}}, with searches such as "greedy", "beam", "beam+lm"; an entry has
        wer, cer    `wer.ErrorCounts.to_dict()`; wer.interval_95 [low, high] in percent, by resampling utterances, not in
                    older files
        efficiency  `efficiency.Efficiency.to_dict()`, or null
        stages      of an encoder that chunks, one each: kept (chunks for each state that the stage was given, mean over
                    utterances), kept_std, kept_min, kept_max, prob, chunk_ms, chunk_ms_max, ...; not in older files
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

SCHEMA_VERSION = 1

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


@contextmanager
def write_atomically(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file for writing that appears under `path` whole, when the block ends, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Environment


def collect_environment(device: Any) -> dict[str, Any]:
    """What a figure depends on besides the YAML: versions, commit, hardware, command. No host name."""
    # Here, because it imports torch, which reading results does not need.
    from hmamba_asr.evaluation.efficiency import hardware

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
    """Commit of the checkout that tracks `folder`, and whether its files were changed. None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        # An installed package may lie in somebody else's checkout (.venv), whose commit says nothing of it.
        git("ls-files", "--error-unmatch", ".")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _command_line() -> str:
    """The command as the user typed it, the torchrun part rebuilt from what torchrun sets."""
    script = Path(sys.argv[0])
    if script.is_absolute():
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else Path(script.name)
    launcher = ["python"] if script.suffix == ".py" else []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = ["--nnodes", str(world // local)] if world > local else []
        launcher = ["torchrun", *nodes, "--nproc-per-node", str(local)]
    return shlex.join([*launcher, str(script), *sys.argv[1:]])


# The results file


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write results.json. NaN and infinity, which JSON has no word for, become null.

    Raises:
        ValueError: a key of the schema is missing or of the wrong type. The file is written before it is
            checked, so that hours of training are not lost to a mistake in their description.
        TypeError: a value that JSON cannot hold.
    """
    content = plain(results, "results")
    with write_atomically(path) as stream:
        json.dump(content, stream, indent=2, allow_nan=False)
        stream.write("\n")
    _check_results(content, Path(path))


def load_results(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read results files, and all `results.json` and `*.results.json` below folders, ordered by path.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is not JSON, or not of this schema; names the file and the key.
    """
    files: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such results file or folder.")
        found = [path] if path.is_file() else [*path.rglob("results.json"), *path.rglob("*.results.json")]
        files.update(file.resolve() for file in found)
    return [_load(file) for file in sorted(files)]


def _load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON or UTF-8
        raise ValueError(f"{path}: not readable as JSON ({error}). Evaluate again, or remove it.") from error
    _check_results(results, path)
    return results


def plain(value: Any, key: str) -> Any:
    """`value`, which `key` names, in JSON's types: scalars of numpy and torch become numbers, NaN and infinity None.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, (str, int, float, type(None))) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, type(None))):
        return value
    raise TypeError(f"{key} is of type {type(value).__name__}, which a results file cannot hold.")


class _OrNull(NamedTuple):
    schema: Any


class _Each(NamedTuple):
    """A mapping with keys of any name, whose values have this schema."""

    schema: Any


_COUNT = int
_NUMBER = _OrNull((int, float))
_ERRORS = {
    "rate": (int, float),
    **dict.fromkeys(("tokens", "errors", "insertions", "deletions", "substitutions"), _COUNT),
    **dict.fromkeys(("sentences", "sentence_errors"), _COUNT),
    "sentence_error_rate": (int, float),
}
_HARDWARE = {"device": str, "cpu": str, "cores": (int, str), "gpu": _OrNull(str)}
_EFFICIENCY = {
    **dict.fromkeys(("rtf", "processing_seconds", "audio_seconds", "wall_seconds"), _NUMBER),
    "stage_seconds": _Each(_NUMBER),
    "batch": (int, str),
    "hardware": _HARDWARE,
    "processes": _COUNT,
}
_RESULTS = {
    "schema": int,
    "name": str,
    "seed": int,
    "date": str,
    "environment": {
        "python": str,
        "packages": _Each(str),
        "git": _OrNull({"commit": str, "dirty": bool}),
        "hardware": _HARDWARE,
        "command": str,
        "world_size": _COUNT,
    },
    "parameters": {"total": _COUNT, "trainable": _COUNT, "by_module": _Each(_COUNT)},
    "hparams": str,
    "training": _OrNull(
        {
            "train_splits": list,
            **dict.fromkeys(("epochs", "optimizer_steps", "audio_seconds", "seconds"), _NUMBER),
            **dict.fromkeys(("audio_seconds_per_second", "peak_memory_mib"), _NUMBER),
            "precision": str,
            "world_size": _COUNT,
        }
    ),
    "checkpoints": list,
    "evaluation": _Each(_Each({"wer": _ERRORS, "cer": _ERRORS, "efficiency": _OrNull(_EFFICIENCY)})),
}


def _check_results(results: Any, path: Path) -> None:
    if isinstance(results, dict) and results.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema {results['schema']}, but this version reads {SCHEMA_VERSION}.")
    _check(results, _RESULTS, "", path)


def _check(value: Any, schema: Any, key: str, path: Path) -> None:
    if isinstance(schema, _OrNull):
        if value is None:
            return
        schema = schema.schema
    accepted = dict if isinstance(schema, (dict, _Each)) else schema
    if not isinstance(value, accepted):
        kinds = accepted if isinstance(accepted, tuple) else (accepted,)
        names = " or ".join(kind.__name__ for kind in kinds)
        where = f"'{key}'" if key else "the whole file"
        raise ValueError(f"{path}: {where} should be {names}, but is {type(value).__name__}.")
    if isinstance(schema, (dict, _Each)):
        inner = schema if isinstance(schema, dict) else dict.fromkeys(value, schema.schema)
        for name, item_schema in inner.items():
            inner_key = f"{key}.{name}" if key else name
            if name not in value:
                raise ValueError(f"{path}: the key '{inner_key}' is missing. Evaluate again to write it.")
            _check(value[name], item_schema, inner_key, path)
