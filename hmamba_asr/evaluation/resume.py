"""A cache of decoded batches on disk, from which a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor, nn

from hmamba_asr.decoding.search import Search
from hmamba_asr.evaluation.segmentation import Segmentation
from hmamba_asr.system.environment import collect_environment
from hmamba_asr.system.ranks import Ranks

Seconds = float
FILE_NAME = "decoded-{rank}.jsonl"


@dataclass
class CachedBatch:
    """What decoding one batch of utterances gave.

    Attributes
    ----------
    texts
        Hypotheses by utterance ID.
    audio_seconds
        Duration of the audio.
    wall_seconds
        Elapsed time from reading the batch to the end of its decoding.
    phase_seconds
        The parts of that time.
    sums
        What :func:`~hmamba_asr.evaluation.chunk_statistics.stage_sums` gave.
    segmentations
        Where the chunks of each utterance begin.
    """

    texts: dict[str, str]
    audio_seconds: Seconds
    wall_seconds: Seconds
    phase_seconds: dict[str, Seconds]
    sums: dict[str, float] = field(default_factory=dict)
    segmentations: list[Segmentation] = field(default_factory=list)


class BatchCache:
    """The batches that one rank has decoded of one split with one search, in their order.

    The file holds a line for the key and one for each batch, which is appended when the batch is done. A file
    with the same key is continued: the rest of a line that a killed run was writing, and all that follows, is
    cut off. A file with another key is started anew.

    Parameters
    ----------
    path
        The file.
    key
        See :class:`CacheKeys`.
    """

    def __init__(self, path: str | Path, key: str):
        self.path = Path(path)
        self.batches: list[CachedBatch] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        header = json.dumps({"key": key}).encode() + b"\n"
        if lines[:1] != [header]:
            self.path.write_bytes(header)
            return
        whole = len(header)
        for line in lines[1:]:
            batch = _parse(line)
            if batch is None:
                break
            self.batches.append(batch)
            whole += len(line)
        with self.path.open("r+b") as file:
            file.truncate(whole)

    def append(self, batch: CachedBatch) -> None:
        """Add a batch, and write it down."""
        record = {**asdict(batch), "segmentations": [vars(item) for item in batch.segmentations]}
        with self.path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        self.batches.append(batch)


def _parse(line: bytes) -> CachedBatch | None:
    if not line.endswith(b"\n"):
        return None  # the line that a killed run was writing
    try:
        record = json.loads(line)
        where = [Segmentation.from_dict(item) for item in record["segmentations"]]
        return CachedBatch(**{**record, "segmentations": where})
    except (ValueError, TypeError, KeyError):
        return None  # disk blocks that a crash of the machine left empty


def clear_cache(folder: str | Path) -> None:
    """Remove the files of all ranks, ``<folder>/<split>/<search>/decoded-<rank>.jsonl``."""
    for path in Path(folder).glob(f"*/*/{FILE_NAME.format(rank='*')}"):
        path.unlink(missing_ok=True)


class CacheKeys:
    """Keys that differ whenever a hypothesis, or the time that it took, may differ.

    A key depends on

    - the checkpoints' names, and the weights of model and language model;
    - the tokenizer, and the resolved YAML with the settings of the searches;
    - the precision and the number of ranks;
    - the versions, the commit and the hardware;
    - the split's manifest rows: the audio itself counts by its path and duration;
    - the files in a search's ``lm_folder``, by size and time.

    Parameters
    ----------
    checkpoints
        Names of the averaged checkpoints.
    modules
        The modules that computed the search's input.
    tokenizer
        SentencePiece's processor.
    hparams_text
        The resolved YAML.
    precision
        "fp32", "fp16" or "bf16".
    device, ranks
        Where this process computes, and the number of processes.
    """

    def __init__(
        self,
        *,
        checkpoints: Sequence[str],
        modules: Sequence[nn.Module],
        tokenizer: Any,
        hparams_text: str,
        precision: str,
        device: torch.device,
        ranks: Ranks,
    ):
        environment = collect_environment(device)
        environment.pop("command")
        described = {
            "checkpoints": list(checkpoints),
            "weights": [_digest_of_weights(module) for module in modules],
            "tokenizer": hashlib.sha256(tokenizer.serialized_model_proto()).hexdigest(),
            "hparams": hparams_text,
            "precision": precision,
            "environment": environment,
            "ranks": ranks.world_size,
        }
        self._common = _digest([described])

    def key_of(self, dataset: DynamicItemDataset, search_name: str, search: Search) -> str:
        """Return the key of one split with one search."""
        rows: Mapping[str, dict] = dataset.data
        lm_files = sorted(Path(search.lm_folder).iterdir()) if search.lm_folder else []
        files = [(str(path), path.stat()) for path in lm_files]  # an n-gram has no parameters to look at
        described = {
            "search": search_name,
            "weights": _digest_of_weights(search),
            "lm_files": [(path, found.st_size, found.st_mtime_ns) for path, found in files],
            "rows": [(i, rows[i]) for i in dataset.data_ids],
        }
        return _digest([self._common, described])


def _digest(parts: Iterable) -> str:
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True, default=str).encode()).hexdigest()


def _digest_of_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
