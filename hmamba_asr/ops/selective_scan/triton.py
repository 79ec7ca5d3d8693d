"""The selective scan by Triton kernels (:mod:`.kernels`): allocation, launch, and registration with PyTorch.

Registered as ``torch.ops.hmamba_asr.selective_scan``, so that ``torch.compile`` keeps it whole. Inputs may be float32, bfloat16
or float16; states, decays and sums are float32. The backward pass keeps nothing but the inputs: it runs the recurrence once
more and holds the state before every tile of T frames while it works.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
T = 16  # frames of a tile
BLOCK_D = 32  # channels of a program, one for each thread of its warp
WARPS_PER_PROCESSOR = 8  # the backward kernel's 248 registers a thread leave room for so many
PREPASS_COST = 0.4  # of what finds the states between segments, relative to the passes that need them


def unavailable_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run on tensors of ``device``, as one sentence; None where they can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"the triton backend needs the triton package ({error}); install it, or use backend 'auto' or 'chunked'."
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return (
        f"the triton backend needs a CUDA GPU, and the tensors are on {device.type}; use backend 'auto' or 'chunked' (or set "
        "TRITON_INTERPRET=1 to run the kernels slowly, for tests)."
    )


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _segments(programs: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """(number of segments, tiles in each) for the shortest time: waves of programs, against the states between segments."""
    slots = WARPS_PER_PROCESSOR * _processors(device)

    def cost(segments: int) -> float:
        each = -(-tiles // segments)
        return -(-programs * segments // slots) * each * (1 + PREPASS_COST * (segments - 1) / segments)

    wanted = min(range(1, min(tiles, 1 + 4 * slots // programs) + 1), key=cost, default=1)
    each = max(1, -(-tiles // wanted))
    return max(1, -(-tiles // each)), each


class _Launch:
    """One scan's inputs in the kernels' terms, B and C (G, batch, tile, 2, N, 16) in scan time."""

    def __init__(self, u, delta, A, B, C, D, delta_bias, lengths, reverse_bits):
        from hmamba_asr.ops.selective_scan import kernels

        self.kernels = kernels
        self.u, self.delta, B, C = (x if x.stride(-1) == 1 else x.contiguous() for x in (u, delta, B, C))
        self.groups, self.batch, self.length, self.channels = u.shape
        self.n = A.shape[-1]
        self.A2 = (A.float() * LOG2_E).transpose(1, 2).contiguous()
        self.D, self.delta_bias = (None if x is None else x.contiguous() for x in (D, delta_bias))
        self.lengths, self.reverse_bits = lengths, reverse_bits
        self.blocks = -(-self.channels // BLOCK_D)
        self.tiles = -(-self.length // T)
        self.rows = self.groups * self.batch
        self.segments, self.segment_tiles = _segments(self.blocks * self.rows, self.tiles, u.device)
        self.BC = self.new(self.tiles, 2, self.n, T)
        self.copy_tiles(B, self.BC, 0)
        self.copy_tiles(C, self.BC, 1)

    def new(self, *shape: int, zero: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
        make = torch.zeros if zero else torch.empty
        return make(self.groups, self.batch, *shape, device=self.u.device, dtype=dtype)

    def copy_tiles(self, x: Tensor, tiles: Tensor, part: int, *, back: bool = False) -> None:
        """x (G, batch, L, N) into or out of part 0 (B) or 1 (C) of ``tiles``."""
        self.kernels.tile_kernel[(self.tiles, self.rows)](
            x, tiles, self._or(self.lengths), *x.stride()[:3], self.length, self.batch, self.tiles, part, 2, self.reverse_bits,
            N=self.n, N_PAD=1 << (self.n - 1).bit_length(), HAS_LENGTHS=self.lengths is not None, FROM_TILES=back, num_warps=1,
        )  # fmt: skip

    def recur(self, carry: Tensor, *, y=None, starts=None, spans=None, adjoint_of: Tensor | None = None) -> None:
        """Run all segments, or with ``spans`` those whose last state some other segment starts from."""
        adjoint = adjoint_of is not None
        u = adjoint_of if adjoint else self.u
        skipped = 1 if spans is not None else 0
        none = self.u  # any tensor: an argument that the flags switch off is never read
        self.kernels.scan_kernel[(self.blocks, self.rows, self.segments - skipped)](
            u, self.delta, self._or(self.delta_bias), self.A2, self.BC, self._or(self.D), none if y is None else y,
            none if starts is None else starts, carry, none if spans is None else spans, self._or(self.lengths),
            *u.stride()[:3], *self.delta.stride()[:3], self.length, self.batch, self.channels, self.tiles, self.segment_tiles,
            self.segments, skipped if adjoint else 0, self.reverse_bits, N=self.n, BLOCK_D=BLOCK_D, ADJOINT=adjoint,
            WRITE_Y=y is not None, WRITE_STARTS=starts is not None, WRITE_SPANS=spans is not None,
            HAS_D=self.D is not None and y is not None, HAS_BIAS=self.delta_bias is not None,
            HAS_LENGTHS=self.lengths is not None, num_warps=1, num_stages=1,
        )  # fmt: skip

    def segment_starts(self, initial: Tensor | None, *, adjoint_of: Tensor | None = None) -> Tensor:
        """The state (G, batch, segment, N, D) that each segment starts from; ``initial`` is (G, batch, N, D)."""
        carry = self.new(self.segments, self.n, self.channels, zero=True)
        if self.segments == 1:
            return carry if initial is None else carry.copy_(initial.unsqueeze(2))
        spans = self.new(self.segments, self.channels, zero=True)
        self.recur(carry, spans=spans, adjoint_of=adjoint_of)
        block = 128
        self.kernels.pass_kernel[(-(-self.channels // block), self.rows, self.n)](
            carry, spans, self.A2, self.u if initial is None else initial.contiguous(), self.batch, self.channels, self.segments,
            N=self.n, BLOCK=block, FROM_END=adjoint_of is not None, HAS_INITIAL=initial is not None, num_warps=4,
        )  # fmt: skip
        return carry

    def _or(self, x: Tensor | None) -> Tensor:
        return self.u if x is None else x


def run_forward(u, delta, A, B, C, D, delta_bias, lengths, initial, reverse_bits: int) -> tuple[Tensor, Tensor]:
    """y (G, batch, L, D) in u's dtype and the last state (G, batch, N, D) in float32; ``initial`` is shaped like the latter."""
    launch = _Launch(u, delta, A, B, C, D, delta_bias, lengths, reverse_bits)
    carry = launch.segment_starts(initial)
    y = launch.new(launch.length, launch.channels, dtype=u.dtype)
    launch.recur(carry, y=y)
    return y, carry[:, :, -1]


def run_backward(
    gy, glast, u, delta, A, B, C, D, delta_bias, lengths, initial, reverse_bits: int, *, deterministic: bool,
    gdelta=None, gB=None, gC=None,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients by name. gy (G, batch, L, D), also with stride 0 over G; glast (G, batch, N, D) or None. ``gdelta``, ``gB`` and
    ``gC`` are where those are written if given; ``gdelta`` may be ``delta`` itself."""
    launch = _Launch(u, delta, A, B, C, D, delta_bias, lengths, reverse_bits)
    n, channels = launch.n, launch.channels
    starts = launch.new(launch.tiles, n, channels)
    launch.recur(launch.segment_starts(initial), starts=starts)
    gy = gy if gy.stride(-1) == 1 else gy.contiguous()
    carry = launch.segment_starts(glast, adjoint_of=gy)
    gu = launch.new(launch.length, channels, dtype=u.dtype)
    gdelta = launch.new(launch.length, channels, dtype=delta.dtype) if gdelta is None else gdelta
    gBC = torch.zeros(launch.blocks if deterministic else 1, *launch.BC.shape, device=u.device)
    gA = launch.new(launch.segments, n, channels, zero=True)
    gD, gbias = (launch.new(launch.segments, channels, zero=True) for _ in range(2))
    launch.kernels.backward_kernel[(launch.blocks, launch.rows, launch.segments)](
        launch.u, launch.delta, launch._or(launch.delta_bias), launch.A2, launch.BC, launch._or(launch.D), gy, starts, carry,
        launch._or(lengths), gu, gdelta, gBC, gA, gD, gbias, *launch.u.stride()[:3], *launch.delta.stride()[:3], *gy.stride()[:3],
        launch.length, launch.batch, channels, launch.tiles, launch.segment_tiles, launch.segments, reverse_bits,
        gBC.stride(0) if deterministic else 0, N=n, N_PAD=max(16, 1 << (n - 1).bit_length()), BLOCK_D=BLOCK_D,
        HAS_D=D is not None, HAS_BIAS=delta_bias is not None, HAS_LENGTHS=lengths is not None, ATOMIC=not deterministic,
        EXACT=u.dtype == torch.float32, num_warps=1, num_stages=1,
    )  # fmt: skip
    gBC = gBC.sum(0)
    gB = torch.empty_like(B, memory_format=torch.contiguous_format) if gB is None else gB
    gC = torch.empty_like(C, memory_format=torch.contiguous_format) if gC is None else gC
    launch.copy_tiles(gB, gBC, 0, back=True)
    launch.copy_tiles(gC, gBC, 1, back=True)
    return {
        "u": gu, "delta": gdelta, "A": gA.sum((1, 2)).transpose(1, 2), "B": gB, "C": gC,
        "D": gD.sum((1, 2)), "delta_bias": gbias.sum((1, 2)), "initial": carry[:, :, 0],
    }  # fmt: skip


@torch.library.custom_op("hmamba_asr::selective_scan", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    lengths: Tensor | None, initial: Tensor | None, reverse_bits: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, last = run_forward(u, delta, A, B, C, D, delta_bias, lengths, initial, reverse_bits)
    return y, last.clone()


@_scan.register_fake
def _(u, delta, A, B, C, D, delta_bias, lengths, initial, reverse_bits):
    groups, batch, _, channels = u.shape
    return torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(
        groups, batch, A.shape[-1], channels, dtype=torch.float32
    )


@torch.library.custom_op("hmamba_asr::selective_scan_backward", mutates_args=())
def _scan_backward(
    gy: Tensor, glast: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, lengths: Tensor | None, initial: Tensor | None, reverse_bits: int, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grads = run_backward(
        gy, glast, u, delta, A, B, C, D, delta_bias, lengths, initial, reverse_bits, deterministic=deterministic
    )  # fmt: skip
    like = {"A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    for name, x in like.items():
        grads[name] = grads[name].to(x.dtype if x is not None else torch.float32).contiguous()
    grads["initial"] = grads["initial"].clone()
    return tuple(grads.values())


@_scan_backward.register_fake
def _(gy, glast, u, delta, A, B, C, D, delta_bias, lengths, initial, reverse_bits, deterministic):
    groups, batch, _, channels = u.shape

    def like(x):
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    vectors = [u.new_empty(groups, channels, dtype=torch.float32 if x is None else x.dtype) for x in (D, delta_bias)]
    state = u.new_empty(groups, batch, A.shape[-1], channels, dtype=torch.float32)
    return like(u), like(delta), like(A), like(B), like(C), *vectors, state


def _setup(ctx, inputs, output):
    *tensors, ctx.reverse_bits = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gy, glast):
    u, delta, A, B, C, D, delta_bias, lengths, initial = ctx.saved_tensors
    gu, gdelta, gA, gB, gC, gD, gbias, ginitial = _scan_backward(
        gy, glast, u, delta, A, B, C, D, delta_bias, lengths, initial, ctx.reverse_bits,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return (
        gu, gdelta, gA, gB, gC, None if D is None else gD, None if delta_bias is None else gbias, None,
        None if initial is None else ginitial, None,
    )  # fmt: skip


_scan.register_autograd(_backward, setup_context=_setup)


def scan_groups(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    lengths: Tensor | None, initial: Tensor | None, reversed_groups: tuple[bool, ...],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Scan of G parameter sets in one launch, each forwards or in reverse, with softplus, bias and skip inside.

    Shapes: u, delta (G, batch, L, D); A (G, D, N); B, C (G, batch, L, N); D, delta_bias (G, D); lengths (batch,); initial
    (G, batch, N, D). Returns y like u and the last state (G, batch, N, D) in float32.
    """
    bits = sum(1 << g for g, reverse in enumerate(reversed_groups) if reverse)
    return _scan(u, delta, A, B, C, D, delta_bias, lengths, initial, bits)
