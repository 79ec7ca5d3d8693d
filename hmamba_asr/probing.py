"""What is measured on a trained run beside its evaluation: how fast it recognises, and what its boundaries hold on to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hmamba_asr.evaluation.compare import RunFolder, load_run
from hmamba_asr.evaluation.efficiency import hardware
from hmamba_asr.evaluation.recordings import Recording, split_recordings, spread_over_durations
from hmamba_asr.evaluation.results import plain, write_atomically
from hmamba_asr.evaluation.speed import RUN_FILE, RUN_KIND, Subject, measure, render_speed
from hmamba_asr.inference import Recogniser


def _chosen(run: RunFolder, split: str | None, count: int) -> tuple[str, list[Recording]]:
    """The split (the run's first, where none is given) and recordings of it, evenly spaced over their durations."""
    if count < 1:
        raise ValueError(f"there is nothing to measure on {count} utterances; give 1 or more.")
    splits = list(run.results["evaluation"])
    if not splits:
        raise ValueError(f"{run.folder} was evaluated on no split; evaluate it (the same command with --test_only).")
    split = split or splits[0]
    return split, spread_over_durations(split_recordings(run.folder, split, hparams=run.results["hparams"]), count)


def measure_run(
    folder: str | Path, *, split: str | None = None, searches: Sequence[str] | None = None, utterances: int = 16,
    batch: int = 8, passes: int = 3, device: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Speed of a trained run on recordings of a test split, see `evaluation.speed`; also written to its `efficiency.json`.

    What JSON can hold: `split`, `hardware`, `torch`, `precision`, and what `speed.measure` returns, the searches being the
    subjects.

    Raises
    ------
    FileNotFoundError
        If the folder is no evaluated run, or the recordings are gone.
    ValueError
        If there is no checkpoint or search of that name, a recording cannot be read, or a size is below 1.
    """
    run = load_run(folder)
    split, chosen = _chosen(run, split, utterances)
    searches = searches or list(run.results["evaluation"].get(split, {})) or [None]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    subjects, samples, rate = {}, [], 0
    for name in searches:
        recogniser = Recogniser(folder, search=name, device=device)
        subjects[name or "default"] = Subject(recogniser.features, recogniser.model, recogniser.search, recogniser.device)
        rate = recogniser.sample_rate
        samples = samples or [recogniser.read(item.path)[0].cpu() for item in chosen]
    found = {
        "kind": RUN_KIND, "split": split, "hardware": hardware(device), "torch": torch.__version__, "precision": "fp32",
        **measure(subjects, samples, sample_rate=rate, batch_size=batch, passes=passes),
    }  # fmt: skip
    found = plain(found, "efficiency")
    with write_atomically(Path(folder) / RUN_FILE) as stream:
        json.dump(found, stream, indent=2)
        stream.write("\n")
    return found


def render_run(found: Mapping[str, Any]) -> str:
    """What `measure_run` found, for people."""
    machine = found["hardware"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['torch_threads']} threads"
    return f"{found['split']}, {where}, torch {found['torch']}, {found['precision']}\n{render_speed(found)}"
