"""What an evaluation has decoded so far, kept on disk batch by batch, so that a killed one goes on where it
stood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor, nn

from hmamba_asr.evaluation.segmentation import Chunks
from hmamba_asr.system.environment import collect_environment
from hmamba_asr.training.asr import ASRBrain

Seconds = float
NAME = "decoded-{rank}.jsonl"


@dataclass
class DecodedBatch:
    """One batch of utterances: hypotheses by ID, what decoding them took, and what the chunking stages did.

    ``wall_seconds`` is the elapsed time from reading the batch to the end of its decoding, ``stage_seconds``
    its parts, ``sums`` what ``stages.stage_sums`` gives, ``chunks`` where chunks begin.
    """

    texts: dict[str, str]
    audio_seconds: Seconds
    wall_seconds: Seconds
    stage_seconds: dict[str, Seconds]
    sums: dict[str, float] = field(default_factory=dict)
    chunks: list[Chunks] = field(default_factory=list)


class DecodedBatches:
    """The batches that a rank has decoded of one split with one search, in their order; those of an earlier
    run among them, if it was killed and nothing that results depend on has changed.

    The file has a line for the ``fingerprint`` and one for each batch, appended once the batch is done. The
    rest of a line that a killed run was writing, and what stands behind it, is cut off; a file of another
    fingerprint is begun anew.
    """

    def __init__(self, path: str | Path, fingerprint: str):
        self.path = Path(path)
        self.batches: list[DecodedBatch] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        header = json.dumps({"fingerprint": fingerprint}).encode() + b"\n"
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

    def append(self, batch: DecodedBatch) -> None:
        record = {**asdict(batch), "chunks": [vars(item) for item in batch.chunks]}
        with self.path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        self.batches.append(batch)


def _parse(line: bytes) -> DecodedBatch | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
        chunks = [
            Chunks(**{**item, "starts": tuple(map(tuple, item["starts"]))}) for item in record["chunks"]
        ]
        return DecodedBatch(**{**record, "chunks": chunks})
    except (ValueError, TypeError, KeyError):
        return None  # half a line, or disk blocks that a crash of the machine left empty


def forget(folder: str | Path) -> None:
    """Remove what all ranks kept under ``folder`` (``<folder>/<split>/<search>/``), once the results are
    written."""
    for path in Path(folder).glob(f"*/*/{NAME.format(rank='*')}"):
        path.unlink(missing_ok=True)


class Fingerprints:
    """Tell whether a hypothesis, or the time that it took, may be another one now.

    Of the checkpoints' names, the weights of model and language model, the tokenizer, the resolved YAML (with
    the settings of the searches), the precision, the split's manifest rows, versions, commit, hardware,
    number of ranks, and the files of lm_folder by size and time. The audio itself is known by its path and
    duration.
    """

    def __init__(self, brain: ASRBrain, *, checkpoints: list[str], hparams_text: str):
        environment = collect_environment(brain.device)
        environment.pop("command")
        # Training wraps modules for several ranks, --test_only does not.
        modules = nn.ModuleDict(
            {name: getattr(module, "module", module) for name, module in brain.modules.items()}
        )
        described = {
            "checkpoints": checkpoints,
            "weights": _digest_of_weights(modules),
            "tokenizer": hashlib.sha256(brain.tokenizer.serialized_model_proto()).hexdigest(),
            "hparams": hparams_text,
            "precision": brain.eval_precision,
            "environment": environment,
            "ranks": brain.ranks.world_size,
        }
        self._common = _digest([described])

    def of(self, dataset: DynamicItemDataset, search_name: str, search: nn.Module) -> str:
        rows: Mapping[str, dict] = dataset.data
        folder = getattr(search, "lm_folder", None)  # an n-gram has no parameters that one could look at
        files = [(str(path), path.stat()) for path in sorted(Path(folder).iterdir())] if folder else []
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
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
