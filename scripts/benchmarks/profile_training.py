#!/usr/bin/env python3
"""Where does a training step spend its time?

    python scripts/benchmarks/profile_training.py hparams/conmamba_mini.yaml --data_folder DIR [any override]
    [--steps 10]

Trains a few steps to warm up, times as many again, profiles two more, and prints the operations that cost
most and how busy the device was. Nothing is saved but the output folder's manifests and tokenizer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import cycle, islice

import torch
from speechbrain import Stage

from hmamba_asr.training.asr import ASRBrain
from hmamba_asr.training.experiment import Experiment


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="batches to time (default 10)")
    options, rest = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if "--output_folder" not in rest:
            rest += ["--output_folder", folder]
        experiment = Experiment(rest)
        train_set, _, _ = experiment.prepare()
        brain = ASRBrain.from_experiment(experiment)
        loader = brain.make_dataloader(train_set, Stage.TRAIN)
        brain.on_fit_start()
        brain.on_stage_start(Stage.TRAIN, 1)
        brain.modules.train()
        profile(brain, loader, options.steps)


def profile(brain: ASRBrain, loader, steps: int) -> None:
    batches = list(islice(cycle(loader), steps))
    audio = sum(sum(map(float, batch.duration)) for batch in batches)
    run(brain, batches)
    seconds = run(brain, batches)
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = brain.device_type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    few = batches[:2]  # a step launches tens of thousands of operations, and reading the record back is slow
    unprofiled = run(brain, few)
    with torch.profiler.profile(activities=activities) as recorded:
        run(brain, few)
    events = recorded.key_averages()
    print(
        events.table(
            sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total",
            row_limit=20,
            max_name_column_width=60,
        )
    )
    rate = audio / seconds
    print(f"{steps} batches, {audio:.0f} s of audio in {seconds:.2f} s: {rate:.0f} audio s/s without loading")
    if on_gpu:
        # Kernels only: an operator's row repeats the time of the kernels it launched.
        kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.self_device_time_total for e in kernels) / 1e6
        launches = sum(
            e.count for e in events if e.key in ("cudaLaunchKernel", "cuLaunchKernel", "cuLaunchKernelEx")
        )
        share = 100 * busy / unprofiled
        each = launches // len(few)
        print(f"GPU busy for {busy:.2f} s of {unprofiled:.2f} s ({share:.0f}%), {each} launches a step")


def run(brain: ASRBrain, batches: list) -> float:
    started = time.perf_counter()
    for batch in batches:
        brain.step += 1
        brain.fit_batch(batch)
    if brain.device_type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1:])
