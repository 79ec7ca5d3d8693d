"""``hmamba-asr download``: fetch corpora."""

from __future__ import annotations

import argparse
from typing import Any

from hmamba_asr.data.download import ARCHIVES, download
from hmamba_asr.data.subsets import SUBSETS

HELP = "download LibriSpeech, Mini LibriSpeech or AN4"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr download``."""
    parser = commands.add_parser(
        "download",
        help=HELP,
        description=f"{HELP}. LibriSpeech's archives are checked by MD5 and become DIR/LibriSpeech/SPLIT."
        " A small split (-mini) is made from the split that contains it. If that one is missing, it is"
        " downloaded first. AN4 becomes DIR/an4-train, DIR/an4-dev and DIR/an4-test. After an interruption,"
        " the same command goes on where it stopped.",
    )
    parser.add_argument(
        "splits", nargs="+", metavar="SPLIT", help=f"any of: {', '.join([*ARCHIVES, *SUBSETS, 'an4'])}"
    )
    parser.add_argument("--dest", required=True, metavar="DIR", help="folder for the corpus")
    parser.add_argument(
        "--base_url",
        default="https://www.openslr.org/resources/12",
        metavar="URL",
        help="folder of the archives, to use a mirror (default: %(default)s)",
    )
    parser.add_argument(
        "--retries", type=int, default=5, metavar="N", help="failed attempts in a row (default: %(default)s)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Download the splits and print their folders."""
    folders = download(splits=args.splits, dest=args.dest, base_url=args.base_url, retries=args.retries)
    for folder in folders.values():
        print(folder)
    return 0
