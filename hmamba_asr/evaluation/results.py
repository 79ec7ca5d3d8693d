"""results.json: the typed records of what an evaluated run leaves, and how they are read and written.

An attribute has the name of its JSON key, except `EfficiencyRecord.phase_seconds`. A number that could not be
measured is null in the file and None here. Files of an earlier version lack the keys that have a default
value below. The file's other keys are required.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.hardware import machine_name

SCHEMA_VERSION = 1


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, as `system.hardware.hardware` describes it.

    Where ranks ran on different machines, text and counts of both are joined by " + ".
    """

    device: str
    cpu: str
    cores: int | str
    torch_threads: int | str | None = None
    gpu: str | None
    gpu_memory_mib: int | str | None = None
    cuda: str | None = None
    platform: str | None = None

    @property
    def machine(self) -> str:
        """The machine in a few words: the GPU, or the CPU and the threads."""
        return machine_name(msgspec.structs.asdict(self))


class GitState(msgspec.Struct, frozen=True, kw_only=True):
    """The commit of the checkout, and whether tracked files were changed."""

    commit: str
    dirty: bool


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What figures depend on besides the YAML; see `system.environment.collect_environment`."""

    python: str
    packages: dict[str, str]
    git: GitState | None
    hardware: Hardware
    command: str
    world_size: int


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """The number of the model's parameters."""

    total: int
    trainable: int
    by_module: dict[str, int]


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What training took. `seconds` leaves validation out."""

    train_splits: list[str]
    epochs: int | None
    optimizer_steps: int | None
    audio_seconds: float | None
    seconds: float | None
    audio_seconds_per_second: float | None
    peak_memory_mib: float | None
    precision: str
    world_size: int


class ErrorRates(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Word or character errors of a split; rates in percent.

    `interval_95` is the 95% bootstrap interval over utterances. Only word errors have one.
    """

    rate: float
    tokens: int
    errors: int
    insertions: int
    deletions: int
    substitutions: int
    sentences: int
    sentence_errors: int
    sentence_error_rate: float
    interval_95: tuple[float, float] | None = None


class EfficiencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a split was decoded; see `evaluation.timing.Efficiency`."""

    rtf: float | None
    processing_seconds: float | None
    audio_seconds: float | None
    phase_seconds: dict[str, float | None] = msgspec.field(name="stage_seconds")  # the key of JSON
    wall_seconds: float | None
    batch: int | str
    hardware: Hardware
    processes: int


class ChunkingFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one chunking stage did on a split.

    `kept` is the number of chunks for each state that the stage was given: mean, standard deviation, minimum
    and maximum over utterances. `prob` is the mean boundary probability. Durations of chunks are in ms.
    """

    kept: float | None
    kept_std: float | None = None
    kept_min: float | None = None
    kept_max: float | None = None
    chunk_ms_max: float | None = None
    prob: float | None = None
    chunk_ms: float | None = None
    ratio_loss: float | None = None
    floored: float | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One split with one search. `stages` has an item for each chunking stage, the outermost first."""

    wer: ErrorRates
    cer: ErrorRates
    efficiency: EfficiencyRecord | None
    stages: list[ChunkingFigures] = []


class Operations(msgspec.Struct, frozen=True, kw_only=True):
    """Multiply-accumulates of each part of the model, for an utterance of this length."""

    seconds: float
    tokens: int
    macs: dict[str, int]


class Chunking(msgspec.Struct, frozen=True, kw_only=True):
    """One chunking stage, as the model describes itself: the kind of its chunker and the states for each
    chunk."""

    kind: str
    ratio: float | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The content of results.json.

    Attributes
    ----------
    name
        The run's name: the YAML file's, without its ending.
    overrides
        Keys of the YAML that the command line changed, with their text.
    date
        When the file was written, ISO 8601 in UTC.
    hparams
        The resolved YAML.
    training
        None if nothing was trained.
    checkpoints
        Names of the checkpoints whose weights were averaged.
    evaluation
        {split: {search: entry}}, with searches such as "greedy", "beam" and "beam+lm".
    operations, chunking
        None in older files. `chunking` is empty for a model that does not chunk.
    further
        Keys of the file that this version does not know. They are written again as they were.
    """

    schema: int
    name: str
    overrides: dict[str, str] = {}
    seed: int
    date: str
    environment: Environment
    parameters: Parameters
    hparams: str
    training: TrainingRecord | None
    checkpoints: list[str]
    evaluation: dict[str, dict[str, Entry]]
    operations: Operations | None = None
    chunking: list[Chunking] | None = None
    further: dict[str, Any] = {}


def write_results(path: str | Path, results: Results) -> None:
    """Write results.json. NaN and infinity, which JSON cannot express, become null.

    Raises
    ------
    ValueError
        If a value has the wrong type. The file is written before it is checked, so that hours of training are
        not lost to a mistake in their description.
    TypeError
        If JSON cannot hold a value.
    """
    content = plain(results, "results")
    content |= content.pop("further")
    with write_atomically(path) as stream:
        json.dump(content, stream, indent=2, allow_nan=False)
        stream.write("\n")
    parse_results(content, Path(path))


def load_results(paths: Iterable[str | Path]) -> list[Results]:
    """Read results files; see `load_files`."""
    return list(load_files(paths).values())


def load_files(paths: Iterable[str | Path]) -> dict[Path, Results]:
    """Read results files, and all `results.json` and `*.results.json` below folders, ordered by path.

    Returns
    -------
    dict
        {resolved path of the file: its content}.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If a file is not JSON or does not have this schema.
    """
    files: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such results file or folder.")
        found = [path] if path.is_file() else [*path.rglob("results.json"), *path.rglob("*.results.json")]
        files.update(file.resolve() for file in found)
    return {file: _load(file) for file in sorted(files)}


def _load(path: Path) -> Results:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON or UTF-8
        raise ValueError(f"{path}: not readable as JSON ({error}). Evaluate again, or remove it.") from error
    return parse_results(content, path)


def parse_results(content: Any, source: str | Path) -> Results:
    """Check the content of a results file and make records of it.

    Parameters
    ----------
    content
        What `json.load` returned.
    source
        The file, for messages.

    Raises
    ------
    ValueError
        If a key is missing or has the wrong type. The message names file and key.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{source}: the whole file should be object, but is {type(content).__name__}.")
    version = content.get("schema", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(f"{source}: schema {version}, but this version reads {SCHEMA_VERSION}.")
    known = Results.__struct_fields__
    further = {key: value for key, value in content.items() if key not in known}
    try:
        return msgspec.convert({**content, "further": further}, Results)
    except msgspec.ValidationError as error:
        raise ValueError(f"{source}: {_fault(content, error)}") from error


def _fault(content: Mapping[str, Any], error: msgspec.ValidationError) -> str:
    """Say in one sentence which key is wrong. msgspec writes [...] for the keys of split and search."""
    if "`$.evaluation[...][...]" in str(error):
        for split, searches in content["evaluation"].items():
            for search, entry in searches.items():
                try:
                    msgspec.convert(entry, Entry)
                except msgspec.ValidationError as nested:
                    return _sentence(f"evaluation.{split}.{search}", str(nested))
    return _sentence("", str(error))


def _sentence(place: str, message: str) -> str:
    """Reword msgspec's message about a key inside `place`."""
    what, _, path = message.partition(" - at ")
    key = ".".join(part for part in (place, path.strip("`").removeprefix("$").removeprefix(".")) if part)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        return (
            f"the key '{'.'.join(filter(None, (key, missing[1])))}' is missing. Evaluate again to write it."
        )
    if types := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what):
        return f"'{key}' should be {types[1].replace(' | ', ' or ')}, but is {types[2]}."
    return f"'{key}' is not valid ({what})."


def plain(value: Any, key: str) -> Any:
    """Express a value in JSON's types.

    Numbers of numpy and torch become plain ones, NaN and infinity None.

    Parameters
    ----------
    value
        Records, mappings, sequences and scalars.
    key
        The value's name, for messages.

    Raises
    ------
    TypeError
        If JSON cannot hold the value.
    """
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        fields = {key_of: getattr(value, name) for name, key_of in names}
        if value.__struct_config__.omit_defaults:
            fields = {name: item for name, item in fields.items() if item is not None}
        value = fields
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
