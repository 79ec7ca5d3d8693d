"""Read the epochs of a run's train_log.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hmamba_asr.system.run_layout import RunLayout


def read_epochs(run: str | Path) -> list[dict[str, Any]]:
    """Return the epoch records of a run's log in order.

    Parameters
    ----------
    run
        The run's output folder, or a train_log.jsonl.

    Raises
    ------
    ValueError
        If there is no log, or no epoch in it.
    """
    file = RunLayout(run).training_log if Path(run).is_dir() else Path(run)
    if not file.is_file():
        raise ValueError(f"there is no {file}; give the output folder of a training run.")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    epochs = [record for record in records if record["kind"] == "epoch"]
    if not epochs:
        raise ValueError(f"{file} has no finished epoch yet.")
    return epochs
