"""What the benchmark scripts share: recognisers with random weights, timing in turns, checks, a table, a JSON
file."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from speechbrain.nnet.linear import Linear

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import load_hparams
from hmamba_asr.modules.chunkers import CTCChunker
from hmamba_asr.system.hardware import default_device
from hmamba_asr.system.memory import keep_freed_memory
from hmamba_asr.system.tables import text_table

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"


def forced_novelty(
    chunker: CTCChunker, x: torch.Tensor, lengths: torch.Tensor, ctc_head: Linear
) -> torch.Tensor:
    """A chunker's novelty, computed and then replaced: only every ``target_ratio``-th frame is new, of a
    broken one on average, so that every window is given just what is its due."""
    computed = type(chunker).novelty(chunker, x, lengths, ctc_head)
    due = (torch.arange(x.shape[1] + 1, device=x.device, dtype=torch.float64) / chunker.target_ratio).ceil()
    begins = due.diff() > 0
    return computed.masked_fill(begins, 0.5) * begins


def options_of(doc: str) -> argparse.ArgumentParser:
    """A parser of what all benchmarks take: --device and --json; ``doc`` is the script's docstring. Memory is
    from now on kept as train.py keeps it."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=default_device(), help="cpu or cuda")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser


def build(
    yaml: str,
    overrides: Mapping,
    folder: str,
    *,
    variants: Sequence[str] = (),
    frames_per_chunk: float | None = None,
) -> dict:
    """Build the objects of ``hparams/<yaml>.yaml`` with these variants, with random weights.

    With ``frames_per_chunk`` the chunks of its encoder are forced. Nothing is read from or written to
    ``folder``.
    """
    torch.manual_seed(0)
    if frames_per_chunk is not None:
        overrides = {
            **overrides,
            "chunker": {"target_ratio": frames_per_chunk, **overrides.get("chunker", {})},
        }
    text = compose(HPARAMS / f"{yaml}.yaml", [HPARAMS / "variants" / f"{name}.yaml" for name in variants])
    hparams = load_hparams(text, {"data_folder": folder, "output_folder": folder, **overrides})
    if frames_per_chunk is not None:
        chunker = hparams["encoder"].chunker
        chunker.novelty = lambda x, lengths, ctc_head: forced_novelty(chunker, x, lengths, ctc_head)
    return hparams


def gpu_of(options: argparse.Namespace) -> torch.device:
    """Return the GPU of a benchmark of kernels; end the script on any other device."""
    device = torch.device(options.device)
    if device.type != "cuda":
        raise SystemExit("error: this benchmark is about GPU kernels; run it on a machine with a CUDA GPU.")
    return device


def split_of(text: str) -> tuple[int, int]:
    """Blocks at the frame rate and at the chunk rate, as an option gives them: 8+4."""
    if not re.fullmatch(r"[1-9]\d*\+[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"give two numbers such as 8+4, not '{text}'.")
    outer, inner = map(int, text.split("+"))
    return outer, inner


@dataclass
class Ratio:
    """How much longer theirs took than ours: over pairs of runs, min, median and max; both sides' median
    seconds."""

    low: float
    median: float
    high: float
    ours: float
    theirs: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call: events on the GPU, so that the host's time counts only where the GPU waits for it."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def median_seconds(
    run: Callable[[], object], device: torch.device, *, repeats: int, warmup: int = 3
) -> float:
    """Return the median time of one call after ``warmup`` calls."""
    for _ in range(warmup):
        run()
    return statistics.median(seconds(run, device) for _ in range(repeats))


def compare(ours: Callable, theirs: Callable, device: torch.device, *, pairs: int, warmup: int = 3) -> Ratio:
    """Run both in turns, so that whatever else the machine does hits both alike."""
    times = in_turns({"ours": ours, "theirs": theirs}, device, rounds=pairs, warmup=warmup)
    return ratio_of(times["ours"], times["theirs"])


def in_turns(
    runs: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round, after ``warmup`` rounds that do not count."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    times = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(rounds)]
    return {name: [taken[name] for taken in times] for name in runs}


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return theirs over ours, from the seconds of both sides in the same rounds."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Ratio(
        min(ratios),
        statistics.median(ratios),
        max(ratios),
        statistics.median(ours),
        statistics.median(theirs),
    )


def graphed(run: Callable[[], object]) -> Callable[[], None]:
    """``run`` captured as a CUDA graph: a call replays it, and the host has next to nothing to do."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ||actual - expected|| / ||expected|| in float64. NaN stays NaN, which no bound accepts."""
    actual, expected = (x.detach().double().cpu() for x in (actual, expected))
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def require(name: str, error: float, bound: float) -> None:
    """End the script if an error is above its bound: what is wrong is not timed."""
    if not error <= bound:
        raise SystemExit(f"error: {name} is off by {error:.2e} (relative), more than {bound:.0e}: not timed.")


def require_batch_invariance(name: str, encode: Callable, x: torch.Tensor, length: int) -> None:
    """``encode(x, lengths)``, an EncoderOutput, gives the first ``length`` of x[1] what they get alone, in
    full float32."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False  # SpeechBrain allows it on import
    with torch.no_grad():
        padded = encode(x, torch.tensor([x.shape[1], length], device=x.device))
        alone = encode(x[1:2, :length], torch.tensor([length], device=x.device))
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed
    count = int(alone.lengths[0])
    require(f"{name}'s number of states with padding", abs(int(padded.lengths[1]) - count), 0)
    require(f"{name} with padding", relative_error(padded.states[1, :count], alone.states[0, :count]), 1e-4)


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table under its title."""
    print(f"\n{title}\n{text_table(rows, header)}")


def write_json(path: str | None, figures: dict) -> None:
    """Write the figures to ``path``, if there is one, with the command that measured them."""
    if path:
        command = shlex.join(["python", *sys.argv])
        text = json.dumps({"command": command, **figures}, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")
