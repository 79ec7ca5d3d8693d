"""What the benchmark scripts share: timing two sides in turns, peak memory, a table, a JSON file."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Ratio:
    """How much longer theirs took than ours: over pairs of runs, min, median and max; both sides' median seconds."""

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


def median_seconds(run: Callable[[], object], device: torch.device, *, repeats: int, warmup: int = 3) -> float:
    """Median time of one call, warm."""
    for _ in range(warmup):
        run()
    return statistics.median(seconds(run, device) for _ in range(repeats))


def compare(ours: Callable, theirs: Callable, device: torch.device, *, pairs: int, warmup: int = 3) -> Ratio:
    """Run both in turns, so that whatever else the machine does hits both alike."""
    for _ in range(warmup):
        ours(), theirs()
    times = [(seconds(ours, device), seconds(theirs, device)) for _ in range(pairs)]
    ratios = [b / a for a, b in times]
    a, b = (statistics.median(side) for side in zip(*times, strict=True))
    return Ratio(min(ratios), statistics.median(ratios), max(ratios), a, b)


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


def peak_memory_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """Highest GPU memory allocated during one call, on top of what was there before it; None on a CPU."""
    if device.type != "cuda":
        return None
    run()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected|| in float64; NaN stays NaN, which no bound accepts."""
    actual, expected = (x.detach().double().cpu() for x in (actual, expected))
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def require(name: str, error: float, bound: float) -> None:
    """Refuse to time what is not right."""
    if not error <= bound:
        raise SystemExit(f"error: {name} is off by {error:.2e} (relative), more than {bound:.0e}: not timed.")


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, ["-" * w for w in widths], *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def write_json(path: str | None, figures: dict) -> None:
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
