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
        wer, cer    `wer.ErrorCounts.to_dict()`; wer.interval_95 [low, high] in percent, by resampling
        utterances, not in
                    older files
        efficiency  `efficiency.Efficiency.to_dict()`, or null stages      of an encoder that chunks, one
        each: kept (chunks for each state that the stage was given, mean over
                    utterances), kept_std, kept_min, kept_max, prob, chunk_ms, chunk_ms_max, ...; not in older
                    files
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hmamba_asr.system.files import write_atomically

SCHEMA_VERSION = 1


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
    """`value`, which `key` names, in JSON's types: scalars of numpy and torch become numbers, NaN and
    infinity None.

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
