#!/usr/bin/env python3
"""How many seconds of audio does a ConMamba encoder read in a second, beside a Conformer encoder of equal
size?

    python scripts/benchmarks/encoder.py [--device cuda] [--train] [--json FILE]

Timed are the encoders of hparams/conmamba_small_ls100.yaml and hparams/conformer_small_ls100.yaml with random
weights, on utterances of 10 s, 30 s, 2 min and 10 min. A batch holds 10 minutes of audio, on a CPU one
utterance. On a GPU they run in bfloat16: ConMamba eager and compiled (``torch.compile``) against the
Conformer eager, and a CUDA graph of each against the other. ``--train`` adds the backward pass.

Nothing is timed unless the eager and the compiled output agree with the eager one in float32, and a padded
utterance has the states that it has alone. The graph is a recording of the eager run.
"""

from __future__ import annotations

import copy

import torch
from benchmarking import (
    compare,
    graphed,
    median_seconds,
    options_of,
    print_table,
    relative_error,
    require,
    require_batch_invariance,
    write_json,
)

from hmamba_asr.models.conformer import ConformerEncoder
from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.system.hardware import hardware, machine_name
from hmamba_asr.system.memory import added_memory_mib

SECONDS = (10, 30, 120, 600)
BATCH_SECONDS = 600
FRAMES_PER_SECOND = 25
COMMON = {"d_model": 144, "d_ffn": 1024, "dropout": 0.0, "kernel_size": 31}


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--train", action="store_true", help="forward and backward instead of forward")
    parser.add_argument("--seconds", type=int, nargs="+", default=SECONDS, help="lengths of the utterances")
    parser.add_argument("--pairs", type=int, help="timed pairs of runs (default: 3 on a CPU, 15 on a GPU)")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    conmamba = ConMambaEncoder(**COMMON, num_layers=12).to(device)
    conformer = ConformerEncoder(**COMMON, num_layers=13, nhead=4).to(device)
    sizes = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (conmamba, conformer)]
    machine = machine_name(hardware(device))
    print(
        f"{machine}, torch {torch.__version__}; "
        f"ConMamba {sizes[0]:.2f}M, Conformer {sizes[1]:.2f}M parameters"
    )
    for model in (conmamba, conformer):
        model.train(options.train)
        x = torch.randn(2, 60, COMMON["d_model"], device=device)
        require_batch_invariance(type(model).__name__, model, x, 23)

    compiled = copy.deepcopy(conmamba)
    for block in compiled.blocks:
        block.compile(dynamic=True)  # all blocks share one compilation, for every length

    figures: dict = {"hardware": hardware(device), "torch": torch.__version__, "train": options.train}
    figures["lengths"], rows = {}, []
    for seconds in options.seconds:
        batch = max(1, BATCH_SECONDS // seconds) if on_gpu else 1
        x = torch.randn(
            batch, seconds * FRAMES_PER_SECOND, COMMON["d_model"], device=device, requires_grad=options.train
        )
        lengths = torch.full((batch,), x.shape[1], device=device)
        eager, theirs = (step_of(model, x, lengths, train=options.train) for model in (conmamba, conformer))
        sides = {"eager": (eager, theirs)}
        if on_gpu:
            sides["compiled"] = step_of(compiled, x, lengths, train=options.train), theirs
            try:
                sides["CUDA graph"] = graphed(eager), captured(theirs)
            except RuntimeError as error:
                print(
                    f"{seconds} s: ConMamba cannot be recorded: {error.__context__ or error}".splitlines()[0]
                )
        # Without gradients: a graph that lives on would tie the parameters' gradients to this stream, which a
        # capture must not touch.
        with torch.no_grad():
            exact = conmamba(x, lengths).states
        for name, (ours, peer) in sides.items():
            output = ours()
            # a graph's replay returns nothing; what it recorded was checked as "eager"
            if output is not None:
                bound = 3e-2 if on_gpu else 1e-5
                require(f"ConMamba {name}, {seconds} s", relative_error(output, exact), bound)
            audio, figure = batch * seconds, {"batch": batch, "ours_mib": added_memory_mib(ours, device)}
            pairs, warmup = options.pairs or (15 if on_gpu else 3), 3 if on_gpu else 1
            try:
                ratio = compare(ours, peer, device, pairs=pairs, warmup=warmup)
                taken, figure["theirs_mib"] = ratio.ours, added_memory_mib(peer, device)
                figure |= {
                    "theirs_audio_seconds_per_second": audio / ratio.theirs,
                    "encoder_vs_conformer": ratio.median,
                }
                cells = [f"{audio / ratio.theirs:.0f}", str(ratio)]
            except (torch.OutOfMemoryError, CaptureFailed) as error:
                taken = median_seconds(ours, device, repeats=pairs, warmup=warmup)
                cells = [
                    "out of memory" if isinstance(error, torch.OutOfMemoryError) else "cannot be recorded",
                    "",
                ]
                torch.cuda.empty_cache()
            figure |= {
                "ours_audio_seconds_per_second": audio / taken,
                "ours_frames_per_second": audio * FRAMES_PER_SECOND / taken,
            }
            figures["lengths"][f"{seconds} s, {name}"] = figure
            memory = [
                "" if (m := figure.get(key)) is None else f"{m:.0f}" for key in ("ours_mib", "theirs_mib")
            ]
            rows.append([f"{batch} x {seconds} s", name, f"{audio / taken:.0f}", *cells, *memory])
            print(*rows[-1], sep=" | ", flush=True)
        del sides, eager, theirs
    header = [
        "audio",
        "ConMamba",
        "audio s/s",
        "Conformer audio s/s",
        "ratio: median (min to max)",
        "MiB",
        "Conformer MiB",
    ]
    print_table(f"Encoders, {'forward and backward' if options.train else 'forward'}", header, rows)
    write_json(options.json, figures)


class CaptureFailed(Exception):
    """A function cannot be recorded as a CUDA graph."""


def captured(run):
    """Record ``run`` as a CUDA graph; if that fails, return a function that raises the reason."""
    try:
        return graphed(run)
    except torch.OutOfMemoryError as error:
        reason = error
    except RuntimeError as error:
        reason = CaptureFailed(str(error))

    def refuse():
        raise reason

    return refuse


def step_of(model, x: torch.Tensor, lengths: torch.Tensor, *, train: bool):
    """Return a function that runs the encoder once, as training or evaluation would, and returns its
    states."""
    autocast = torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=x.device.type == "cuda")

    def run():
        with torch.set_grad_enabled(train):
            with autocast:
                states = model(x, lengths).states
            if train:
                torch.autograd.grad(states.float().square().mean(), list(model.parameters()))
        return states.detach()

    return run


if __name__ == "__main__":
    main()
