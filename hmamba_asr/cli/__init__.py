"""The command ``hmamba-asr``: one subcommand, one function.

A subcommand is a pair: ``_add_<name>`` describes its arguments, ``_run_<name>`` does the work and returns the
exit status. Errors that the user can mend are one message on stderr and status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hmamba_asr.data.download import ARCHIVES, download
from hmamba_asr.data.librispeech import prepare_manifests
from hmamba_asr.system.memory import keep_freed_memory

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0 done, 2 a user's error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="hmamba-asr", description="Speech recognition with Mamba encoders.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_download,
        _add_prepare,
        _add_demo,
        _add_transcribe,
        _add_tune,
        _add_compare,
        _add_boundaries,
        _add_efficiency,
        _add_report,
    ):
        add(commands)
    args = parser.parse_args(argv)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:  # among them CorpusError, DownloadError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130


def _add_command(commands: Any, *, name: str, run: Run, text: str, details: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text}. {details}")
    parser.set_defaults(run=run)
    return parser


def _add_download(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="download",
        run=_run_download,
        text="download LibriSpeech or Mini LibriSpeech",
        details="Each archive is checked by MD5 and unpacked to DIR/LibriSpeech/SPLIT."
        " Interrupted? Run the same command again: it goes on where it stopped.",
    )
    parser.add_argument("splits", nargs="+", metavar="SPLIT", help=f"any of: {', '.join(ARCHIVES)}")
    parser.add_argument("--dest", required=True, metavar="DIR", help="where LibriSpeech/SPLIT is to appear")
    parser.add_argument(
        "--base_url",
        default="https://www.openslr.org/resources/12",
        metavar="URL",
        help="folder of the archives, to use a mirror (default: %(default)s)",
    )
    parser.add_argument(
        "--retries", type=int, default=5, metavar="N", help="failed attempts in a row (default: 5)"
    )


def _run_download(args: argparse.Namespace) -> int:
    folders = download(splits=args.splits, dest=args.dest, base_url=args.base_url, retries=args.retries)
    for folder in folders.values():
        print(folder)
    return 0


def _add_prepare(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="prepare",
        run=_run_prepare,
        text="check a corpus in LibriSpeech's layout and write its manifests",
        details="Every recording is decoded once. Everything that is wrong is reported together."
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
        "--sample_rate", type=int, default=16000, metavar="HZ", help="of every recording (default: 16000)"
    )
    parser.add_argument(
        "--min_duration", type=float, default=0.1, metavar="S", help="leave shorter ones out (default: 0.1)"
    )
    parser.add_argument("--max_duration", type=float, metavar="S", help="leave longer ones out")
    parser.add_argument("--num_workers", type=int, metavar="N", help="decoding threads (default: CPU cores)")


def _run_prepare(args: argparse.Namespace) -> int:
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


def _add_demo(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="demo",
        run=_run_demo,
        text="build the demo corpus of synthetic speech",
        details="It has LibriSpeech's layout and the splits train, dev-clean, test-clean and test-other;"
        " the same seed gives the same corpus. Needs the extra: pip install 'hmamba-asr[demo]'.",
    )
    parser.add_argument("--dest", required=True, metavar="DIR", help="folder for the corpus")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: the corpus' own)")


def _run_demo(args: argparse.Namespace) -> int:
    from hmamba_asr.data.demo import build_demo_corpus  # needs the speech synthesizer of the demo extra

    chosen = {} if args.seed is None else {"seed": args.seed}
    print(build_demo_corpus(dest=args.dest, **chosen))
    return 0


def _add_transcribe(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="transcribe",
        run=_run_transcribe,
        text="write down what recordings say",
        details="A line for each: the file, a tab, the words. With --json an object for each, with the words' times.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of a training run")
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="recordings, mono, at the model's sample rate"
    )
    parser.add_argument(
        "--search", metavar="NAME", help="one of the YAML's test_searches (default: its last)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--json", action="store_true", help="with start, end and confidence of each word, by the CTC"
    )


def _run_transcribe(args: argparse.Namespace) -> int:
    from hmamba_asr.inference.recogniser import Recogniser

    recogniser = Recogniser(args.folder, search=args.search, device=args.device)
    for path in args.audio:
        result = recogniser.transcribe(path, timestamps=args.json)
        print(
            json.dumps({"audio": path, **dataclasses.asdict(result)})
            if args.json
            else f"{path}\t{result.text}"
        )
    return 0


def _add_tune(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="tune",
        run=_run_tune,
        text="find the weights of a trained run's beam search",
        details="WER of a development split for each weight of the CTC, of the language model, or each pair. Nothing is changed:"
        " the README says how a run is evaluated with them. Do not choose them on what you will report.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of a trained run")
    parser.add_argument("--split", required=True, metavar="SPLIT", help="one of its splits, not for training")
    parser.add_argument(
        "--ctc", nargs="+", type=float, default=[], metavar="WEIGHT", help="0 to 1; the decoder has the rest"
    )
    parser.add_argument(
        "--lm",
        nargs="+",
        type=float,
        default=[],
        metavar="WEIGHT",
        help="of a run evaluated with a language model (--lm_folder)",
    )
    parser.add_argument(
        "--search", metavar="NAME", help="one of the YAML's test_searches (default: its last)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run_tune(args: argparse.Namespace) -> int:
    from hmamba_asr.evaluation.tuning import render_weights, tune_weights

    settings = {"search": args.search, "device": args.device, "progress": not args.json}
    found = tune_weights(args.folder, split=args.split, ctc=args.ctc, lm=args.lm, **settings)
    print(json.dumps(found) if args.json else render_weights(found))
    return 0


def _add_compare(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="compare",
        run=_run_compare,
        text="set two runs side by side",
        details="What differs in their YAMLs; for each split and search, which makes fewer errors and if that is significant.",
    )
    parser.add_argument("a", metavar="A", help="output folder of an evaluated run")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run_compare(args: argparse.Namespace) -> int:
    from hmamba_asr.evaluation.compare import compare, load_run, render_comparison

    found = compare(load_run(args.a), load_run(args.b))
    print(json.dumps(found) if args.json else render_comparison(found))
    return 0


def _add_boundaries(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="boundaries",
        run=_run_boundaries,
        text="compare a run's chunks with phones and words, and with those of changed recordings",
        details="With --alignments, against forced alignments: ID.TextGrid files of test utterances with the tiers phones and"
        " words, read by praatio (pip install 'hmamba-asr[report]'). Without, against the reference's tokens and words where a"
        " CTC has them: the run's own, or another's with --aligner. --noise and --speed measure how stable the boundaries are.",
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
        "--noise", type=float, nargs="+", default=[], metavar="DB", help="white noise at these SNRs, in dB"
    )
    parser.add_argument(
        "--speed",
        type=float,
        nargs="+",
        default=[],
        metavar="FACTOR",
        help="played at these speeds, such as 0.9",
    )
    parser.add_argument(
        "--utterances",
        type=int,
        default=50,
        metavar="N",
        help="for CTC, noise and speed, evenly spaced by duration (default: 50)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of noise and random boundaries (default: 0)"
    )
    parser.add_argument(
        "--stage", type=int, default=0, metavar="N", help="chunking stage, the outermost is 0 (default: 0)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run_boundaries(args: argparse.Namespace) -> int:
    from hmamba_asr.evaluation import segmentation as boundaries
    from hmamba_asr.evaluation.results import plain

    chunks = boundaries.read_chunks(Path(args.folder) / "test" / args.split / "chunks.jsonl")
    sample = {"split": args.split, "utterances": args.utterances, "device": args.device}
    source: dict[str, Any] = {"kind": "TextGrid", "folder": args.alignments}
    if args.alignments:
        alignments = boundaries.read_alignments(args.alignments, [item.id for item in chunks])
    else:
        from hmamba_asr.evaluation.probing import ctc_alignments

        aligner = args.aligner or args.folder
        found_by_ctc = ctc_alignments(aligner, args.folder, **sample)
        alignments = found_by_ctc.alignments
        source = {"kind": "CTC", "folder": aligner, "chunk_rate": found_by_ctc.chunk_rate}
    found = {
        "source": source,
        **boundaries.describe_boundaries(chunks, alignments, stage=args.stage, seed=args.seed),
    }
    if args.noise or args.speed:
        from hmamba_asr.evaluation.probing import measure_stability

        changes = {"noise": args.noise, "speed": args.speed, "stage": args.stage, "seed": args.seed}
        found["stability"] = measure_stability(args.folder, **sample, **changes)
    if args.json:
        print(json.dumps(plain(found, "boundaries")))
        return 0
    print(boundaries.render_boundaries(found))
    if "stability" in found:
        from hmamba_asr.evaluation.stability import render_stability

        print("", render_stability(found["stability"]), sep="\n")
    return 0


def _add_efficiency(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="efficiency",
        run=_run_efficiency,
        text="measure how fast a trained run recognises",
        details="RTF one by one and batched, audio hours per hour, time to the first token, memory, on test utterances evenly"
        " spaced over their durations, samples in memory, warm. Also written to RUN/efficiency.json, which the report shows.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of an evaluated run")
    parser.add_argument("--split", metavar="SPLIT", help="one of its test splits (default: the first)")
    parser.add_argument(
        "--search", nargs="+", metavar="NAME", help="of the YAML's test_searches (default: those evaluated)"
    )
    parser.add_argument("--utterances", type=int, default=16, metavar="N", help="how many (default: 16)")
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N", help="of the batched figures (default: 8)"
    )
    parser.add_argument(
        "--passes", type=int, default=3, metavar="N", help="timed ones, after one to warm up (default: 3)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run_efficiency(args: argparse.Namespace) -> int:
    from hmamba_asr.evaluation.probing import measure_run, render_run

    sizes = {"utterances": args.utterances, "batch": args.batch, "passes": args.passes}
    found = measure_run(args.folder, split=args.split, searches=args.search, device=args.device, **sizes)
    print(json.dumps(found) if args.json else render_run(found))
    return 0


def _add_report(commands: Any) -> None:
    parser = _add_command(
        commands,
        name="report",
        run=_run_report,
        text="write one HTML page about runs",
        details="The page needs no network: curves, recordings and pictures are in it. The other runs are tested against the"
        " first one. Needs matplotlib and Jinja2 (pip install 'hmamba-asr[report]').",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of evaluated runs")
    parser.add_argument(
        "--output", "-o", default="report.html", metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument("--title", default="Speech recognition runs", help="of the page")
    parser.add_argument(
        "--alignments",
        metavar="DIR",
        help="TextGrids of test utterances, to set chunks beside phones and words",
    )
    parser.add_argument(
        "--efficiency",
        metavar="FILE",
        help="of scripts/benchmarks/efficiency.py --json, to draw speed by length",
    )


def _run_report(args: argparse.Namespace) -> int:
    from hmamba_asr.report.page import write_report

    write_report(
        args.output, args.runs, title=args.title, alignments=args.alignments, efficiency=args.efficiency
    )
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
