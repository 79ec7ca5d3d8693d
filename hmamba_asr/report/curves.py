"""Pictures of numbers: training curves, errors by length and speaker, time by stage, durations of chunks.
Need matplotlib.

Each function returns a matplotlib figure; whoever asked for it saves and closes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hmamba_asr.evaluation.breakdown import Part


def read_epochs(run: str | Path) -> list[dict[str, Any]]:
    """The epoch records of a run's log, in order; `run` is its output folder, or a train_log.jsonl.

    Raises:
        ValueError: there is no log, or no epoch in it.
    """
    file = Path(run) / "train_log.jsonl" if Path(run).is_dir() else Path(run)
    if not file.is_file():
        raise ValueError(f"there is no {file}; give the output folder of a training run.")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    epochs = [record for record in records if record["kind"] == "epoch"]
    if not epochs:
        raise ValueError(f"{file} has no finished epoch yet.")
    return epochs


def draw_training(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training and validation loss by epoch, and below it validation WER, of each run's epoch records."""
    from matplotlib.ticker import LogLocator

    figure, (losses, wers) = _subplots(2, 1, figsize=(7, 6.5), sharex=True)
    for index, (name, epochs) in enumerate(runs.items()):
        color = f"C{index}"
        x = [record["epoch"] for record in epochs]
        losses.plot(x, [record["loss"] for record in epochs], color=color, linestyle="--")
        losses.plot(x, [record["valid_loss"] for record in epochs], color=color, label=name)
        measured = [
            (record["epoch"], record["valid_wer"]) for record in epochs if record.get("valid_wer") is not None
        ]
        if measured:
            epoch, best = min(measured, key=lambda pair: pair[1])
            label = f"{name}: {best:.1f}% after epoch {epoch}"
            wers.plot(*zip(*measured, strict=True), color=color, marker="o", markersize=3, label=label)
    losses.set(ylabel="loss per utterance (nats)\ndashed: training; solid: validation", yscale="log")
    losses.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5))
    )  # all nine of a decade would run into each other
    losses.yaxis.set_major_formatter("{x:g}")  # instead of powers of ten
    losses.yaxis.set_minor_formatter("")
    wers.set(xlabel="epoch", ylabel="validation WER (%), greedy", ylim=(0, None))
    wers.xaxis.get_major_locator().set_params(integer=True)
    for axes in (losses, wers):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=9)
    return figure


def draw_parts(runs: Mapping[str, Sequence[Part]], *, xlabel: str) -> Figure:
    """WER with its interval of the same parts of a split in each run, in the order of the first run."""
    names = list(dict.fromkeys(part.name for parts in runs.values() for part in parts))
    figure, axes = _subplots(1, 1, figsize=(7, 3.2))
    for index, (run, parts) in enumerate(runs.items()):
        shift = 0.16 * (index - (len(runs) - 1) / 2)
        x = [names.index(part.name) + shift for part in parts]
        rates = [part.rate for part in parts]
        # Of a skewed interval the rate itself may be an end, up to the rounding.
        below = [max(0.0, part.rate - part.interval.low) for part in parts]
        above = [max(0.0, part.interval.high - part.rate) for part in parts]
        axes.errorbar(
            x, rates, yerr=(below, above), fmt="o", markersize=4, linewidth=1.2, capsize=2, label=run
        )
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
    axes.set(xlabel=xlabel, ylabel="WER (%), 95% interval", ylim=(0, None))
    axes.grid(alpha=0.3, axis="y")
    axes.set_xlim(-0.7, len(names) - 0.3)
    _legend_above(axes)
    return figure


def draw_stage_times(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Processing seconds for a second of audio of each row, divided into stages."""
    stages = list(dict.fromkeys(stage for times in rows.values() for stage in times))
    figure, axes = _subplots(1, 1, figsize=(7, 1.0 + 0.4 * len(rows)))
    left = dict.fromkeys(rows, 0.0)
    for index, stage in enumerate(stages):
        widths = [times.get(stage, 0.0) for times in rows.values()]
        axes.barh(list(rows), widths, left=list(left.values()), label=stage, color=f"C{index}", height=0.65)
        left = {name: start + width for (name, start), width in zip(left.items(), widths, strict=True)}
    axes.invert_yaxis()
    axes.set(xlabel="RTF: seconds for a second of audio")
    axes.locator_params(axis="x", nbins=5)  # more would run into each other
    _legend_above(axes)
    return figure


def draw_efficiency(encoders: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Seconds for one utterance, and the memory that this takes, against its length; `encoders` as
    scripts/benchmarks/efficiency.py writes them. Lengths that were skipped have no point."""
    figure, (times, memory) = _subplots(2, 1, figsize=(7, 6.0), sharex=True)
    for name, entries in encoders.items():
        for axes, key in ((times, "encoder_seconds"), (memory, "memory_mib")):
            points = [(entry["seconds"], entry[key]) for entry in entries if entry.get(key) is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=3,
                    label=name if axes is times else None,
                )
    for axes, label in ((times, "seconds"), (memory, "memory (MiB)")):
        axes.set(ylabel=label, xscale="log", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")  # instead of powers of ten
        axes.grid(alpha=0.3)
    lengths = sorted({entry["seconds"] for entries in encoders.values() for entry in entries})
    memory.set_xticks(lengths, [f"{s // 60} min" if s >= 60 and s % 60 == 0 else f"{s} s" for s in lengths])
    memory.minorticks_off()
    memory.set_xlabel("length of the utterance")
    _legend_above(times)
    return figure


def draw_durations(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Share of chunks by their duration; each run's durations in seconds."""
    import numpy as np

    longest = max(max(durations) for durations in runs.values())
    step = min(np.diff(np.unique(np.concatenate([[0.0], *runs.values()]).round(6))))
    edges = 1000 * step * (np.arange(round(min(longest, 25 * step) / step) + 1) + 0.5)
    figure, axes = _subplots(1, 1, figsize=(7, 2.8))
    for name, durations in runs.items():
        milliseconds = 1000 * np.minimum(
            durations, edges[-1] / 1000 - step / 2
        )  # what is longer stands in the last bar
        axes.hist(
            milliseconds,
            bins=edges,
            weights=np.full(len(durations), 100 / len(durations)),
            histtype="step",
            label=name,
        )
    axes.set(xlabel="duration of a chunk (ms), the last bar: and longer", ylabel="% of chunks")
    axes.grid(alpha=0.3)
    _legend_above(axes)
    return figure


def _legend_above(axes: Any) -> None:
    axes.figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)


def _subplots(rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, layout="constrained", **options)
