#!/usr/bin/env python3
"""Draw the WER of kept runs against what it costs: time or encoder states.

    python scripts/plot_tradeoff.py speed --split test-clean-mini --search beam \\
        --benchmark scripts/benchmarks/results/chunking_epyc.json \\
        --models conmamba_mini=ConMamba "hmamba_mini@8+4:2=H-Mamba, N = 2" --output wer_speed

The first argument is the x axis:

    speed      how many times as fast as the flat encoder, search included: median and range, from a file that
               scripts/benchmarks/chunking.py wrote. NAME@8+4:2 takes the case of 8+4 and N = 2. The first
               model is the flat one and has no case. The goal, its WER at GOAL_SPEED, is shaded
    frames     frames per chunk, which is 1 / kept; 1 for a model without chunks

The WER is the mean over the seeds of NAME.results.json or NAME.SEED.results.json. Whiskers are standard
deviations. Each search has a panel. A model is NAME=LABEL. NAME=LABEL/POINT writes POINT beside the point
and joins it by a line to the other points with that LABEL.

Writes OUTPUT_light.svg and OUTPUT_dark.svg, which hold their command and their numbers as text. Needs
matplotlib: pip install -e ".[plots]".
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from draw_models import COLOURS, FONTS

from hmamba_asr.evaluation.results import Entry, Results, load_results
from hmamba_asr.report.labels import Label, write_labels
from hmamba_asr.report.results_table import same_experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_RESULTS = ROOT / "recipes" / "librispeech" / "results"
# What the x axis is, and its unit in a sentence.
COSTS = {
    "speed": ("speed of encoder and search relative to {} (right is faster)", "relative speed"),
    "frames": ("frames per chunk (right is fewer states)", "frames per chunk"),
}
GOAL_SPEED = 1.4  # the project's: ConMamba's WER at so many times its speed
# Of the models, in their order: the colour of frames and that of chunks come first.
MODEL_COLOURS = {
    "light": (
        COLOURS["light"]["frame-line"],
        COLOURS["light"]["chunk-line"],
        "#1a7f37",
        "#8250df",
        "#bf3989",
    ),
    "dark": (COLOURS["dark"]["frame-line"], COLOURS["dark"]["chunk-line"], "#56d364", "#bc8cff", "#ff7bbd"),
}


@dataclass(frozen=True)
class Model:
    """A kept name, its case of the benchmark, the label of its line, and what stands beside its point."""

    name: str
    case: str
    label: str
    point: str = ""

    @property
    def title(self) -> str:
        return f"{self.label}, {self.point}" if self.point else self.label


@dataclass(frozen=True)
class Spread:
    """A number, the ends of its whiskers, and how many seeds it is from."""

    value: float
    low: float
    high: float
    seeds: int = 1


@dataclass(frozen=True)
class Point:
    """Where a model stands."""

    model: Model
    x: Spread
    wer: Spread


@dataclass(frozen=True)
class Panel:
    """A title and the points below it. Points with the same label are joined by a line."""

    title: str
    points: tuple[Point, ...]
    has_goal: bool = False


# ---- the numbers ------------------------------------------------------------------------------------------


def parse_model(text: str) -> Model:
    """Read NAME[@SPLIT:N]=LABEL[/POINT].

    Raises
    ------
    ValueError
        If a part is missing.
    """
    names, _, title = text.partition("=")
    name, _, case = names.partition("@")
    label, _, point = title.partition("/")
    if not name or not label:
        raise ValueError(f"--models needs NAME=LABEL, not '{text}'.")
    return Model(name.strip(), case.strip(), label.strip(), point.strip())


def read_kept(folder: Path, name: str) -> list[Results]:
    """Read the kept results of a name, one for each seed.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If they differ in more than the seed, or a file is not valid.
    """
    pattern = re.compile(rf"{re.escape(name)}(\.\d+)?\.results\.json")
    files = [path for path in folder.glob("*.results.json") if pattern.fullmatch(path.name)]
    if not files:
        raise FileNotFoundError(f"there is no {folder / name}.results.json, nor one with a seed in its name.")
    results = load_results(files)
    if not all(same_experiment(results[0], other) for other in results[1:]):
        raise ValueError(f"the results files of {name} in {folder} differ in more than the seed.")
    return results


def find_panels(
    models: Sequence[Model],
    *,
    cost: str,
    split: str,
    searches: Sequence[str],
    benchmark: Path | None = None,
    folder: Path = DEFAULT_RESULTS,
) -> list[Panel]:
    """Read what the figure shows.

    Parameters
    ----------
    models
        What to draw.
    cost
        A key of `COSTS`.
    split, searches
        Whose WER. There is a panel for each search.
    benchmark
        For "speed": what scripts/benchmarks/chunking.py wrote.
    folder
        Where the kept files are.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file lacks a number, or the runs do not compare.
    """
    kept = {model.name: read_kept(folder, model.name) for model in models}
    entries, wers = {}, {}
    for search in searches:
        found = {name: _entries(name, results, split, search) for name, results in kept.items()}
        _require_alike(kept, found)
        entries[search] = found
        wers[search] = {name: _over_seeds([entry.wer.rate for entry in of]) for name, of in found.items()}
    cases = _read_cases(benchmark) if benchmark else {}
    if cost == "speed" and [model for model in models if not model.case] != [models[0]]:
        raise ValueError("the first model is the flat one; every other is NAME@SPLIT:N=LABEL.")
    panels = []
    for search in searches:
        if cost == "speed":
            costs = {model.name: _relative_speed(model, cases, search) for model in models}
        else:
            costs = {name: _over_seeds(_frames(name, of)) for name, of in entries[search].items()}
        points = (Point(model, costs[model.name], wers[search][model.name]) for model in models)
        panels.append(Panel(f"{search} search", tuple(points), has_goal=cost == "speed"))
    return panels


def _read_cases(benchmark: Path) -> dict[str, Any]:
    try:
        return json.loads(benchmark.read_text(encoding="utf-8"))["cases"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{benchmark} is no file of scripts/benchmarks/chunking.py --json.") from error


def _relative_speed(model: Model, cases: Mapping[str, Any], search: str) -> Spread:
    """Return the flat encoder's time over the model's, from the cases of chunking.py."""
    if not model.case:
        return Spread(1.0, 1.0, 1.0)
    split, _, ratio = model.case.partition(":")
    found = [ratios for case, ratios in cases.items() if case.endswith(f", {split}, N={ratio}, chunks")]
    if len(found) != 1 or search not in found[0]:
        raise ValueError(f"the benchmark has {len(found)} cases of {model.case} with the search {search}.")
    speed = found[0][search]
    return Spread(speed["median"], speed["low"], speed["high"])


def _over_seeds(values: Sequence[float]) -> Spread:
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean, mean - deviation, mean + deviation, len(values))


def _entries(name: str, results: Sequence[Results], split: str, search: str) -> list[Entry]:
    found = [result.evaluation.get(split, {}).get(search) for result in results]
    entries = [entry for entry in found if entry is not None]
    if len(entries) < len(found):
        raise ValueError(f"{name} has no WER of {split} with the search {search}.")
    return entries


def _require_alike(kept: Mapping[str, Sequence[Results]], entries: Mapping[str, Sequence[Entry]]) -> None:
    """Refuse models that were not trained or not scored on the same data."""
    seen: dict[tuple, str] = {}
    for name, results in kept.items():
        for result, entry in zip(results, entries[name], strict=True):
            training = result.training
            if training is None:
                raise ValueError(f"{name} was not trained.")
            seen[tuple(training.train_splits), training.epochs, entry.wer.sentences, entry.wer.tokens] = name
    if len(seen) > 1:
        first, second, *_ = seen.values()
        raise ValueError(
            f"{first} and {second} do not compare: their training data, epochs or test utterances differ."
        )


def _frames(name: str, entries: Sequence[Entry]) -> list[float]:
    kept = [[stage.kept for stage in entry.stages] for entry in entries]
    if any(not value for stages in kept for value in stages):
        raise ValueError(f"{name} does not say what its chunks keep.")
    return [1 / math.prod(value for value in stages if value) for stages in kept]


# ---- the picture ------------------------------------------------------------------------------------------


def describe(panels: Sequence[Panel], unit: str) -> str:
    """Return the numbers of the figure as sentences."""
    return " ".join(
        f"{panel.title}, {point.model.title}: WER {_format_wer(point.wer)}, {unit} {_format_cost(point.x)}."
        for panel in panels
        for point in panel.points
    )


def _format_wer(wer: Spread) -> str:
    if wer.seeds == 1:
        return f"{wer.value:.2f}% (1 seed)"
    return f"{wer.value:.2f} \u00b1 {wer.high - wer.value:.2f}% ({wer.seeds} seeds)"


def _format_cost(cost: Spread) -> str:
    value, low, high = (f"{number:.3g}" for number in (cost.value, cost.low, cost.high))
    return value if low == high else f"{value} ({low} to {high})"


def draw(panels: Sequence[Panel], *, ylabel: str, xlabel: str, theme: str) -> Figure:
    """Draw the panels side by side with one scale of WER, in the colours of a theme, "light" or "dark".

    Raises
    ------
    ValueError
        If there are more models than colours.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colours, names = COLOURS[theme], list(dict.fromkeys(point.model.label for point in panels[0].points))
    if len(names) > len(MODEL_COLOURS[theme]):
        raise ValueError(f"a figure has at most {len(MODEL_COLOURS[theme])} models, not {len(names)}.")
    colour_of = dict(zip(names, MODEL_COLOURS[theme], strict=False))
    look = {
        "font.size": 10.5,
        "figure.facecolor": colours["page"],
        "axes.facecolor": colours["page"],
        "axes.edgecolor": colours["line"],
        "axes.labelcolor": colours["text"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": colours["text"],
        "xtick.color": colours["soft"],
        "ytick.color": colours["soft"],
        "grid.color": colours["line"],
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(8.4, 4.0), layout="constrained")
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_points(axes, panel, colour_of)
            if panel.has_goal:
                _draw_goal(axes, panel.points[0], colours)
            axes.set_title(panel.title, loc="left", fontsize=11.5, fontweight="bold")
            axes.set_xlabel(xlabel)
            axes.margins(0.14)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(alpha=0.5)
            axes.tick_params(length=0)
        all_axes[0].set_ylabel(ylabel)
        figure.draw_without_rendering()  # labels need the final places
        figure.set_layout_engine("none")
        for axes, panel in zip(all_axes, panels, strict=True):
            write_labels(axes, _labels(panel, colour_of))
    return figure


def _draw_points(axes: Axes, panel: Panel, colour_of: Mapping[str, str]) -> None:
    for label, colour in reversed(colour_of.items()):  # the first model lies on top
        points = [point for point in panel.points if point.model.label == label]
        axes.errorbar(
            [point.x.value for point in points],
            [point.wer.value for point in points],
            xerr=_whiskers([point.x for point in points]),
            yerr=_whiskers([point.wer for point in points]),
            fmt="o-",
            color=colour,
            linewidth=1.6,
            elinewidth=1.2,
            capsize=2.5,
            markersize=6,
        )


def _draw_goal(axes: Axes, first: Point, colours: Mapping[str, str]) -> None:
    """Shade where the goal is: at most the first model's WER, at GOAL_SPEED or more."""
    from matplotlib.patches import Rectangle

    right = max(axes.get_xlim()[1], GOAL_SPEED + 0.3)
    bottom = min(axes.get_ylim()[0], first.wer.value - 1.5)
    axes.set_xlim(right=right)
    axes.set_ylim(bottom=bottom)
    look = {"color": colours["soft"], "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 0}
    axes.hlines(first.wer.value, first.x.value + 0.1, right, **look)  # right of the first model's label
    place = (GOAL_SPEED, bottom), right - GOAL_SPEED, first.wer.value - bottom
    axes.add_patch(Rectangle(*place, color=colours["soft"], alpha=0.18, linewidth=0, zorder=0))
    axes.text(
        (GOAL_SPEED + right) / 2,
        first.wer.value - 0.1,
        f"goal: {first.model.label}'s WER at {GOAL_SPEED} times its speed",
        ha="center",
        va="top",
        color=colours["soft"],
        fontsize=9.5,
    )


def _whiskers(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[one.value - one.low for one in spreads], [one.high - one.value for one in spreads]]


def _labels(panel: Panel, colour_of: Mapping[str, str]) -> list[Label]:
    """Return the labels of the points. On a line, only the last one has the line's name."""
    last = {point.model.label: point for point in panel.points}
    labels = []
    for point in panel.points:
        model = point.model
        named = point is last[model.label]
        labels.append(
            Label(
                model.title if named else model.point,
                line=model.label,
                x=(point.x.low, point.x.value, point.x.high),
                y=(point.wer.low, point.wer.value, point.wer.high),
                colour=colour_of[model.label],
                bold=named,
            )
        )
    return labels


def as_svg(figure: Figure, *, title: str, description: str, command: str) -> str:
    """Return the figure as SVG that says what it shows; the same figure is the same text."""
    import matplotlib

    stream = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hmamba_asr"}):
        figure.savefig(stream, format="svg", metadata={**none, "Title": title})
    text = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, stream.getvalue())
    facts = f"<desc>{escape(description)}</desc>\n <metadata>{escape(command)}</metadata>"
    text = re.sub(r" <metadata>.*?</metadata>\n", "", text, flags=re.DOTALL)  # the title again
    return text.replace("</title>", f"</title>\n {facts}", 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cost", choices=COSTS, help="the x axis")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=LABEL", help="see above")
    parser.add_argument("--split", required=True, help="the test split of the WER")
    parser.add_argument("--search", nargs="+", required=True, help="the searches")
    parser.add_argument("--benchmark", type=Path, help="for speed: a file of benchmarks/chunking.py")
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help="folder of the kept files")
    parser.add_argument("--output", type=Path, required=True, help="path without _light.svg and _dark.svg")
    given = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(given)
    try:
        if (options.cost == "speed") != bool(options.benchmark):
            raise ValueError("speed needs --benchmark, and only speed has it.")
        panels = find_panels(
            [parse_model(text) for text in options.models],
            cost=options.cost,
            split=options.split,
            searches=options.search,
            benchmark=options.benchmark,
            folder=options.results,
        )
        xlabel, unit = COSTS[options.cost]
        xlabel = xlabel.format(panels[0].points[0].model.label)
        searches = "" if len(options.search) > 1 else f", {options.search[0]} search"
        ylabel = f"WER (%) of {options.split}{searches}\n(lower is better)"
        for theme in COLOURS:
            svg = as_svg(
                draw(panels, ylabel=ylabel, xlabel=xlabel, theme=theme),
                title=f"WER against {unit}",
                description=describe(panels, unit),
                command=shlex.join(["python", "scripts/plot_tradeoff.py", *given]),
            )
            path = Path(f"{options.output}_{theme}.svg")
            path.write_text(svg, encoding="utf-8")
            print(path)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
