"""What a training run has done so far, and its log: JSON lines and TensorBoard scalars."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.run_layout import RunLayout
from hmamba_asr.system.sums import merge_sums

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


@register_checkpoint_hooks
@dataclass
class TrainingTotals:
    """Running sums over a run and over its current epoch.

    Every checkpoint holds them, so that a resumed run reports what an uninterrupted one would.

    Attributes
    ----------
    run : Counter
        Sums since the first step of training.
    epoch : Counter
        Sums since the first step of the current epoch.

    Notes
    -----
    Every run has the keys utterances, seconds, skipped (utterances in skipped batches), loss, and the parts
    of the loss (loss_<part>). The brain's ``batch_sums`` adds more.
    """

    run: Counter = field(default_factory=Counter)
    epoch: Counter = field(default_factory=Counter)

    def add(self, **amounts: float) -> None:
        """Add to both sums; a name that ends in _min or _max keeps the smaller or larger value."""
        merge_sums(self.run, amounts)
        merge_sums(self.epoch, amounts)

    def epoch_mean(self, key: str) -> float:
        """Return the mean over the epoch's utterances, NaN before the first one."""
        utterances = self.epoch["utterances"]
        return self.epoch[key] / utterances if utterances else float("nan")

    @mark_as_saver
    def _save(self, path: Path) -> None:
        text = json.dumps({"run": dict(self.run), "epoch": dict(self.epoch)})
        Path(path).write_text(text, encoding="utf-8")

    @mark_as_loader
    def _load(self, path: Path, end_of_epoch: bool) -> None:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        self.run = Counter(saved["run"])
        self.epoch = Counter() if end_of_epoch else Counter(saved["epoch"])


class TrainingJournal:
    """The log of a run in ``folder``: ``train_log.jsonl``, and TensorBoard events where it is installed.

    The main process writes it. Each record has a ``kind`` ("step" or "epoch"), ``epoch`` and
    ``optimizer_step``; all other values are numbers.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = RunLayout(folder).training_log
        self._tensorboard: SummaryWriter | None = None

    def rewind(self, optimizer_step: int, epochs_done: int) -> None:
        """Open the journal, and drop the records that a resumed run will write again.

        Parameters
        ----------
        optimizer_step : int
            Step to resume after; records of later steps are dropped.
        epochs_done : int
            Number of finished epochs; records of the ends of later epochs are dropped.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            with write_atomically(self.path) as file:
                file.writelines(f"{line}\n" for line in lines if _is_kept(line, optimizer_step, epochs_done))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("TensorBoard is not installed: the training log goes to %s alone.", self.path)
        else:
            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=optimizer_step + 1)

    def write(self, kind: str, *, epoch: int, optimizer_step: int, **scalars: float | None) -> None:
        """Append one record; None stands for a value that was not measured."""
        record = {"kind": kind, "epoch": epoch, "optimizer_step": optimizer_step, **scalars}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._tensorboard is not None:
            for name, value in scalars.items():
                if value is not None:
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, optimizer_step)
            self._tensorboard.flush()


def _is_kept(line: str, optimizer_step: int, epochs_done: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return False  # a killed run was writing this line
    # A run that was killed in validation has logged the epoch's last step. It may also have logged the end of
    # the epoch without saving it.
    return record["optimizer_step"] <= optimizer_step and (
        record["kind"] != "epoch" or record["epoch"] <= epochs_done
    )
