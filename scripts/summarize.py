"""Print tables of results: accuracy, speed and settings of every model.

    python scripts/summarize.py [FOLDER_OR_FILE ...]
    python scripts/summarize.py [FOLDER_OR_FILE ...] --write [FILE] [--drop ROW ...]
    python scripts/summarize.py [FOLDER_OR_FILE ...] --check [FILE]

Printing changes no file. --write puts the tables between the markers of TRAINING_SUMMARY.md or of another
Markdown file, and refuses to lose a row that stands there, unless --drop names it.

Results files are called results.json (what a run writes) or NAME.results.json (kept copies;
NAME.SEED.results.json where a row has several seeds). Without any, the tables are those of the kept results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmamba_asr.evaluation.results import load_files
from hmamba_asr.report.blocks import to_text
from hmamba_asr.report.results_table import describe_results
from hmamba_asr.report.summary import check_summary, write_summary

ROOT = Path(__file__).resolve().parents[1]
KEPT_RESULTS = ROOT / "recipes" / "librispeech" / "results"
SUMMARY = ROOT / "TRAINING_SUMMARY.md"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Print tables of results, or write them into a Markdown file."
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FOLDER_OR_FILE",
        help=f"results files, or folders that hold them (default: {KEPT_RESULTS.relative_to(ROOT)})",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=SUMMARY,
        metavar="FILE",
        help=f"write the tables between the results markers of a Markdown file (default: {SUMMARY.name})",
    )
    action.add_argument(
        "--check",
        nargs="?",
        type=Path,
        const=SUMMARY,
        metavar="FILE",
        help="change nothing; fail if --write would change the file",
    )
    parser.add_argument(
        "--drop", nargs="+", default=[], metavar="ROW", help="rows that --write may take out of the file"
    )
    options = parser.parse_args(arguments)
    if options.drop and not options.write:
        parser.error("--drop goes with --write")

    try:
        results = load_files(options.paths or [KEPT_RESULTS])
        # Of a YAML that has no results the kept tables say so.
        expected = [] if options.paths else [path.stem for path in (ROOT / "hparams").glob("*.yaml")]
        if options.write:
            write_summary(options.write, results, expected=expected, drop=options.drop)
            print(f"The tables are in {options.write}.")
        elif options.check:
            check_summary(options.check, results, expected=expected)
        else:
            print(to_text(describe_results(results, expected)))
    except (OSError, ValueError) as error:
        print(f"summarize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
