"""Charts of numbers: training curves, WER of parts of a split, times, durations of chunks, efficiency.

Each function returns a matplotlib figure. The caller saves and closes it. A model has the same colour and
marker in all charts, if all models are given to each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hmamba_asr.report.media import MARKERS, add_tips, legend_above, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hmamba_asr.evaluation.breakdown import Part

Epochs = Sequence[Mapping[str, Any]]  # as `read_epochs` returns them
Seeds = Mapping[str, Epochs]  # {name of a run: its epochs}

SIZE = (4.9, 3.2)  # inches of a chart that stands beside another one
_HOVER: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 9, "alpha": 0.0, "label": "_"}


def draw_training(runs: Seeds) -> Figure:
    """Draw the losses by epoch and below them the validation WER, for a picture of its own.

    Parameters
    ----------
    runs
        {name: its epochs}.
    """
    models = {name: {name: epochs} for name, epochs in runs.items()}
    figure, (losses, wers) = new_figure(2, figsize=(7, 6.5), sharex=True)
    _plot_losses(losses, models)
    _plot_wers(wers, models)
    losses.set_xlabel("")
    for axes in (losses, wers):
        if axes.lines:
            axes.legend(fontsize=9)
    return figure


def draw_losses(models: Mapping[str, Seeds]) -> Figure:
    """Draw the loss of training and of validation by epoch: thin lines for seeds, thick ones for their mean.

    Parameters
    ----------
    models
        {name: its runs}.
    """
    return _draw(_plot_losses, models)


def draw_validation_wers(models: Mapping[str, Seeds]) -> Figure:
    """Draw the validation WER by epoch: thin lines for seeds, thick ones for their mean.

    Parameters
    ----------
    models
        {name: its runs}.
    """
    return _draw(_plot_wers, models)


def _draw(plot: Callable[[Axes, Mapping[str, Seeds]], None], models: Mapping[str, Seeds]) -> Figure:
    figure, axes = new_figure(figsize=SIZE)
    plot(axes, models)
    legend_above(figure)
    return figure


def _plot_losses(axes: Axes, models: Mapping[str, Seeds]) -> None:
    from matplotlib.ticker import LogLocator

    for index, (name, seeds) in enumerate(models.items()):
        color = f"C{index}"
        _plot_seeds(axes, seeds, "loss", f"{name}: training loss", color=color, linestyle="--")
        _plot_seeds(axes, seeds, "valid_loss", f"{name}: validation loss", color=color, label=name)
    axes.set(
        xlabel="epoch", ylabel="loss per utterance (nats)\ndashed: training; solid: validation", yscale="log"
    )
    # All nine marks of a decade would overlap.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")  # instead of powers of ten
    axes.yaxis.set_minor_formatter("")
    _finish(axes)


def _plot_wers(axes: Axes, models: Mapping[str, Seeds]) -> None:
    for index, (name, seeds) in enumerate(models.items()):
        best = [min(_points(epochs, "valid_wer").values(), default=None) for epochs in seeds.values()]
        known = [value for value in best if value is not None]
        if known:
            _plot_seeds(
                axes,
                seeds,
                "valid_wer",
                f"{name}: validation WER",
                color=f"C{index}",
                marker=MARKERS[index % len(MARKERS)],
                markersize=3,
                label=f"{name}: {statistics.mean(known):.1f}% at best",
            )
    axes.set(xlabel="epoch", ylabel="validation WER (%), greedy", ylim=(0, None))
    _finish(axes)


def _plot_seeds(axes: Axes, seeds: Seeds, key: str, title: str, **line: Any) -> None:
    """Plot a value by epoch: each run of several in a thin line, and the mean of all in a thick one."""
    runs = [points for epochs in seeds.values() if (points := _points(epochs, key))]
    if not runs:
        return
    if len(runs) > 1:
        for points in runs:
            axes.plot(*_columns(points), color=line["color"], linestyle=line.get("linestyle", "-"), lw=0.7)
    mean = {
        epoch: statistics.mean(points[epoch] for points in runs)
        for epoch in runs[0]
        if all(epoch in points for points in runs)
    }
    if not mean:
        return
    axes.plot(*_columns(mean), linewidth=1.6, **line)
    (hover,) = axes.plot(*_columns(mean), **_HOVER)
    of = f" (mean of {len(runs)} seeds)" if len(runs) > 1 else ""
    add_tips(hover, [f"{title} {value:.4g} after epoch {epoch}{of}" for epoch, value in mean.items()])


def _points(epochs: Epochs, key: str) -> dict[int, float]:
    return {record["epoch"]: record[key] for record in epochs if record.get(key) is not None}


def _columns(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _finish(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.2)


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
    figure, axes = new_figure(figsize=SIZE)
    gap = min(0.16, 0.7 / len(runs))
    for index, (run, parts) in enumerate(runs.items()):
        if not parts:
            continue
        shift = gap * (index - (len(runs) - 1) / 2)
        x = [names.index(part.name) + shift for part in parts]
        rates = [part.rate for part in parts]
        # Where an interval is skewed, the rate may be one of its ends, up to rounding.
        below = [max(0.0, part.rate - part.interval.low) for part in parts]
        above = [max(0.0, part.interval.high - part.rate) for part in parts]
        axes.errorbar(
            x,
            rates,
            yerr=(below, above),
            color=f"C{index}",
            fmt=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=run,
        )
        (hover,) = axes.plot(x, rates, **_HOVER)
        add_tips(
            hover,
            [
                f"{run}, {part.name}: WER {part.rate:.2f}% ({part.interval.low:.2f} to"
                f" {part.interval.high:.2f}), {part.utterances} utterances"
                for part in parts
            ],
        )
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
    axes.set(xlabel=xlabel, ylabel="WER (%), 95% interval", ylim=(0, None))
    axes.grid(alpha=0.2, axis="y")
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
    figure, axes = new_figure(figsize=(SIZE[0], 1.3 + 0.3 * len(rows)))
    left = dict.fromkeys(rows, 0.0)
    for index, phase in enumerate(phases):
        widths = [times.get(phase, 0.0) for times in rows.values()]
        bars = axes.barh(
            list(rows), widths, left=list(left.values()), label=phase, color=f"C{index}", height=0.65
        )
        for name, width, bar in zip(rows, widths, bars, strict=True):
            share = width / (sum(rows[name].values()) or 1.0)
            add_tips(bar, [f"{name}: {phase} {width:.3g}, {share:.0%} of the time"])
        left = {name: start + width for (name, start), width in zip(left.items(), widths, strict=True)}
    axes.invert_yaxis()
    axes.set(xlabel="RTF: seconds for a second of audio")
    axes.locator_params(axis="x", nbins=5)  # more would overlap
    legend_above(figure, columns=len(phases))
    return figure


def draw_encoder_times(encoders: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the encoder's time for one utterance against its length.

    Parameters
    ----------
    encoders
        {name: measurements}, as scripts/benchmarks/efficiency.py writes them. Lengths that were skipped have
        no point.
    """
    return _draw_by_length(encoders, "encoder_seconds", "seconds")


def draw_encoder_memory(encoders: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the encoder's memory for one utterance against its length.

    Parameters
    ----------
    encoders
        As `draw_encoder_times` takes them.
    """
    return _draw_by_length(encoders, "memory_mib", "memory (MiB)")


def _draw_by_length(encoders: Mapping[str, Sequence[Mapping[str, Any]]], key: str, ylabel: str) -> Figure:
    figure, axes = new_figure(figsize=SIZE)
    for index, (name, entries) in enumerate(encoders.items()):
        points = {entry["seconds"]: entry[key] for entry in entries if entry.get(key) is not None}
        if points:
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(*_columns(points), color=f"C{index}", marker=marker, markersize=3, label=name)
            (hover,) = axes.plot(*_columns(points), **_HOVER)
            add_tips(hover, [f"{name}, {seconds} s: {value:.3g}" for seconds, value in points.items()])
    axes.set(xlabel="length of the utterance", ylabel=ylabel, xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")  # instead of powers of ten
    axes.grid(alpha=0.2)
    lengths = sorted({entry["seconds"] for entries in encoders.values() for entry in entries})
    axes.set_xticks(lengths, [f"{s // 60} min" if s >= 60 and s % 60 == 0 else f"{s} s" for s in lengths])
    axes.minorticks_off()
    legend_above(figure)
    return figure


def draw_durations(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the share of chunks by their duration.

    Parameters
    ----------
    runs
        {name: durations of the chunks in seconds}, of those that chunk; empty for the others.
    """
    import numpy as np

    found = [durations for durations in runs.values() if len(durations)]
    longest = max(max(durations) for durations in found)
    step = min(np.diff(np.unique(np.concatenate([[0.0], *found]).round(6))))
    edges = 1000 * step * (np.arange(round(min(longest, 25 * step) / step) + 1) + 0.5)
    middles = (edges[:-1] + edges[1:]) / 2
    figure, axes = new_figure(figsize=SIZE)
    for index, (name, durations) in enumerate(runs.items()):
        if not len(durations):
            continue
        # Longer chunks stand in the last bar.
        milliseconds = 1000 * np.minimum(durations, edges[-1] / 1000 - step / 2)
        share = 100 * np.histogram(milliseconds, bins=edges)[0] / len(durations)
        axes.stairs(share, edges, color=f"C{index}", linewidth=1.4, label=name)
        (hover,) = axes.plot(middles, share, **_HOVER)
        add_tips(
            hover,
            [f"{name}, {x:.0f} ms: {y:.1f}% of the chunks" for x, y in zip(middles, share, strict=True)],
        )
    axes.set(xlabel="duration of a chunk (ms); the last bar holds longer ones too", ylabel="% of chunks")
    axes.grid(alpha=0.2)
    legend_above(figure)
    return figure
