"""``hmamba-asr boundaries``: compare chunk boundaries with phones, words and each other."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hmamba_asr.system.run_layout import RunLayout

HELP = "compare a run's chunks with phones and words, and with those of changed recordings"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Declare the arguments of ``hmamba-asr boundaries``."""
    parser = commands.add_parser(
        "boundaries",
        help=HELP,
        description=f"{HELP}. With --alignments, it compares them with forced alignments: ID.TextGrid files"
        " of test utterances with the tiers phones and words, read by praatio (pip install"
        " 'hmamba-asr[report]'). Without, it compares them with the tokens and words of the reference where"
        " a CTC has them: the run's own CTC, or another run's with --aligner. --noise and --speed measure"
        " how stable the boundaries are.",
    )
    parser.add_argument(
        "folder", metavar="RUN", help="output folder of an evaluated run with a chunking encoder"
    )
    parser.add_argument("--split", required=True, metavar="SPLIT", help="one of its test splits")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--alignments", metavar="DIR", help="folder with the TextGrids, also in subfolders")
    source.add_argument(
        "--aligner", metavar="RUN", help="output folder of the run whose CTC aligns (default: RUN itself)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[],
        metavar="DB",
        help="add white noise at these SNRs in dB",
    )
    parser.add_argument(
        "--speed",
        type=float,
        nargs="+",
        default=[],
        metavar="FACTOR",
        help="play the recordings at these speeds, such as 0.9",
    )
    parser.add_argument(
        "--utterances",
        type=int,
        default=50,
        metavar="N",
        help="how many, evenly spaced by duration, for CTC, noise and speed (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of noise and random boundaries (default: %(default)s)",
    )
    parser.add_argument(
        "--stage",
        type=int,
        default=0,
        metavar="N",
        help="chunking stage; the outermost is 0 (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the comparison, and the stability if a change of the recordings is asked for."""
    from hmamba_asr.evaluation.boundary_agreement import describe_boundaries, render_boundaries
    from hmamba_asr.evaluation.results import plain
    from hmamba_asr.evaluation.segmentation import read_segmentations
    from hmamba_asr.evaluation.textgrid import read_textgrids

    chunks = read_segmentations(RunLayout(args.folder).chunks(args.split))
    sample = {"split": args.split, "utterances": args.utterances, "device": args.device}
    source: dict[str, Any] = {"kind": "TextGrid", "folder": args.alignments}
    if args.alignments:
        alignments = read_textgrids(args.alignments, [item.id for item in chunks])
    else:
        from hmamba_asr.evaluation.ctc_alignment import ctc_alignments

        aligner = args.aligner or args.folder
        by_ctc = ctc_alignments(aligner, args.folder, **sample)
        alignments = by_ctc.alignments
        source = {"kind": "CTC", "folder": aligner, "chunk_rate": by_ctc.chunk_rate}
    found = {
        "source": source,
        **describe_boundaries(chunks, alignments, stage=args.stage, seed=args.seed),
    }
    if args.noise or args.speed:
        from hmamba_asr.evaluation.stability import measure_stability

        found["stability"] = measure_stability(
            args.folder, **sample, noise=args.noise, speed=args.speed, stage=args.stage, seed=args.seed
        )
    if args.json:
        print(json.dumps(plain(found, "boundaries")))
        return 0
    print(render_boundaries(found))
    if "stability" in found:
        from hmamba_asr.evaluation.stability import render_stability

        print("", render_stability(found["stability"]), sep="\n")
    return 0
