#!/usr/bin/env python3
"""Where does the kernel of a search step's attention pay?

    python scripts/benchmarks/attention.py [--batches 1 16 64] [--beam 10] [--keys 128 376 2048] [--json FILE]

The work is one layer's attention in a step of the beam search: each utterance's hypotheses (4 heads of 36)
attend to its encoder states. With --mask they attend to a pool of keys: the last half of its slots is not
taken yet, and of the others a hypothesis sees its own ancestors'. Our kernel (hmamba_asr/ops/attention) is
timed beside matrix products, which a search uses where the kernel does not pay, in TF32 as SpeechBrain allows
it and in full float32, and beside PyTorch's fused attention. All run as CUDA graphs of several calls, each
call on keys of its own. "used" says whether the search would take the kernel. Needs a CUDA GPU.

All are checked against float64 before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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

from hmamba_asr.ops.attention import additive_mask, attend, kernel_pays, kernel_takes
from hmamba_asr.system.hardware import hardware, machine_name

HEADS, D_HEAD = 4, 36  # of hparams/conmamba_small_ls100.yaml
CALLS = 16  # in a graph, on keys of their own as layers have them: a cache does not hold them all
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


kernel = partial(attend, backend="triton")
products = partial(attend, backend="reference")
fused = partial(attend, backend="sdpa")


def tf32_products(*inputs: torch.Tensor | None) -> torch.Tensor:
    torch.backends.cuda.matmul.allow_tf32 = True
    out = products(*inputs)
    torch.backends.cuda.matmul.allow_tf32 = False
    return out


PEERS = {  # and how exact they are
    "TF32 products": (tf32_products, 1e-2),
    "products": (products, 1e-5),
    "fused": (fused, 1e-5),
}


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 64], help="utterances")
    parser.add_argument("--beam", type=int, default=10, help="hypotheses of each")
    parser.add_argument(
        "--keys", type=int, nargs="+", default=[128, 376, 2048, 4096], help="keys of each utterance"
    )
    parser.add_argument("--mask", action="store_true", help="of a pool of keys, not of encoder states")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs of runs")
    options = parser.parse_args()
    device = gpu_of(options)
    torch.backends.cuda.matmul.allow_tf32 = False
    figures: dict = {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "beam": options.beam,
        "mask": options.mask,
        "cases": {},
    }
    machine = f"{machine_name(figures['hardware'])}, torch {torch.__version__}"
    print(f"{machine}, {HEADS} heads of {D_HEAD}, beam {options.beam}")
    rows: list[list[str]] = []
    for batch in options.batches:
        for length in options.keys:
            case = f"{batch} utterances, {length} keys"
            layers = [
                draw(batch, options.beam, length, masked=options.mask, device=device, seed=seed)
                for seed in range(CALLS)
            ]
            exact = products(*(None if x is None else x.double() for x in layers[0]))
            require(f"the kernel, {case}", relative_error(kernel(*layers[0]), exact), 1e-5)
            ours, ratios = graphed(repeated(kernel, layers)), {}
            for name, (peer, bound) in PEERS.items():
                require(f"{name}, {case}", relative_error(peer(*layers[0]), exact), bound)
                ratios[name] = compare(ours, graphed(repeated(peer, layers)), device, pairs=options.pairs)
            query, keys, _, mask = layers[0]
            used = kernel_takes(query, keys, mask) and kernel_pays(query, keys)
            figures["cases"][case] = {"used": used, **{name: vars(ratio) for name, ratio in ratios.items()}}
            taken = f"{1e6 * ratios['products'].ours / CALLS:.1f}"
            rows.append([case, "yes" if used else "no", *map(str, ratios.values()), taken])
    print_table(
        "Their time over the kernel's: median (min to max)", ["case", "used", *PEERS, "kernel (us)"], rows
    )
    write_json(options.json, figures)


def repeated(run: Callable[..., torch.Tensor], layers: list[Inputs]) -> Callable[[], None]:
    """Return a function that calls ``run`` with each layer's inputs, one after the other."""

    def calls() -> None:
        for inputs in layers:
            run(*inputs)

    return calls


def draw(batch: int, beam: int, length: int, *, masked: bool, device: torch.device, seed: int) -> Inputs:
    """Return random query, keys, values and mask."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    mask = None
    if masked:
        taken = max(1, length // 2)
        seen = torch.rand(batch, 1, beam, length, generator=generator, device=device) < 1 / beam
        seen[..., taken:] = False
        seen[..., 0] = True  # the first token is everybody's
        mask = additive_mask(seen, torch.float32)
    shape = (batch, HEADS, length, D_HEAD)
    return normal(batch, beam, HEADS * D_HEAD), normal(*shape), normal(*shape), mask


if __name__ == "__main__":
    main()
