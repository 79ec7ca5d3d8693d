"""``hmamba-asr efficiency``: measure the speed of a trained run."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "measure how fast a trained run recognises"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr efficiency``."""
    parser = commands.add_parser(
        "efficiency",
        help=HELP,
        description=f"{HELP}. It measures the RTF one by one and batched, audio hours per hour, the time to"
        " the first token and memory, on test utterances evenly spaced over their durations. The samples are"
        " in memory, and a first pass is not timed. It also writes RUN/efficiency.json for the report.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of an evaluated run")
    parser.add_argument("--split", metavar="SPLIT", help="one of its test splits (default: the first)")
    parser.add_argument(
        "--search", nargs="+", metavar="NAME", help="of the YAML's test_searches (default: those evaluated)"
    )
    parser.add_argument(
        "--utterances", type=int, default=16, metavar="N", help="utterances (default: %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=8,
        metavar="N",
        help="utterances in a batch, for the batched figures (default: %(default)s)",
    )
    parser.add_argument(
        "--passes",
        type=int,
        default=3,
        metavar="N",
        help="timed passes, after one to warm up (default: %(default)s)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the measurements."""
    from hmamba_asr.evaluation.speed_of_run import measure_run, render_run

    found = measure_run(
        args.folder,
        split=args.split,
        searches=args.search,
        device=args.device,
        utterances=args.utterances,
        batch=args.batch,
        passes=args.passes,
    )
    print(json.dumps(found) if args.json else render_run(found))
    return 0
