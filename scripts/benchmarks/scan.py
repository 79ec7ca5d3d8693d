#!/usr/bin/env python3
"""How fast are the selective scan and the bi-Mamba mixer, next to others' on the same work?

    python scripts/benchmarks/scan.py [--device cuda] [--inline_ptx on|off|both] [--json FILE]

On a CPU: both directions of the scan, (batch, frames, channels, states) = (8, 400, 288, 16), against the time
loop and against the parallel scan of the package mambapy (pip install mambapy).

On a GPU: forward and backward of the whole mixer in bfloat16 against mamba-ssm's CUDA kernels as ConMamba
uses them (two ``mamba_inner_fn`` calls, one on a flipped copy), where that package is installed with its
Mamba-1 kernel. Time as a user has it, host included, and again as the replay of a CUDA graph, which leaves
the GPU's part; peak memory; and the share of the card's measured copy bandwidth and exp2 throughput that the
replay reaches.

With --inline_ptx both, on a GPU: the backward kernel's two forms, with PTX assembly and in plain Triton, are
checked against each other and against float64, and timed in turns, the scan alone and the whole mixer. off
runs everything else in the plain form.

Every side is checked before it is timed (output and gradients, on a small batch), and both sides of a ratio
run in turns.
"""

from __future__ import annotations

import statistics
import sys

import torch
import torch.nn.functional as F
from benchmarking import (
    compare,
    graphed,
    in_turns,
    median_seconds,
    options_of,
    print_table,
    ratio_of,
    relative_error,
    require,
    write_json,
)

from hmamba_asr.modules.bimamba import BiMamba
from hmamba_asr.ops.selective_scan import fused, mamba_ssm, scan_directions
from hmamba_asr.system.hardware import hardware, machine_name
from hmamba_asr.system.memory import added_memory_mib

CPU_SHAPE = (8, 400, 288, 16)
GPU_SHAPES = [
    (64, 400, 144),
    (16, 1600, 144),
    (1, 15000, 144),
    (64, 400, 512),
    (16, 1600, 512),
    (1, 15000, 512),
]
FORMS_SHAPES = GPU_SHAPES[:3]  # of one width, because each width compiles kernels of its own


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--pairs", type=int, help="timed pairs of runs (default: 7 on a CPU, 30 on a GPU)")
    parser.add_argument(
        "--inline_ptx",
        choices=["on", "off", "both"],
        default="on",
        help="PTX assembly in the backward kernel, plain Triton, or only these two side by side (GPU)",
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type != "cuda" and options.inline_ptx != "on":
        parser.error("--inline_ptx is about a GPU kernel; run it on a machine with a CUDA GPU.")
    torch.manual_seed(0)
    fused.INLINE_PTX = options.inline_ptx != "off"
    figures = {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "inline_ptx": options.inline_ptx,
    }
    measure = on_gpu if device.type == "cuda" else on_cpu
    if options.inline_ptx == "both":
        measure = both_forms
    figures |= measure(device, options.pairs or (30 if device.type == "cuda" else 7))
    write_json(options.json, figures)


# ---- CPU ------------------------------------------------------------


def scan_inputs(batch: int, length: int, channels: int, n: int) -> list[torch.Tensor]:
    """Return both directions' inputs, distributed as in a fresh mixer."""
    shape = (2, batch, length)
    u, B, C = torch.randn(*shape, channels), torch.randn(*shape, n), torch.randn(*shape, n)
    delta = torch.randn(*shape, channels) - 4.0
    A = -torch.arange(1.0, n + 1).expand(2, channels, n).contiguous()
    return [x.requires_grad_() for x in (u, delta, A, B, C)]


def mambapy_scan(u, delta, A, B, C):
    """Scan with mambapy: its parallel scan keeps all states in memory, and the reverse direction runs on
    flipped copies."""
    from mambapy.pscan import pscan

    outputs = []
    for g, flip in enumerate((False, True)):
        ug, dg, Bg, Cg = (x[g].flip(1) if flip else x[g] for x in (u, F.softplus(delta), B, C))
        states = pscan(torch.exp(dg.unsqueeze(-1) * A[g]), (dg * ug).unsqueeze(-1) * Bg.unsqueeze(2))
        y = (states @ Cg.unsqueeze(-1)).squeeze(3)
        outputs.append(y.flip(1) if flip else y)
    return torch.stack(outputs)


def loop_scan(u, delta, A, B, C):
    """Run the reference's time loop, over the whole batch at once."""
    from hmamba_asr.ops.selective_scan.reference import selective_scan_step

    dt, outputs = F.softplus(delta), []
    for g, reverse in enumerate((False, True)):
        state, rows = u.new_zeros(u.shape[1], *A[g].shape), [None] * u.shape[2]
        for t in reversed(range(u.shape[2])) if reverse else range(u.shape[2]):
            rows[t], state = selective_scan_step(u[g, :, t], dt[g, :, t], A[g], B[g, :, t], C[g, :, t], state)
        outputs.append(torch.stack(rows, 1))
    return torch.stack(outputs)


def on_cpu(device: torch.device, pairs: int) -> dict:
    inputs = scan_inputs(*CPU_SHAPE)
    weight = torch.randn(2, *CPU_SHAPE[:3])

    def gradients(run):
        return torch.autograd.grad((run(*inputs) * weight).sum(), inputs)

    def forward(run):
        with torch.no_grad():
            return run(*inputs)

    sides = {"time loop": loop_scan}
    try:
        import mambapy.pscan  # noqa: F401

        sides["mambapy"] = mambapy_scan
    except ImportError:
        print("mambapy is not installed (pip install mambapy): its rows are left out.")
    small = [x[:, :2, :50].double() if x.dim() == 4 else x.double() for x in inputs]
    exact = scan_directions(*small, backend="reference")
    for name, run in {"chunked": scan_directions, **sides}.items():
        require(f"{name}'s output", relative_error(run(*small), exact), 1e-9)
        require(f"{name}'s float32 output", relative_error(run(*(x.float() for x in small)), exact), 1e-5)
    ours = gradients(scan_directions)
    for name, run in sides.items():
        for x, a, b in zip(["u", "delta", "A", "B", "C"], ours, gradients(run), strict=True):
            require(f"the gradient of {x} beside {name}'s", relative_error(a, b), 1e-4)

    figures, rows = {"shape": CPU_SHAPE}, []
    keys = {"time loop": "loop", "mambapy": "mambapy"}
    for name, run in sides.items():
        # The loop's backward takes minutes: one pair of runs is enough to see the factor.
        few = 1 if name == "time loop" else pairs
        for what, measure, count in (("fwd", forward, pairs), ("fwd_bwd", gradients, few)):
            ratio = compare(
                lambda m=measure: m(scan_directions),
                lambda m=measure, r=run: m(r),
                device,
                pairs=count,
                warmup=min(count - 1, 2),
            )
            figures[f"cpu_{what}_vs_{keys[name]}"] = ratio.median
            rows.append([name, what, f"{ratio.ours:.3f}", f"{ratio.theirs:.3f}", str(ratio)])
    header = ["against", "pass", "ours (s)", "theirs (s)", "ratio: median (min to max)"]
    print_table(
        f"Selective scan, both directions, {CPU_SHAPE}, float32, {machine_name(hardware(device))}",
        header,
        rows,
    )
    return figures


# ---- GPU ------------------------------------------------------------


class TwoCalls(torch.nn.Module):
    """A BiMamba's parameters, run as ConMamba runs them: channels first, one fused call forwards and one on a
    flipped copy."""

    def __init__(self, mixer: BiMamba):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

        m, (batch, length, d_model) = self.mixer, x.shape
        xz = (
            (m.in_proj.weight.to(x.dtype) @ x.reshape(-1, d_model).t())
            .view(-1, batch, length)
            .transpose(0, 1)
        )
        outputs = []
        for g in range(2):
            A = -torch.exp(m.A_log[g].float())
            x_proj = m.x_proj[g].roll(m.dt_rank, 1)  # mamba-ssm has dt first, then B and C
            y = mamba_inner_fn(
                xz.flip(-1) if g else xz,
                m.conv_weight[g].unsqueeze(1),
                m.conv_bias[g],
                x_proj.t().to(x.dtype),
                m.dt_proj[g].t().to(x.dtype),
                m.out_proj.weight.to(x.dtype),
                None,
                A,
                None,
                None,
                m.D[g].float(),
                delta_bias=m.dt_bias[g].float(),
                delta_softplus=True,
            )
            outputs.append(y.flip(1) if g else y)
        return (outputs[0] + outputs[1]) / 2


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes that a large copy reads and writes per second."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), device, repeats=10)


def exp2_throughput(device: torch.device) -> float:
    """Return the exp2 per second of a kernel that does nothing else."""
    import triton
    import triton.language as tl

    global burn  # a Triton kernel must be found by its name
    rounds, block, programs = 256, 1024, 132 * 64

    @triton.jit
    def burn(x, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        a = tl.load(x + i)
        for _ in range(ROUNDS):
            a = tl.exp2(a)
        tl.store(x + i, a)

    x = torch.rand(programs * block, device=device)
    taken = median_seconds(lambda: burn[(programs,)](x, rounds, block), device, repeats=10)
    return programs * block * rounds / taken


def on_gpu(device: torch.device, pairs: int) -> dict:
    bandwidth, exponentials = copy_bandwidth(device), exp2_throughput(device)
    rates = f"copy {bandwidth / 1e12:.2f} TB/s, {exponentials / 1e12:.2f} T exp2/s"
    print(f"{machine_name(hardware(device))}: {rates}")
    reason = mamba_ssm.unavailable_reason()
    if reason:
        print(f"No peer: {reason}")
    figures = {"copy_bytes_per_second": bandwidth, "exp2_per_second": exponentials, "shapes": {}}
    rows = []
    for batch, length, d_model in GPU_SHAPES:
        ours = BiMamba(d_model=d_model, scan_backend="triton").to(device)
        x = torch.randn(batch, length, d_model, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn_like(x)
        lengths = torch.full((batch,), length, device=device)
        check(ours, d_model, device, reason is None)

        def step(run):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                y = run()
            return torch.autograd.grad(y, [x, *ours.parameters()], weight)  # noqa: B023

        def run_ours():
            return step(lambda: ours(x, lengths))  # noqa: B023

        run_ours()  # compiles
        figure = {"ours_mib": added_memory_mib(run_ours, device)}
        replay = graphed(run_ours)
        if reason:
            figure["ours_seconds"] = median_seconds(run_ours, device, repeats=pairs)
            figure["ours_gpu_seconds"] = median_seconds(replay, device, repeats=pairs)
            cells = [
                f"{figure['ours_seconds'] * 1e3:.2f}",
                "",
                "",
                f"{figure['ours_gpu_seconds'] * 1e3:.2f}",
                "",
                "",
            ]
        else:
            peer = TwoCalls(ours)

            def run_theirs():
                return step(lambda: peer(x))  # noqa: B023

            eager = compare(run_ours, run_theirs, device, pairs=pairs)
            gpu = compare(replay, graphed(run_theirs), device, pairs=pairs)
            figure |= {
                "theirs_mib": added_memory_mib(run_theirs, device),
                "ours_seconds": eager.ours,
                "theirs_seconds": eager.theirs,
                "gpu_fwd_bwd_vs_mamba_ssm": eager.median,
                "ours_gpu_seconds": gpu.ours,
                "theirs_gpu_seconds": gpu.theirs,
                "gpu_fwd_bwd_vs_mamba_ssm_graph": gpu.median,
            }
            figure["gpu_memory_vs_mamba_ssm"] = figure["ours_mib"] / figure["theirs_mib"]
            cells = [
                text
                for r in (eager, gpu)
                for text in (f"{r.ours * 1e3:.2f}", f"{r.theirs * 1e3:.2f}", str(r))
            ]
        # The least that any bidirectional scan must do: one exp2 forwards and one backwards for each frame,
        # channel and state.
        elements = 2 * batch * length * ours.d_inner * ours.d_state
        figure["exp2_share"] = 2 * elements / exponentials / figure["ours_gpu_seconds"]
        figure["bandwidth_share"] = (
            minimal_bytes(ours, batch * length) / bandwidth / figure["ours_gpu_seconds"]
        )
        key = f"{batch}x{length}x{d_model}"
        figures["shapes"][key] = figure
        memory = (
            ["", ""]
            if reason
            else [f"{figure['theirs_mib']:.0f}", f"{figure['gpu_memory_vs_mamba_ssm']:.2f}"]
        )
        shares = [f"{figure[name]:.0%}" for name in ("exp2_share", "bandwidth_share")]
        rows.append([key, *cells, f"{figure['ours_mib']:.0f}", *memory, *shares])
    header = [
        "batch x frames x d_model",
        "ours (ms)",
        "theirs (ms)",
        "ratio: median (min to max)",
        "GPU: ours (ms)",
        "theirs (ms)",
        "ratio: median (min to max)",
        "ours (MiB)",
        "theirs (MiB)",
        "memory",
        "of exp2",
        "of copy",
    ]
    print_table("Bi-Mamba mixer, forward and backward, bfloat16, against two mamba-ssm calls", header, rows)
    return figures


def minimal_bytes(mixer: BiMamba, frames: int) -> int:
    """Return the bytes moved if every product stayed on the chip between the projections.

    These are, in bfloat16, the mixer's input and gate, u and dt of both directions, and the output: once
    forwards, and with their gradients once backwards.
    """
    forward = 2 + 2 * 2 + 1
    return frames * mixer.d_inner * 2 * (forward + 2 * forward)


def check(mixer: BiMamba, d_model: int, device: torch.device, with_peer: bool) -> None:
    """Check ours and theirs against the chunked scan in float64: output and the gradient of the input."""
    x = torch.randn(3, 70, d_model, device=device)
    lengths = torch.tensor([70, 70, 70], device=device)
    exact = BiMamba(d_model=d_model, scan_backend="chunked").to(device, torch.float64)
    exact.load_state_dict(mixer.state_dict())
    weight = torch.randn_like(x)

    def both(run, dtype):
        inputs = x.to(dtype).requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = run(inputs)
        return y, torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs)[0]

    expected = both(lambda v: exact(v, lengths), torch.float64)
    runs = {"ours": lambda v: mixer(v, lengths)} | ({"mamba-ssm": TwoCalls(mixer)} if with_peer else {})
    for name, run in runs.items():
        for what, a, b in zip(("output", "input gradient"), both(run, torch.bfloat16), expected, strict=True):
            require(f"{name}: {what} at d_model {d_model}", relative_error(a, b), 2e-2)


def both_forms(device: torch.device, pairs: int) -> dict:
    """Time the backward kernel with PTX assembly against plain Triton, as replays of CUDA graphs."""
    torch.backends.cuda.matmul.allow_tf32 = False
    figures: dict = {"shapes": {}}
    rows = []
    check_forms(2 * FORMS_SHAPES[0][2], device)
    for batch, length, d_model in FORMS_SHAPES:
        print(f"timing {batch} x {length} x {d_model}", file=sys.stderr, flush=True)
        mixer = BiMamba(d_model=d_model, scan_backend="triton").to(device)
        x = torch.randn(batch, length, d_model, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn_like(x)
        lengths = torch.full((batch,), length, device=device)
        scanned = [
            v.detach().to(device, torch.bfloat16 if v.dim() == 4 else torch.float32).requires_grad_()
            for v in scan_inputs(batch, length, mixer.d_inner, mixer.d_state)
        ]
        scan_weight = torch.randn_like(scanned[0])

        def of_mixer():
            with torch.autocast("cuda", dtype=torch.bfloat16):
                y = mixer(x, lengths)  # noqa: B023
            return torch.autograd.grad(y, [x, *mixer.parameters()], weight)  # noqa: B023

        def of_scan():
            y = scan_directions(*scanned, lengths=lengths, backend="triton")  # noqa: B023
            return torch.autograd.grad(y, scanned, scan_weight)  # noqa: B023

        key = f"{batch}x{length}x{d_model}"
        figures["shapes"][key] = {}
        for part, run in (("mixer", of_mixer), ("scan", of_scan)):
            runs = {}
            for form, inline_ptx in (("ptx", True), ("plain", False)):
                fused.INLINE_PTX = inline_ptx
                runs[form] = graphed(run)
            times = in_turns(runs, device, rounds=pairs, warmup=3)
            ratio = ratio_of(times["ptx"], times["plain"])
            figures["shapes"][key][part] = {**times, "plain_over_ptx": vars(ratio)}
            spans = [
                " / ".join(f"{1e3 * f(times[form]):.3f}" for f in (min, statistics.median, max))
                for form in runs
            ]
            rows.append([key, part, *spans, str(ratio)])
    fused.INLINE_PTX = True
    header = [
        "batch x frames x d_model",
        "part",
        "PTX (ms): min / median / max",
        "plain Triton (ms): min / median / max",
        "plain / PTX: median (min to max)",
    ]
    print_table("Forward and backward, bfloat16, CUDA graphs, PTX assembly or plain Triton", header, rows)
    return figures


def check_forms(channels: int, device: torch.device) -> None:
    """Check both forms' gradients, in bfloat16, against the chunked scan in float64.

    The kernels are those that are timed, so that each is compiled once, which takes half a minute.
    tests/ops/test_selective_scan_kernels.py checks other types and deterministic sums.
    """
    exact = [x.detach().double().requires_grad_() for x in scan_inputs(3, 70, channels, 16)]
    weight = torch.randn(exact[0].shape, dtype=torch.float64)
    lengths = torch.tensor([70, 33, 1])
    y = scan_directions(*exact, lengths=lengths, backend="chunked")
    expected = torch.autograd.grad(y, exact, weight)
    for inline_ptx in (True, False):
        form = "PTX assembly" if inline_ptx else "plain Triton"
        print(f"compiling and checking the form in {form}", file=sys.stderr, flush=True)
        fused.INLINE_PTX = inline_ptx
        inputs = [
            x.detach().to(device, torch.bfloat16 if x.dim() == 4 else torch.float32).requires_grad_()
            for x in exact
        ]
        y = scan_directions(*inputs, lengths=lengths.to(device), backend="triton")
        found = torch.autograd.grad(y, inputs, weight.to(y))
        for name, a, e in zip(["u", "delta", "A", "B", "C"], found, expected, strict=True):
            require(f"{form}: the gradient of {name}", relative_error(a, e), 2e-2)


if __name__ == "__main__":
    main()
