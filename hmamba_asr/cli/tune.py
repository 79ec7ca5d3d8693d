"""``hmamba-asr tune``: find the weights of a beam search."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "find the weights of a trained run's beam search"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr tune``."""
    parser = commands.add_parser(
        "tune",
        help=HELP,
        description=f"{HELP}. It prints the WER of a development split for each weight of the CTC, of the"
        " language model, or each pair. It changes nothing: the README says how to evaluate a run with"
        " other weights. Do not choose weights on a split that you will report.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of a trained run")
    parser.add_argument("--split", required=True, metavar="SPLIT", help="development split of the run")
    parser.add_argument(
        "--ctc",
        nargs="+",
        type=float,
        default=[],
        metavar="WEIGHT",
        help="CTC weights to try, 0 to 1; the decoder has the rest",
    )
    parser.add_argument(
        "--lm",
        nargs="+",
        type=float,
        default=[],
        metavar="WEIGHT",
        help="for a run evaluated with a language model (--lm_folder)",
    )
    parser.add_argument(
        "--search", metavar="NAME", help="one of the YAML's test_searches (default: its last)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the WER of each setting."""
    from hmamba_asr.evaluation.tuning import render_weights, tune_weights

    found = tune_weights(
        args.folder,
        split=args.split,
        ctc=args.ctc,
        lm=args.lm,
        search=args.search,
        device=args.device,
        progress=not args.json,
    )
    print(json.dumps(found) if args.json else render_weights(found))
    return 0
