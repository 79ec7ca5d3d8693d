#!/usr/bin/env python3
"""What do the kernels of H-Mamba's chunker save?

    python scripts/benchmarks/boundaries.py [--batch 64] [--seconds 15] [--units 128 5000] [--json FILE]

The CTCChunker of hparams/hmamba_small_ls100.yaml on random states at 25 Hz: the CTC head on every frame,
boundaries, and the means of the chunks, by the kernels (hmamba_asr/ops/segment/kernels.py,
pooling_kernels.py) and by PyTorch's operations on the same GPU; forward, and with the backward pass to the
states. "graph" replays CUDA graphs, the GPU's part without the host's, without chunks_per_label, which has to
wait for the GPU to count. Needs a CUDA GPU.

Before anything is timed each kernel's results have to be those of the plain operations on the same input:
novelty, boundaries (but for one frame in ten thousand, where rounding may make two frames equally new), and
means and gradients of the chunks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarking import (
    compare,
    gpu_of,
    graphed,
    options_of,
    print_table,
    relative_error,
    require,
    write_json,
)
from speechbrain.nnet.linear import Linear

from hmamba_asr.modules.chunk_ops import trim_starts
from hmamba_asr.modules.chunkers import CTCChunker
from hmamba_asr.ops.segment import pool_chunks, select_boundaries
from hmamba_asr.system.hardware import hardware, machine_name

D_MODEL, FRAMES_PER_SECOND = 144, 25
DIFFERENT = 1e-4  # of the frames


def chunkers(*, chunks_per_label: float) -> dict[str, CTCChunker]:
    """Return the same chunker twice, by kernels and by plain operations."""
    found = {}
    for backend in ("triton", "reference"):
        found[backend] = CTCChunker(target_ratio=2.0, window=100, chunks_per_label=chunks_per_label)
        found[backend].backend = backend
    return found


def check(
    case: str, found: dict[str, CTCChunker], x: torch.Tensor, lengths: torch.Tensor, head: Linear
) -> None:
    """Check each kernel on what the plain operations before it gave."""
    plain = found["reference"]
    novelty = plain.novelty(x, lengths, head)
    require(f"novelty, {case}", relative_error(found["triton"].novelty(x, lengths, head), novelty), 1e-5)
    settings = {
        "target_ratio": plain.target_ratio,
        "window": plain.window,
        "chunks_per_label": plain.chunks_per_label,
    }
    bounds = {backend: select_boundaries(novelty, lengths, **settings, backend=backend) for backend in found}
    different = (bounds["triton"].mask != bounds["reference"].mask).double().mean().item()
    require(f"the boundaries, {case}", different, DIFFERENT)
    same = bounds["reference"]
    means, grads = {}, {}
    for backend in found:
        leaf = x.detach().requires_grad_()
        out = pool_chunks(
            leaf,
            same.scores,
            starts=trim_starts(same.starts, same.num_chunks, None),
            frame_to_chunk=same.frame_to_chunk,
            num_chunks=same.num_chunks,
            lengths=lengths,
            backend=backend,
        )
        means[backend], (grads[backend],) = out.detach(), torch.autograd.grad(out.square().sum(), leaf)
    require(f"the chunks, {case}", relative_error(means["triton"], means["reference"]), 1e-5)
    require(f"the gradient, {case}", relative_error(grads["triton"], grads["reference"]), 1e-5)


def runs_of(
    chunker: CTCChunker, x: torch.Tensor, lengths: torch.Tensor, head: Linear
) -> dict[str, Callable[[], object]]:
    """Return calls of the forward pass without gradients, and of both passes."""
    leaf = x.detach().requires_grad_()
    weights = torch.randn_like(x)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return chunker(x, lengths, ctc_head=head).states

    def both() -> torch.Tensor:
        chunks = chunker(leaf, lengths, ctc_head=head).states
        return torch.autograd.grad(chunks, leaf, weights[:, : chunks.shape[1]])[0]

    return {"forward": forward, "forward and backward": both}


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--batch", type=int, default=64, help="utterances (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=int, default=15, help="length of the longest one (default: %(default)s)"
    )
    parser.add_argument(
        "--units", type=int, nargs="+", default=[128, 5000], help="labels of the CTC, its blank among them"
    )
    parser.add_argument("--pairs", type=int, default=20, help="timed pairs of runs (default: %(default)s)")
    options = parser.parse_args()
    device = gpu_of(options)
    torch.backends.cuda.matmul.allow_tf32 = False
    figures: dict = {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "batch": options.batch,
        "cases": {},
    }
    machine = f"{machine_name(figures['hardware'])}, torch {torch.__version__}"
    print(f"{machine}, {options.batch} x {options.seconds} s")
    rows: list[list[str]] = []
    x = torch.randn(options.batch, FRAMES_PER_SECOND * options.seconds, D_MODEL, device=device)
    lengths = torch.linspace(x.shape[1] // 2, x.shape[1], options.batch, device=device).long()
    for units in options.units:
        for chunks_per_label in (1.1, 0.0):
            torch.manual_seed(0)
            head = Linear(n_neurons=units, input_size=D_MODEL).to(device)
            found = chunkers(chunks_per_label=chunks_per_label)
            case = f"{units} units" + (f", {chunks_per_label} chunks a label" if chunks_per_label else "")
            check(case, found, x, lengths, head)
            ours, theirs = (runs_of(chunker, x, lengths, head) for chunker in found.values())
            if not chunks_per_label:
                ours, theirs = ({**runs, "graph": graphed(runs["forward"])} for runs in (ours, theirs))
            for part in ours:
                ratio = compare(ours[part], theirs[part], device, pairs=options.pairs)
                figures["cases"][f"{case}, {part}"] = vars(ratio)
                rows.append([case, part, str(ratio), f"{1e3 * ratio.ours:.2f}", f"{1e3 * ratio.theirs:.2f}"])
    print_table(
        "Their time over the kernels': median (min to max)",
        ["case", "pass", "ratio", "ours (ms)", "theirs (ms)"],
        rows,
    )
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
