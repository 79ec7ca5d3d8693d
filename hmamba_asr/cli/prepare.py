"""``hmamba-asr prepare``: check a corpus and write its manifests."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "check a corpus in LibriSpeech's layout and write its manifests"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr prepare``."""
    parser = commands.add_parser(
        "prepare",
        help=HELP,
        description=f"{HELP}. Every recording is decoded once. Everything that is wrong is reported together."
        " A second run with an unchanged corpus reuses the manifests.",
    )
    parser.add_argument(
        "--data_folder", required=True, metavar="DIR", help="folder with SPLIT/ or LibriSpeech/SPLIT/ in it"
    )
    parser.add_argument("--splits", required=True, nargs="+", metavar="SPLIT", help="names of split folders")
    parser.add_argument(
        "--manifest_folder", required=True, metavar="DIR", help="where SPLIT.csv and problems.txt are written"
    )
    parser.add_argument(
        "--on_bad_data",
        choices=("refuse", "skip"),
        default="refuse",
        help="with bad data: stop, or warn and leave it out (default: %(default)s)",
    )
    parser.add_argument(
        "--sample_rate",
        type=int,
        default=16000,
        metavar="HZ",
        help="rate of every recording (default: %(default)s)",
    )
    parser.add_argument(
        "--min_duration",
        type=float,
        default=0.1,
        metavar="S",
        help="leave shorter recordings out (default: %(default)s)",
    )
    parser.add_argument("--max_duration", type=float, metavar="S", help="leave longer recordings out")
    parser.add_argument("--num_workers", type=int, metavar="N", help="decoding threads (default: CPU cores)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the manifests and print their paths."""
    from hmamba_asr.data.librispeech import prepare_manifests

    manifests = prepare_manifests(
        data_folder=args.data_folder,
        splits=args.splits,
        manifest_folder=args.manifest_folder,
        sample_rate=args.sample_rate,
        on_bad_data=args.on_bad_data,
        min_duration=args.min_duration,
        max_duration=args.max_duration,
        num_workers=args.num_workers,
    )
    for path in manifests.values():
        print(path)
    return 0
