"""``hmamba-asr report``: write one HTML page about runs."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "write one HTML page about runs"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr report``."""
    parser = commands.add_parser(
        "report",
        help=HELP,
        description=f"{HELP}. The page needs no network: it holds its charts and recordings. Runs that differ"
        " only in the seed are one model. The other models are tested against the first one. Needs matplotlib"
        " and Jinja2 (pip install 'hmamba-asr[report]').",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of evaluated runs")
    parser.add_argument(
        "--output", "-o", default="report.html", metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument("--title", default="Speech recognition runs", help="title of the page")
    parser.add_argument(
        "--alignments",
        metavar="DIR",
        help="TextGrids of test utterances, to set chunks beside phones and words",
    )
    parser.add_argument(
        "--efficiency",
        metavar="FILE",
        help="what scripts/benchmarks/efficiency.py --json wrote, to draw speed by length",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from hmamba_asr.report.page import write_report

    write_report(
        args.output, args.runs, title=args.title, alignments=args.alignments, efficiency=args.efficiency
    )
    print(args.output)
    return 0
