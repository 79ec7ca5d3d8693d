#!/usr/bin/env python3
"""Speed and memory of ConMamba, H-Mamba (N = 2) and the Conformer: encoders by audio length, and whole
recognisers.

    python scripts/benchmarks/efficiency.py [--device cuda] [--seconds 5 60 1200] [--utterances 8]
        [--split 6+6] [--json FILE]

The models have random weights and the sizes of hparams/{conmamba,hmamba,conformer}_small_ls100.yaml, except
for --split. They compute in float32. H-Mamba's CTC head reads the frames, and its result is then replaced:
every second frame begins a chunk.

1. Encoders (front-end and encoder) read one utterance of random features, from 5 s to 20 min, all in turns.
   The figures are the time, its ratio to the Conformer's in the same round, and the memory that one call
   adds. A length is skipped, and named, if it is not expected to fit: the memory of the last length, grown
   with the square of the length, exceeds what is available. It is also skipped if a call is expected to take
   longer than --patience.
2. Recognisers (evaluation/speed.py) read random samples of 2 to 24 s. The figures are RTF one by one and
   batched, audio hours per hour, first-token latency and memory, with greedy CTC and with a beam of 10 with
   CTC. The beam is made to emit 3 tokens a second.

Checks come before the timing: a padded utterance has the same states as alone, H-Mamba keeps half of the
frames, and all beams emit equally many tokens. `hmamba-asr report --efficiency FILE` draws the figures.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from benchmarking import (
    build,
    in_turns,
    options_of,
    print_table,
    ratio_of,
    require,
    require_batch_invariance,
    split_of,
    write_json,
)
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder

from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.beam_search import BeamSearch
from hmamba_asr.evaluation.speed import BENCHMARK_KIND, PASSES, Subject, measure, render_speed
from hmamba_asr.evaluation.timing import PhaseTimer
from hmamba_asr.system.hardware import hardware, machine_name
from hmamba_asr.system.memory import added_memory_mib, available_memory_mib

FRAMES_PER_CHUNK = 2
MODELS = {
    "ConMamba": "conmamba_small_ls100",
    "H-Mamba, N=2": "hmamba_small_ls100",
    "Conformer": "conformer_small_ls100",
}
PEER = "Conformer"
SIZE: dict[str, Any] = {}  # further overrides of the YAMLs; a test makes the models tiny
# No search here uses it; a small one is quick to build.
SMALL_LM = {"d_model": 8, "nhead": 1, "num_encoder_layers": 1, "d_ffn": 8}
BEAM, CTC_WEIGHT = 10, 0.4
TOKENS_PER_SECOND = 3  # about as in LibriSpeech, with SpeechBrain's 5000 units
FEATURES_PER_SECOND = 100
STATES_PER_SECOND = 25
SHARE_OF_MEMORY = 0.7  # share of the available memory that one call may take
BLIND_SECONDS = 120  # the longest utterance where the platform does not report memory
SHORTEST, LONGEST = 2.0, 24.0  # seconds; nearly all of LibriSpeech's utterances lie between


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument(
        "--seconds",
        type=int,
        nargs="*",
        default=[5, 15, 30, 60, 120, 300, 600, 1200],
        help="lengths for the encoders",
    )
    parser.add_argument(
        "--utterances",
        type=int,
        help="utterances for the recognisers (default: 8 on a CPU, 32 on a GPU; 0: leave them out)",
    )
    parser.add_argument("--batch", type=int, help="utterances in a batch (default: 4 on a CPU, 16 on a GPU)")
    parser.add_argument(
        "--split",
        type=split_of,
        default="8+4",
        help="H-Mamba's blocks at the frame rate + at the chunk rate (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 3; of the encoders on a GPU 10)")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        metavar="S",
        help="longest time for one call of an encoder, in seconds (default: 120)",
    )
    options = parser.parse_args()
    split = {
        part: {"num_layers": count} for part, count in zip(("outer", "inner"), options.split, strict=True)
    }
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    rounds, passes = options.rounds or (10 if on_gpu else 3), options.rounds or PASSES
    count = (32 if on_gpu else 8) if options.utterances is None else options.utterances
    figures = {
        "kind": BENCHMARK_KIND,
        "hardware": hardware(device),
        "torch": torch.__version__,
        "precision": "fp32",
        "peer": PEER,
        "split": "{}+{}".format(*options.split),
    }
    print(f"{machine_name(figures['hardware'])}, torch {torch.__version__}, float32")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        recognisers = {name: recogniser(yaml, folder, device, split) for name, yaml in MODELS.items()}
        for name, hparams in recognisers.items():
            check(name, hparams, device)
        models = {name: hparams["model"] for name, hparams in recognisers.items()}
        figures["parameters"] = {
            name: sum(p.numel() for p in model.parameters()) for name, model in models.items()
        }
        encoders = {name: model.encode for name, model in models.items()}
        figures["encoders"] = time_encoders(
            encoders, sorted(options.seconds), device, rounds, options.patience
        )
        if count:
            figures["recognisers"] = time_recognisers(
                recognisers, device, count=count, batch=options.batch, passes=passes
            )
    write_json(options.json, figures)


def recogniser(yaml: str, folder: str, device: torch.device, split: dict) -> dict:
    """Build the YAML's objects, and the timed searches under the key "searches"."""
    chunks = FRAMES_PER_CHUNK if yaml.startswith("hmamba") else None
    overrides = {"lm": SMALL_LM, **SIZE, **(split if chunks else {})}
    hparams = build(yaml, overrides, folder, frames_per_chunk=chunks)
    model = hparams["model"]
    ratio = TOKENS_PER_SECOND / STATES_PER_SECOND * (chunks or 1)  # tokens for each state
    ctc = CTCScorer(ctc_fc=model.ctc_head, blank_index=hparams["blank_index"], eos_index=hparams["eos_index"])
    searcher = JointBeamSearcher(
        modules=[model, model.output_head],
        bos_index=hparams["bos_index"],
        eos_index=hparams["eos_index"],
        beam_size=BEAM,
        min_decode_ratio=ratio,
        max_decode_ratio=ratio,
        using_eos_threshold=False,
        scorer=ScorerBuilder(full_scorers=[ctc], weights={"ctc": CTC_WEIGHT}),
    )
    for module in (model, hparams["features"]):
        module.eval().to(device)
    hparams["searches"] = {"greedy": hparams["valid_search"], f"beam {BEAM}": BeamSearch(searcher=searcher)}
    return hparams


def check(name: str, hparams: dict, device: torch.device) -> None:
    """Require that batch mates change nothing, from the samples on, and that the chunks are as many as
    intended."""
    features, model = hparams["features"], hparams["model"]
    rate = hparams["sample_rate"]
    wavs = 0.1 * torch.randn(2, 3 * rate, device=device)
    require_batch_invariance(
        name, lambda x, lengths: model.encode(*features(x, lengths)), wavs, rate + rate // 3
    )
    for stage in model.encode(*features(wavs, torch.tensor([3 * rate, 2 * rate], device=device))).stages:
        expected = (stage.lengths + FRAMES_PER_CHUNK - 1).div(FRAMES_PER_CHUNK, rounding_mode="floor")
        require(f"{name}'s number of chunks", (stage.num_chunks - expected).abs().max().item(), 0)


def time_encoders(
    encoders: dict[str, Callable], lengths: list[int], device: torch.device, rounds: int, patience: float
) -> dict:
    """Time the encoders on utterances of each length in seconds.

    Returns {model: [{seconds, and either skipped, or passes, encoder_seconds (their median), memory_mib and
    ratio}]}.
    """
    found: dict[str, list[dict]] = {name: [] for name in encoders}
    rows = []
    for seconds in lengths:
        x = torch.randn(1, 1 + FEATURES_PER_SECOND * seconds, 80, device=device)
        frames = torch.tensor([x.shape[1]], device=device)
        runs, memory = {}, {}
        for name, encode in encoders.items():
            reason = obstacle(found[name], seconds, device, patience)
            if reason is None:
                runs[name] = lambda encode=encode: encode(x, frames)  # noqa: B023
                try:
                    runs[name]()  # warm
                    memory[name] = added_memory_mib(runs[name], device)
                except torch.OutOfMemoryError:
                    del runs[name]
                    torch.cuda.empty_cache()
                    reason = "out of memory"
            if reason:
                found[name].append({"seconds": seconds, "skipped": reason})
        times = in_turns(runs, device, rounds=rounds, warmup=0)
        for name, taken in times.items():
            ratio = ratio_of(taken, times[PEER]) if PEER in times and name != PEER else None
            middle = statistics.median(taken)
            entry = {
                "seconds": seconds,
                "passes": taken,
                "encoder_seconds": middle,
                "memory_mib": memory[name],
            }
            found[name].append(entry | ({"ratio": vars(ratio)} if ratio else {}))
            mib = "" if memory[name] is None else f"{memory[name]:.0f}"
            rows.append(
                [f"{seconds} s", name, f"{middle:.4g}", f"{seconds / middle:.0f}", mib, str(ratio or "")]
            )
        for name in encoders:
            if "skipped" in found[name][-1]:
                rows.append([f"{seconds} s", name, "", "", "", found[name][-1]["skipped"]])
        for row in rows[-len(encoders) :]:
            print(*row, sep=" | ", flush=True)
    header = [
        "audio",
        "encoder",
        "seconds",
        "audio s/s",
        "added MiB",
        f"{PEER}'s time over its: median (min to max)",
    ]
    print_table(f"Encoders, one utterance, {rounds} rounds", header, rows)
    return found


def obstacle(measured: list[dict], seconds: int, device: torch.device, patience: float) -> str | None:
    """Say why an utterance of this length is skipped, given the shorter ones; None if it is not skipped."""
    if not measured:
        return None
    last = measured[-1]
    if "skipped" in last:
        return "skipped, as a shorter one was"
    growth = (seconds / last["seconds"]) ** 2
    if last["encoder_seconds"] * growth > patience:
        return f"skipped: may take {last['encoder_seconds'] * growth:.0f} s, more than the patience"
    if device.type == "cuda":
        return None  # a GPU that runs out of memory raises, and the script goes on
    free = available_memory_mib(device)
    if last["memory_mib"] is None or free is None:
        return (
            "skipped: this platform does not tell how much memory it would take"
            if seconds > BLIND_SECONDS
            else None
        )
    expected = last["memory_mib"] * growth
    if expected <= SHARE_OF_MEMORY * free:
        return None
    return f"skipped: may take {expected / 1024:.0f} GiB, {free / 1024:.0f} GiB are available"


def time_recognisers(
    recognisers: dict[str, dict], device: torch.device, *, count: int, batch: int | None, passes: int
) -> dict:
    """Measure the recognisers with each search, with the ratio of each model's RTF to the peer's in the same
    pass."""
    rate = recognisers[PEER]["sample_rate"]
    generator = torch.Generator().manual_seed(0)
    samples = [int(rate * seconds) for seconds in torch.linspace(LONGEST, SHORTEST, count).tolist()]
    utterances = [0.1 * torch.randn(number, generator=generator) for number in samples]
    batch = batch or (16 if device.type == "cuda" else 4)
    figures = {}
    for search in recognisers[PEER]["searches"]:
        subjects = {
            name: Subject(hparams["features"], hparams["model"], hparams["searches"][search], device)
            for name, hparams in recognisers.items()
        }
        if search != "greedy":
            emitted = {len(s.recognise(utterances[:1], PhaseTimer(device))[0]) for s in subjects.values()}
            # One state more gives one token more.
            require(f"the hypotheses' length by {search}", max(emitted) - min(emitted), 1)
        found = measure(subjects, utterances, sample_rate=rate, batch_size=batch, passes=passes)
        for name in (name for name in subjects if name != PEER):
            for way in ("batch_1", "batched"):
                ours, theirs = (found["subjects"][key][way]["passes"] for key in (name, PEER))
                ratio = ratio_of(ours, theirs)
                found["subjects"][name][way]["ratio"] = vars(ratio)
        figures[search] = found
        print(f"\nRecognisers, {search}\n{render_speed(found, what='model')}\n")
        print(f"{PEER}'s time over theirs: median (min to max)")
        for name, part in found["subjects"].items():
            if name != PEER:
                ratios = [part[way]["ratio"] for way in ("batch_1", "batched")]
                cells = [f"{r['median']:.2f}x ({r['low']:.2f} to {r['high']:.2f})" for r in ratios]
                print(f"{name}: one by one {cells[0]}, batched {cells[1]}")
    return figures


if __name__ == "__main__":
    main()
