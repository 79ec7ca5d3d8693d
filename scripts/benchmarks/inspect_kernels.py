#!/usr/bin/env python3
"""Compile the Triton kernels for a GPU that need not be there, and print what the compiler made of them.

    python scripts/benchmarks/inspect_kernels.py [--capability 86] [--states 16] [--dtype bf16] [--kernels
    scan backward] [--also 80 90] [--brief]

Prints registers and spilled bytes per thread, shared memory, and the instructions of the innermost loop with
the most exp2, which often shows what limits a kernel. Ends with code 1 if a kernel does not compile.

--also assembles each kernel for further capabilities, from the PTX of the first. That finds spills there at
little cost: most of the time goes into Triton's passes before PTX.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # kernels for the interpreter cannot be compiled

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from hmamba_asr.ops.attention import kernels as attention_kernels  # noqa: E402
from hmamba_asr.ops.attention.limits import BLOCK_Q  # noqa: E402
from hmamba_asr.ops.ctc import kernels as ctc_kernels  # noqa: E402
from hmamba_asr.ops.ema import kernels as ema_kernels  # noqa: E402
from hmamba_asr.ops.mixer import kernels as mixer_kernels  # noqa: E402
from hmamba_asr.ops.segment import MAX_WINDOW, pooling_kernels, reference  # noqa: E402
from hmamba_asr.ops.segment import kernels as segment_kernels  # noqa: E402
from hmamba_asr.ops.selective_scan import kernels  # noqa: E402
from hmamba_asr.ops.selective_scan.fused import BACKWARD, FORWARD  # noqa: E402

ALIKE = {
    "u",
    "delta",
    "y",
    "gy",
    "gu",
    "gdelta",
    "x",
    "gx",
    "z",
    "mean",
    "out",
    "gout",
    "x_padded",
    "dt_padded",
    "in_cast",
    "out_cast",
}
INT64 = (
    "lengths",
    "newest",
    "last_frames",
    "window",
    "parents",
    "labels",
    "frame_to_chunk",
    "starts",
    "num_chunks",
)
FLOAT32 = tuple(
    module.__name__ for module in (attention_kernels, segment_kernels, ema_kernels, pooling_kernels)
)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def variants(n: int, exact: bool, ptx: bool) -> dict[str, tuple]:
    """Return all kernels as training and decoding use them, by name: kernel, constants by name, and warps.

    Every function that is decorated with ``launch.kernel`` must be here; tests/ops/test_kernels_compile.py
    checks that.
    """
    scan = {"N": n, "BLOCK_D": 32, "HAS_D": True, "HAS_BIAS": True, "HAS_LENGTHS": True, "channels": 288}
    n_pad = max(16, 1 << (n - 1).bit_length())
    tile = {"N": n, "N_PAD": n_pad, "HAS_LENGTHS": True}
    walk = {"REVERSE_BITS": 2, "G": 2, "K": 4, "BLOCK_D": 32, "HAS_LENGTHS": True}
    gate = {"G": 2, "ROWS": 32, "COLS": 64, "HAS_LENGTHS": True, "ALIGNED": True}
    ctc = {"HAS_WINDOW": True, "BLOCK_T": ctc_kernels.BLOCK_T}
    attention = {"D": 36, "SCALE": 1 / 6, "HAS_MASK": True, "BLOCK_Q": BLOCK_Q}
    attention |= {"BLOCK_T": attention_kernels.BLOCK_T, "BLOCK_D": 64}
    budget = {
        "RATIO": 2.0,
        "WINDOW": 100,
        "PER_LABEL": 1.1,
        "WIDTH": 128,
        "BLOCK_T": segment_kernels.BLOCK_T,
    }
    names = ("MIN_NOVELTY", "MIN_SPREAD", "SHARPNESS", "FAR", "MAX_EXTRA", "ROUNDING")
    budget |= {
        "BLOCK_J": segment_kernels.PAIRS // 128,
        **{name: getattr(reference, name) for name in names},
    }
    largest = budget | {"WINDOW": MAX_WINDOW, "WIDTH": MAX_WINDOW}
    largest["BLOCK_J"] = segment_kernels.PAIRS // MAX_WINDOW
    pool = {"D": 144, "BLOCK_D": 256}
    prepass = {"WRITE_Y": False, "WRITE_SPANS": True, "HAS_D": False}
    return {
        "scan": (kernels.scan_kernel, scan | {"ADJOINT": False, "WRITE_Y": True, "WRITE_SPANS": False}, 1),
        "scan before segments": (kernels.scan_kernel, scan | prepass | {"ADJOINT": False}, 1),
        "adjoint before segments": (kernels.scan_kernel, scan | prepass | {"ADJOINT": True}, 1),
        "pass": (kernels.pass_kernel, {"N": n, "BLOCK": 128, "FROM_END": True, "HAS_INITIAL": True}, 4),
        "backward": (kernels.backward_kernel, scan | {"ATOMIC": True, "EXACT": exact, "INLINE_PTX": ptx}, 1),
        "tile": (kernels.tile_kernel, tile | {"FROM_TILES": False}, 1),
        "tile back": (kernels.tile_kernel, tile | {"FROM_TILES": True}, 1),
        "conv_silu": (mixer_kernels.conv_silu_kernel, walk, 1),
        "conv_silu_backward": (mixer_kernels.conv_silu_backward_kernel, walk, 1),
        "gate": (mixer_kernels.gate_kernel, gate, 4),
        "gate_backward": (mixer_kernels.gate_backward_kernel, gate, 4),
        "prepare": (mixer_kernels.prepare_kernel, {"G": 2, "N": n, "BLOCK": 1024}, 4),
        "prepare, 16-bit weights": (mixer_kernels.prepare_kernel, {"G": 2, "N": n, "BLOCK": 1024}, 4),
        "finish": (mixer_kernels.finish_kernel, {"N": n, "K": 4, "ROWS": 128, "COLS": 32}, 4),
        "ema": (ema_kernels.ema_kernel, {"BACKWARD": False, "BLOCK_D": 32}, 1),
        "ema backward": (ema_kernels.ema_kernel, {"BACKWARD": True, "BLOCK_D": 32}, 1),
        "attend": (attention_kernels.attend_kernel, attention, attention_kernels.WARPS),
        "novelty": (
            segment_kernels.label_novelty_kernel,
            {"LEAST": 1e-5, "BLOCK_V": segment_kernels.BLOCK_V},
            1,
        ),
        "boundaries": (segment_kernels.select_boundaries_kernel, budget, segment_kernels.WARPS),
        "boundaries, large windows": (
            segment_kernels.select_boundaries_kernel,
            largest,
            segment_kernels.WARPS,
        ),
        "pool": (pooling_kernels.pool_kernel, pool, 1),
        "pool backward": (pooling_kernels.pool_backward_kernel, pool | {"OF_X": True, "OF_SCORES": True}, 1),
        "ctc begin": (ctc_kernels.begin_kernel, ctc, ctc_kernels.WARPS),
        "ctc scores": (ctc_kernels.scores_kernel, {"BLOCK_V": ctc_kernels.BLOCK_V}, ctc_kernels.WARPS),
        "ctc extend": (ctc_kernels.extend_kernel, ctc, ctc_kernels.WARPS),
    }


def signature(function, constants: dict, dtype: str) -> dict[str, str]:
    """Return the types of the arguments, by name."""
    types, module = {}, function.fn.__module__
    integers = re.compile(
        r"s[a-z]?_[a-z]$|L$|batch$|channels$|n_|tiles_each$|first_segment$|reverse_bits$|items$|blocks$|copy_stride$|rank$"
        r"|columns$|d_model$|d_out$|.*_rows$|[KMQTV]$|K_new$|heads$|eos$|blank$|start$|ahead$"
    )
    for name in function.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in INT64:
            types[name] = "*i64"
        elif name == "mask" and module == segment_kernels.__name__:
            types[name] = "*i1"
        elif integers.match(name):
            types[name] = "i32"
        elif module == ctc_kernels.__name__:
            types[name] = "*fp32" if name in ("log_probs", "phi", "products") else "*fp64"
        elif name == "states":
            types[name] = "*bf16" if dtype == "bf16" else "*fp32"
        else:
            alike = name in ALIKE or (name in ("B", "C") and module == kernels.__name__)
            types[name] = f"*{dtype}" if alike and module not in FLOAT32 else "*fp32"
    return types


def build(
    function, constants: dict, warps: int, *, capability: int, dtype: str, narrow: tuple[str, ...] = ()
):
    limits = {kernels.scan_kernel: FORWARD.registers, kernels.backward_kernel: BACKWARD.registers}
    types = signature(function, constants, dtype) | {name: "*bf16" for name in narrow}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(function, types, constexprs=places, attrs={})
    options = {"num_warps": warps, "num_stages": 1, "maxnreg": limits.get(function)}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled(compiled, capability: int) -> int:
    """Return the spilled bytes per thread of a compiled kernel's PTX, assembled for another capability."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.asm["ptx"])
        arch = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
        done = subprocess.run(
            [TOOLS / "ptxas", "-v", f"--gpu-name={arch}", source, "-o", source.with_suffix(".cubin")],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"ptxas for {arch}: {done.stderr.strip()}")
    return max(int(count) for count in re.findall(r"(\d+) bytes stack frame", done.stderr))


def report(compiled, *, brief: bool) -> dict:
    """Return registers, spilled bytes and shared memory. Unless ``brief``, count also the instructions of the
    innermost loop with the most exp2."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        listing = ""
        if not brief:
            listing = subprocess.run(
                [TOOLS / "cuobjdump", "-sass", file.name], capture_output=True, text=True, check=True
            ).stdout
    found = {
        key: int(re.search(rf"{key}:(\d+)", usage.stdout + usage.stderr).group(1))
        for key in ("REG", "STACK", "SHARED")
    }
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", listing)
    at = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    loops = []
    for i, (address, text) in enumerate(lines):
        target = re.search(r"BRA.*?(0x[0-9a-f]+)", text)
        if target and (start := int(target.group(1), 16)) < int(address, 16) and start in at:
            names = [re.sub(r"^@!?U?P\w+ ", "", t).split()[0] for _, t in lines[at[start] : i + 1]]
            loops.append(collections.Counter(n if n.startswith("MUFU") else n.split(".")[0] for n in names))
    loops.sort(key=lambda loop: -loop["MUFU.EX2"] / sum(loop.values()))
    return found | {"loop": loops[0] if loops else collections.Counter()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--capability", type=int, default=86, help="80: A100, 86: A6000, 90: H100 (default 86)"
    )
    parser.add_argument("--states", type=int, default=16, help="d_state (default 16)")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16")
    parser.add_argument("--plain", action="store_true", help="the plain Triton form, without PTX assembly")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument(
        "--also", type=int, nargs="+", default=[], metavar="CAPABILITY", help="assemble for these as well"
    )
    parser.add_argument("--brief", action="store_true", help="leave out the loops")
    options = parser.parse_args(argv)
    failed = False
    chosen = variants(options.states, options.dtype == "fp32", not options.plain)
    if unknown := set(options.kernels or ()) - chosen.keys():
        parser.error(f"there is no kernel {unknown.pop()}; there are: {', '.join(chosen)}")
    target = f"compute capability {options.capability / 10}, {options.dtype}"
    print(f"{target}, {options.states} states, Triton {triton.__version__}")
    for name, (function, constants, warps) in chosen.items():
        if options.kernels and name not in options.kernels:
            continue
        started = time.perf_counter()
        try:
            narrow = (
                ("A_log", "x_proj", "dt_proj", "in_proj", "out_proj")
                if name.endswith("16-bit weights")
                else ()
            )
            compiled = build(
                function,
                constants,
                warps,
                capability=options.capability,
                dtype=options.dtype,
                narrow=narrow,
            )
            r = report(compiled, brief=options.brief)
            also = [f", {spilled(compiled, other)} bytes spilled on {other / 10}" for other in options.also]
        except Exception as error:  # whatever the compiler raises, the other kernels are of interest too
            failed = True
            print(f"{name:24} does not compile: {error}")
            continue
        loop = ", ".join(f"{count} {what}" for what, count in r["loop"].most_common(6))
        loop = "" if options.brief else f"; loop of {sum(r['loop'].values())}: {loop}"
        print(
            f"{name:24} {r['REG']:3} registers, {r['STACK']:3} bytes spilled{''.join(also)}, "
            f"{r['SHARED']:5} shared, {time.perf_counter() - started:4.1f} s{loop}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
