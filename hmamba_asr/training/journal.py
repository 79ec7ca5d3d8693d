"""What a training run has done so far, and the records it leaves: JSON lines and TensorBoard scalars."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from torch.utils.tensorboard import SummaryWriter


def merge_sums(into: Counter, more: Mapping[str, float]) -> None:
    """Add ``more`` to ``into``; of names that end in _min or _max the smaller or larger value stays."""
    for name, value in more.items():
        if name.endswith(("_min", "_max")):
            smaller_or_larger = min if name.endswith("_min") else max
            into[name] = smaller_or_larger(into.get(name, value), value)
        else:
            into[name] += value


@register_checkpoint_hooks
@dataclass
class TrainingTotals:
    """Running sums, saved with every checkpoint so that a resumed run reports what an uninterrupted one
    would.

    ``run`` counts from the first step of training on, ``epoch`` from the first step of the current epoch.
    Keys: utterances, audio_seconds, seconds, infeasible (labels longer than the CTC can emit), skipped
    (utterances in non-finite batches), the summed loss parts, and what ``stages.stage_sums`` has of chunking
    stages.
    """

    run: Counter = field(default_factory=Counter)
    epoch: Counter = field(default_factory=Counter)

    def add(self, **amounts: float) -> None:
        merge_sums(self.run, amounts)
        merge_sums(self.epoch, amounts)

    def epoch_mean(self, key: str) -> float:
        """Average over the epoch's utterances; NaN before the first."""
        utterances = self.epoch["utterances"]
        return self.epoch[key] / utterances if utterances else float("nan")

    @mark_as_saver
    def _save(self, path) -> None:
        Path(path).write_text(
            json.dumps({"run": dict(self.run), "epoch": dict(self.epoch)}), encoding="utf-8"
        )

    @mark_as_loader
    def _load(self, path, end_of_epoch: bool) -> None:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        self.run = Counter(saved["run"])
        self.epoch = Counter() if end_of_epoch else Counter(saved["epoch"])


class TrainingJournal:
    """``train_log.jsonl`` and TensorBoard events in ``folder``, written by the main process.

    Every record has a ``kind`` ("step" or "epoch"), ``epoch`` and ``optimizer_step``; the rest is numbers.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / "train_log.jsonl"
        self._writer: SummaryWriter | None = None

    def rewind(self, optimizer_step: int, epochs_done: int) -> None:
        """Forget what a resumed run goes through again: steps after ``optimizer_step``, epochs after
        ``epochs_done``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _still_holds(line, optimizer_step, epochs_done)]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(temporary, self.path)
        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=optimizer_step + 1)

    def write(self, kind: str, *, epoch: int, optimizer_step: int, **scalars: float | None) -> None:
        """Append one record; None stands for a value that was not measured."""
        record = {"kind": kind, "epoch": epoch, "optimizer_step": optimizer_step, **scalars}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(f"{kind}/{name}", value, optimizer_step)
        self._writer.flush()


def _still_holds(line: str, optimizer_step: int, epochs_done: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return False  # the line that a killed run was writing
    # A run killed in validation has logged the epoch's last step, and may have logged the epoch without
    # saving it.
    return record["optimizer_step"] <= optimizer_step and (
        record["kind"] != "epoch" or record["epoch"] <= epochs_done
    )
