#!/usr/bin/env python3
"""Profile a beam search on a GPU: its kernels, how long they run, and the time of the host.

    python scripts/benchmarks/profile_decoding.py [--batch 64] [--seconds 15] [--split 8+4] [--ratio 2]

The recogniser is that of scripts/benchmarks/chunking.py with random weights, flat without --split. The search
is the YAML's, with 3 tokens a second. The encoder is left out. The first search, which compiles kernels, is
not timed; each search captures its CUDA graphs.
"""

from __future__ import annotations

import argparse
import collections
import tempfile

import torch
from benchmarking import median_seconds, print_table, split_of
from chunking import FRAMES_PER_SECOND, TOKENS_PER_SECOND, recogniser
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hmamba_asr.system.hardware import hardware, machine_name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="utterances (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=15, help="length of each (default: %(default)s)")
    parser.add_argument(
        "--split", type=split_of, help="blocks at the frame rate + at the chunk rate, such as 8+4"
    )
    parser.add_argument("--ratio", type=int, default=2, help="frames in a chunk (default: %(default)s)")
    parser.add_argument("--top", type=int, default=20, help="kernels to name (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda; on a cpu operations stand for kernels")
    options = parser.parse_args()
    device = torch.device(options.device)
    features = torch.randn(options.batch, 1 + FRAMES_PER_SECOND * options.seconds, 80, device=device)
    lengths = torch.full((options.batch,), features.shape[1], device=device)
    steps, frames = TOKENS_PER_SECOND * options.seconds, -(-features.shape[1] // 4)
    states = -(-frames // options.ratio) if options.split else frames
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sizes = {
            "split": options.split,
            "ratio": options.ratio,
            "form": "chunks",
            "frames": states,
            "tokens": steps,
        }
        hparams = recogniser(folder, device, **sizes)
        encoded = hparams["model"](features, lengths)

        def search() -> None:
            hparams["beam_search"](encoded)

        search()
        taken = median_seconds(search, device, repeats=5)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities, acc_events=True) as found:
            search()
    wanted = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    events = [event for event in found.events() if event.device_type == wanted]
    times, counts = collections.Counter(), collections.Counter()
    for event in events:
        times[event.name] += event.device_time if device.type == "cuda" else event.self_cpu_time_total
        counts[event.name] += 1
    busy = sum(times.values())
    rows = [
        [f"{spent / 1e3:.2f}", str(counts[name]), f"{counts[name] / steps:.1f}", name[:90]]
        for name, spent in times.most_common(options.top)
    ]
    machine = machine_name(hardware(device))
    work = f"{options.batch} x {options.seconds} s, {steps} steps, {states} states"
    print(f"{machine}, torch {torch.__version__}, {work}")
    print(f"a search takes {1e3 * taken:.1f} ms")
    number = f"{len(events)} kernels, {len(events) / steps:.0f} a step"
    print(f"while profiled, {number}, run for {busy / 1e3:.1f} ms")
    print_table("Kernels by time", ["ms", "count", "a step", "name"], rows)


if __name__ == "__main__":
    main()
