"""``hmamba-asr transcribe``: transcribe recordings with a trained run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

HELP = "transcribe recordings with a trained run"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr transcribe``."""
    parser = commands.add_parser(
        "transcribe",
        help=HELP,
        description=f"{HELP}. Each recording gives one line: the file, a tab, the words. With --json it"
        " gives one object, with the times of the words.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of a training run")
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="mono recordings at the model's sample rate"
    )
    parser.add_argument(
        "--search", metavar="NAME", help="one of the YAML's test_searches (default: its last)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--json", action="store_true", help="also give start, end and confidence of each word, by the CTC"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the transcript of each recording."""
    from hmamba_asr.inference.recogniser import Recogniser

    recogniser = Recogniser(args.folder, search=args.search, device=args.device)
    for path in args.audio:
        result = recogniser.transcribe(path, timestamps=args.json)
        if args.json:
            print(json.dumps({"audio": path, **dataclasses.asdict(result)}))
        else:
            print(f"{path}\t{result.text}")
    return 0
