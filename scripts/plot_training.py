#!/usr/bin/env python3
"""Draw the training curves of one or more runs into a picture.

    python scripts/plot_training.py RUN_FOLDER [RUN_FOLDER ...] --output curves.png

Above: training and validation loss by epoch; below: validation WER. A run is an output folder of train.py (or a train_log.jsonl
in it). Needs matplotlib: pip install -e ".[plots]".
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def read_epochs(run: Path) -> list[dict]:
    """The epoch records of a run's log, in order.

    Raises
    ------
    ValueError
        If there is no log, or no epoch in it.
    """
    file = run / "train_log.jsonl" if run.is_dir() else run
    if not file.is_file():
        raise ValueError(f"there is no {file}; give the output folder of a training run.")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    epochs = [record for record in records if record["kind"] == "epoch"]
    if not epochs:
        raise ValueError(f"{file} has no finished epoch yet.")
    return epochs


def draw(runs: dict[str, list[dict]], output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    figure, (losses, wers) = plt.subplots(2, 1, figsize=(7, 6.5), sharex=True, layout="constrained")
    for index, (name, epochs) in enumerate(runs.items()):
        color = f"C{index}"
        x = [record["epoch"] for record in epochs]
        losses.plot(x, [record["loss"] for record in epochs], color=color, linestyle="--", label=f"{name}: training")
        losses.plot(x, [record["valid_loss"] for record in epochs], color=color, label=f"{name}: validation")
        measured = [(record["epoch"], record["valid_wer"]) for record in epochs if record.get("valid_wer") is not None]
        if measured:
            wers.plot(*zip(*measured, strict=True), color=color, marker="o", markersize=3)
            best = min(measured, key=lambda pair: pair[1])
            wers.annotate(f"{best[1]:.1f}%", best, xytext=(0, -13), textcoords="offset points", ha="center", color=color)
    losses.set(ylabel="loss per utterance (nats)", yscale="log", title=", ".join(runs))
    losses.legend()
    wers.set(xlabel="epoch", ylabel="validation WER (%), greedy", ylim=(0, None))
    for axes in (losses, wers):
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--output", type=Path, default=Path("curves.png"))
    parser.add_argument("--names", nargs="+", help="what to call the runs (default: their folders)")
    options = parser.parse_args(argv)
    names = options.names or [run.parent.name if run.name.isdigit() else run.stem for run in options.runs]
    try:
        if len(set(names)) != len(options.runs):
            raise ValueError("--names needs a different name for each run.")
        draw({name: read_epochs(run) for name, run in zip(names, options.runs, strict=True)}, options.output)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
