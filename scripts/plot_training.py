#!/usr/bin/env python3
"""Draw the training curves of one or more runs into a picture.

    python scripts/plot_training.py RUN_FOLDER [RUN_FOLDER ...] --output curves.png

The upper chart has training and validation loss by epoch, the lower one the validation WER. A run is an
output folder of train.py, or a train_log.jsonl in it. Needs matplotlib: pip install -e ".[plots]".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmamba_asr.report.charts import draw_training
from hmamba_asr.report.training_log import read_epochs


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--output", type=Path, default=Path("curves.png"))
    parser.add_argument("--names", nargs="+", help="what to call the runs (default: their folders)")
    options = parser.parse_args(argv)
    names = options.names or [run.parent.name if run.name.isdigit() else run.stem for run in options.runs]
    try:
        if len(set(names)) != len(options.runs):
            raise ValueError("--names needs a different name for each run.")
        figure = draw_training(
            {name: read_epochs(run) for name, run in zip(names, options.runs, strict=True)}
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figure.savefig(options.output, dpi=110)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
