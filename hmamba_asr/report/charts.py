"""Charts of numbers: training curves, WER of parts of a split, times, durations of chunks, efficiency.

Each function returns a matplotlib figure. The caller saves and closes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hmamba_asr.report.media import legend_above, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hmamba_asr.evaluation.breakdown import Part


def draw_training(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw training and validation loss by epoch, and below them the validation WER.

    Parameters
    ----------
    runs
        {name: epoch records, as `read_epochs` returns them}.
    """
    from matplotlib.ticker import LogLocator

    figure, (losses, wers) = new_figure(2, figsize=(7, 6.5), sharex=True)
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
    # All nine marks of a decade would overlap.
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
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
    """Draw the WER of each part of a split with its 95% interval, in the order of the first run's parts.

    Parameters
    ----------
    runs
        {name: parts of the split, as `evaluation.breakdown` returns them}.
    xlabel
        What the parts differ in.
    """
    names = list(dict.fromkeys(part.name for parts in runs.values() for part in parts))
    figure, axes = new_figure(figsize=(7, 3.2))
    for index, (run, parts) in enumerate(runs.items()):
        shift = 0.16 * (index - (len(runs) - 1) / 2)
        x = [names.index(part.name) + shift for part in parts]
        rates = [part.rate for part in parts]
        # Where an interval is skewed, the rate may be one of its ends, up to rounding.
        below = [max(0.0, part.rate - part.interval.low) for part in parts]
        above = [max(0.0, part.interval.high - part.rate) for part in parts]
        axes.errorbar(
            x, rates, yerr=(below, above), fmt="o", markersize=4, linewidth=1.2, capsize=2, label=run
        )
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
    axes.set(xlabel=xlabel, ylabel="WER (%), 95% interval", ylim=(0, None))
    axes.grid(alpha=0.3, axis="y")
    axes.set_xlim(-0.7, len(names) - 0.3)
    legend_above(figure)
    return figure


def draw_phase_times(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the processing time for a second of audio, divided into phases.

    Parameters
    ----------
    rows
        {name of a bar: {phase: seconds for a second of audio}}.
    """
    phases = list(dict.fromkeys(phase for times in rows.values() for phase in times))
    figure, axes = new_figure(figsize=(7, 1.0 + 0.4 * len(rows)))
    left = dict.fromkeys(rows, 0.0)
    for index, phase in enumerate(phases):
        widths = [times.get(phase, 0.0) for times in rows.values()]
        axes.barh(list(rows), widths, left=list(left.values()), label=phase, color=f"C{index}", height=0.65)
        left = {name: start + width for (name, start), width in zip(left.items(), widths, strict=True)}
    axes.invert_yaxis()
    axes.set(xlabel="RTF: seconds for a second of audio")
    axes.locator_params(axis="x", nbins=5)  # more would overlap
    legend_above(figure)
    return figure


def draw_efficiency(encoders: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the time and the memory that one utterance takes against its length.

    Parameters
    ----------
    encoders
        {name: measurements}, as scripts/benchmarks/efficiency.py writes them. Lengths that were skipped have
        no point.
    """
    figure, (times, memory) = new_figure(2, figsize=(7, 6.0), sharex=True)
    for name, entries in encoders.items():
        for axes, key in ((times, "encoder_seconds"), (memory, "memory_mib")):
            points = [(entry["seconds"], entry[key]) for entry in entries if entry.get(key) is not None]
            if points:
                label = name if axes is times else None
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    for axes, label in ((times, "seconds"), (memory, "memory (MiB)")):
        axes.set(ylabel=label, xscale="log", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")  # instead of powers of ten
        axes.grid(alpha=0.3)
    lengths = sorted({entry["seconds"] for entries in encoders.values() for entry in entries})
    memory.set_xticks(lengths, [f"{s // 60} min" if s >= 60 and s % 60 == 0 else f"{s} s" for s in lengths])
    memory.minorticks_off()
    memory.set_xlabel("length of the utterance")
    legend_above(figure)
    return figure


def draw_durations(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the share of chunks by their duration.

    Parameters
    ----------
    runs
        {name: durations of the chunks in seconds}.
    """
    import numpy as np

    longest = max(max(durations) for durations in runs.values())
    step = min(np.diff(np.unique(np.concatenate([[0.0], *runs.values()]).round(6))))
    edges = 1000 * step * (np.arange(round(min(longest, 25 * step) / step) + 1) + 0.5)
    figure, axes = new_figure(figsize=(7, 2.8))
    for name, durations in runs.items():
        # Longer chunks stand in the last bar.
        milliseconds = 1000 * np.minimum(durations, edges[-1] / 1000 - step / 2)
        share = np.full(len(durations), 100 / len(durations))
        axes.hist(milliseconds, bins=edges, weights=share, histtype="step", label=name)
    axes.set(xlabel="duration of a chunk (ms), the last bar: and longer", ylabel="% of chunks")
    axes.grid(alpha=0.3)
    legend_above(figure)
    return figure
