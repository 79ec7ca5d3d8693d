"""``hmamba-asr demo``: build the demo corpus."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "build the demo corpus of synthetic speech"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr demo``."""
    parser = commands.add_parser(
        "demo",
        help=HELP,
        description=f"{HELP}. It has LibriSpeech's layout and the splits train, dev-clean, test-clean and"
        " test-other; the same seed gives the same corpus. Needs the extra: pip install 'hmamba-asr[demo]'.",
    )
    parser.add_argument("--dest", required=True, metavar="DIR", help="folder for the corpus")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: a fixed one)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Build the corpus and print its folder."""
    from hmamba_asr.data.demo import build_demo_corpus  # needs the speech synthesizer of the demo extra

    print(build_demo_corpus(dest=args.dest, **({} if args.seed is None else {"seed": args.seed})))
    return 0
