#!/usr/bin/env python3
"""Where does the kernel of a search step's attention pay?

    python scripts/benchmark_attention.py [--batches 1 16 64] [--beam 10] [--keys 128 376 2048] [--json FILE]

One layer's attention in a step of the beam search: each utterance's hypotheses (4 heads of 36) to its encoder states, and, with
--mask, to the slots of a pool of keys, half of which each hypothesis may see. Ours (hmamba_asr/ops/attention_triton.py) is timed
beside the same as matrix products in float32, which is what a search uses where the kernel does not pay, both replayed as CUDA
graphs, and beside PyTorch's fused attention. "used" says whether the search would take the kernel there. Needs a CUDA GPU.

Both sides are checked against float64 before they are timed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from benchmarking import compare, graphed, options_of, print_table, relative_error, require, write_json

from hmamba_asr.evaluation.efficiency import hardware, machine_name

HEADS, D_HEAD = 4, 36  # of hparams/conmamba_small_ls100.yaml
CALLS = 20  # in a graph, so that starting it does not count


def products(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax attention: query (B, Q, heads D), keys and values (B, heads, T, D), mask (B, 1, Q, T) or None -> as query."""
    heads = query.unflatten(-1, (keys.shape[1], -1)).transpose(1, 2)
    scores = heads @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ values).transpose(1, 2).flatten(2)


def fused(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    heads = query.unflatten(-1, (keys.shape[1], -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64], help="utterances")
    parser.add_argument("--beam", type=int, default=10, help="hypotheses of each")
    parser.add_argument("--keys", type=int, nargs="+", default=[128, 376, 2048], help="keys of each utterance")
    parser.add_argument("--mask", action="store_true", help="of a pool of keys, not of encoder states")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs of runs")
    options = parser.parse_args()
    if options.device != "cuda" or not torch.cuda.is_available():
        raise SystemExit("error: this benchmark is about GPU kernels; run it on a machine with a CUDA GPU.")
    from hmamba_asr.ops import attention_triton

    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = False  # the kernel is as exact as float32
    figures: dict = {"hardware": hardware(device), "torch": torch.__version__, "beam": options.beam, "cases": {}}
    print(f"{machine_name(figures['hardware'])}, torch {torch.__version__}, {HEADS} heads of {D_HEAD}, beam {options.beam}")
    rows: list[list[str]] = []
    for batch in options.batches:
        for length in options.keys:
            inputs = draw(batch, options.beam, length, masked=options.mask, device=device)
            exact = products(*(None if x is None else x.double() for x in inputs))
            case = f"{batch} utterances, {length} keys"
            runs = {"ours": attention_triton.attend, "products": products, "fused": fused}
            for name, run in runs.items():
                require(f"{name} of {case}", relative_error(run(*inputs), exact), 1e-5)
            timed = {
                name: graphed(lambda run=run, inputs=inputs: [run(*inputs) for _ in range(CALLS)]) for name, run in runs.items()
            }
            ratios = {name: compare(timed["ours"], timed[name], device, pairs=options.pairs) for name in ("products", "fused")}
            used = attention_triton.pays(inputs[0], inputs[1])
            figures["cases"][case] = {"used": used, **{name: vars(ratio) for name, ratio in ratios.items()}}
            ours = f"{1e6 * ratios['products'].ours / CALLS:.1f}"
            rows.append([case, "yes" if used else "no", *map(str, ratios.values()), ours])
    print_table("Their time over the kernel's: median (min to max)", ["case", "used", *ratios, "kernel (us)"], rows)
    write_json(options.json, figures)


def draw(batch: int, beam: int, length: int, *, masked: bool, device: torch.device) -> tuple:
    """Query, keys, values and mask, random."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    mask = None
    if masked:
        seen = torch.rand(batch, 1, beam, length, generator=generator, device=device) < 0.5
        seen[..., 0] = True
        mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, -math.inf)
    shape = (batch, HEADS, length, D_HEAD)
    return normal(batch, beam, HEADS * D_HEAD), normal(*shape), normal(*shape), mask


if __name__ == "__main__":
    main()
