"""Speed of a trained run on recordings of a test split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hmamba_asr.evaluation.finished_run import load_run, sample_recordings
from hmamba_asr.evaluation.results import plain
from hmamba_asr.evaluation.speed import RUN_KIND, Subject, measure, render_speed
from hmamba_asr.inference.recogniser import Recogniser
from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.hardware import default_device, hardware, machine_name
from hmamba_asr.system.run_layout import RunLayout


def measure_run(
    folder: str | Path,
    *,
    split: str | None = None,
    searches: Sequence[str] | None = None,
    utterances: int = 16,
    batch: int = 8,
    passes: int = 3,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure a run's speed by the protocol of `evaluation.speed`, and write it to the run's
    `efficiency.json`.

    Parameters
    ----------
    folder
        Output folder of an evaluated run.
    split
        One of its test splits. By default the first.
    searches
        Names of the YAML's searches. By default those that were evaluated on the split.
    utterances
        Number of recordings, evenly spaced over the durations of the split.
    batch, passes
        Utterances in a batch, and timed passes.
    device
        "cpu" or "cuda". By default a GPU if there is one.

    Returns
    -------
    dict
        Only types of JSON: `split`, `hardware`, `torch`, `precision`, and what `speed.measure` returns with
        the searches as subjects.

    Raises
    ------
    FileNotFoundError
        If the folder is no evaluated run, or the recordings do not exist.
    ValueError
        If there is no checkpoint or no search of that name, a recording cannot be read, or a size is below 1.
    """
    run = load_run(folder)
    split, recordings = sample_recordings(run, split, utterances)
    names: list[str | None] = [*(searches or run.results.evaluation.get(split, {}))] or [None]
    device = device or default_device()
    subjects: dict[str, Subject] = {}
    samples: list[torch.Tensor] = []
    rate = 0
    for name in names:
        recogniser = Recogniser(folder, search=name, device=device)
        subjects[name or "default"] = Subject(
            recogniser.features, recogniser.model, recogniser.search, recogniser.device
        )
        rate = recogniser.sample_rate
        samples = samples or [recogniser.read(row.audio)[0].cpu() for row in recordings]
    found = {
        "kind": RUN_KIND,
        "split": split,
        "hardware": hardware(device),
        "torch": torch.__version__,
        "precision": "fp32",
        **measure(subjects, samples, sample_rate=rate, batch_size=batch, passes=passes),
    }
    found = plain(found, "efficiency")
    with write_atomically(RunLayout(folder).efficiency) as stream:
        json.dump(found, stream, indent=2)
        stream.write("\n")
    return found


def render_run(found: Mapping[str, Any]) -> str:
    """Return what `measure_run` found as text."""
    where = machine_name(found["hardware"])
    return f"{found['split']}, {where}, torch {found['torch']}, {found['precision']}\n{render_speed(found)}"
