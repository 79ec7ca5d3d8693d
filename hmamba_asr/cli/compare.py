"""``hmamba-asr compare``: compare two runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "compare two runs"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr compare``."""
    parser = commands.add_parser(
        "compare",
        help=HELP,
        description=f"{HELP}. It prints what differs in their YAMLs and, for each split and search, which"
        " run makes fewer errors and whether the difference is significant.",
    )
    parser.add_argument("a", metavar="A", help="output folder of an evaluated run")
    parser.add_argument("b", metavar="B", help="output folder of another evaluated run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    from hmamba_asr.evaluation.compare import compare, render_comparison
    from hmamba_asr.evaluation.finished_run import load_run

    found = compare(load_run(args.a), load_run(args.b))
    print(json.dumps(found) if args.json else render_comparison(found))
    return 0
