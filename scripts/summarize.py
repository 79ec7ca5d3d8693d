"""Render the results files into the table of TRAINING_SUMMARY.md.

    python scripts/summarize.py [FOLDER_OR_FILE ...] [--summary TRAINING_SUMMARY.md] [--check]

Results files are called results.json (what a run writes) or NAME.results.json (kept copies;
NAME.SEED.results.json where a row has several seeds). Every YAML of hparams/ has a row, which is empty until
a results file has its name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmamba_asr.evaluation.results import load_results
from hmamba_asr.report.results_table import render_table
from hmamba_asr.report.summary import update_summary

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_RESULTS = ROOT / "recipes" / "librispeech" / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Render results files into TRAINING_SUMMARY.md.")
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FOLDER_OR_FILE",
        help=f"results files, or folders that hold them (default: {DEFAULT_RESULTS.relative_to(ROOT)})",
    )
    parser.add_argument(
        "--summary",
        type=Path,
        default=ROOT / "TRAINING_SUMMARY.md",
        help="Markdown file with the results markers (default: TRAINING_SUMMARY.md of this repository)",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the table is stale")
    options = parser.parse_args(arguments)

    # A repository without kept results has no such folder.
    paths = options.paths or [path for path in (DEFAULT_RESULTS,) if path.exists()]
    expected = [path.stem for path in (ROOT / "hparams").glob("*.yaml")]
    try:
        results = load_results(paths)
        update_summary(options.summary, results, check=options.check, expected=expected)
    except (OSError, ValueError) as error:
        print(f"summarize: {error}", file=sys.stderr)
        return 1
    print(render_table(results, expected))
    return 0


if __name__ == "__main__":
    sys.exit(main())
