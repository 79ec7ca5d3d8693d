"""The selective scan by Triton kernels (:mod:`.kernels`): allocation, launch, and registration with PyTorch.

Inputs may be float32, bfloat16 or float16; states, decays and sums are float32. Nothing but the inputs is
kept for the backward pass, which runs the recurrence once more and holds the states before its tiles only
for the segments in work. For bfloat16 inputs these states are rounded to bfloat16.

PyTorch sees the scan as the operation ``hmamba_asr::selective_scan`` (:mod:`~hmamba_asr.ops.register`).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmamba_asr.ops.register import KernelOp

LOG2_E = 1.4426950408889634
T = 16  # frames of a tile
BLOCK_D = 32  # channels of a program, one for each thread of its warp
INLINE_PTX = True  # whether the backward kernel uses PTX assembly, which Triton's interpreter cannot run


@dataclass(frozen=True)
class _Pass:
    """What decides into how many segments a pass cuts time, fitted to an H100.

    Attributes
    ----------
    registers : int
        Of a thread.
    warps : int
        How many of them fit, with these registers, into each of a processor's four parts.
    latency : float
        Time of a warp alone for a tile, in units of what each further warp adds.
    prepass : float
        Cost of finding the states between segments, relative to the pass.
    """

    registers: int
    warps: int
    latency: float
    prepass: float


FORWARD = _Pass(registers=128, warps=4, latency=2.3, prepass=0.8)
BACKWARD = _Pass(registers=168, warps=3, latency=5.7, prepass=0.5)
PARTS = 4  # of a processor
PER_SEGMENT, FOR_SEGMENTS = 0.06, 10.0  # passing states on, in the same units: of every segment, and once


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def _segments(programs: int, tiles: int, parts: int, kind: _Pass) -> tuple[int, int]:
    """Return the number of segments, and the tiles in each, that take the shortest time. Few segments make
    programs wait for each other; many need more states between them."""

    def cost(segments: int) -> float:
        rounds, rest = divmod(programs * segments / parts, kind.warps)
        a_tile = rounds * (kind.latency + kind.warps) + (kind.latency + rest if rest else 0)
        between = FOR_SEGMENTS + PER_SEGMENT * segments if segments > 1 else 0
        return (1 - (-tiles // segments)) * a_tile * (1 + kind.prepass * (segments - 1) / segments) + between

    most = min(tiles, 1 + 4 * kind.warps * parts // programs)
    wanted = min(range(1, most + 1), key=cost, default=1)
    each = max(1, -(-tiles // wanted))
    return max(1, -(-tiles // each)), each


class _Scan:
    """The inputs of one scan, as the kernels want them."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A2: Tensor,
        BC: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        lengths: Tensor | None,
        reverse_bits: int,
        kind: _Pass,
    ):
        from hmamba_asr.ops.launch import launch
        from hmamba_asr.ops.selective_scan import kernels

        self.kernels, self.launch = kernels, launch
        self.u, self.delta = with_rows_in_line(u), with_rows_in_line(delta)
        self.groups, self.batch, self.length, self.channels = u.shape
        assert (
            self.groups <= 24
        )  # a bit of ``reverse_bits`` each; the backward kernel counts on the upper ones to be zero
        self.A2, self.BC, self.n = A2, BC, A2.shape[1]
        self.D, self.delta_bias, self.lengths, self.reverse_bits = D, delta_bias, lengths, reverse_bits
        self.blocks, self.rows = -(-self.channels // BLOCK_D), self.groups * self.batch
        self.tiles = -(-self.length // T)
        parts = PARTS * _processors(u.device)
        self.slots = kind.warps * parts
        self.segments, self.segment_tiles = _segments(self.blocks * self.rows, self.tiles, parts, kind)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, device=self.u.device, dtype=dtype or torch.float32)

    def zeros(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Return a tensor of zeros for each shape, all cleared in one launch."""
        sizes = [math.prod(shape) for shape in shapes]
        parts = torch.zeros(sum(sizes), device=self.u.device, dtype=torch.float32).split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def carry_shape(self) -> tuple[int, ...]:
        return self.groups, self.batch, self.segments, self.n, self.channels

    def optional(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Replace None by some tensor: the kernel never reads an argument that its flags switch off."""
        return tuple(self.u if x is None else x for x in tensors)

    def recur(
        self, carry: Tensor, *, y: Tensor | None = None, spans: Tensor | None = None, gy: Tensor | None = None
    ) -> None:
        """Run all segments; with ``spans`` only those whose last state another segment starts from. With
        ``gy`` run the adjoint recurrence."""
        u = self.u if gy is None else gy
        skipped = 0 if spans is None else 1
        self.launch(
            self.kernels.scan_kernel,
            (self.blocks, self.rows, self.segments - skipped),
            (
                u,
                self.delta,
                *self.optional(self.delta_bias),
                self.A2,
                self.BC,
                *self.optional(self.D, y),
                carry,
                *self.optional(spans, self.lengths),
            ),
            (
                *u.stride()[:2],
                *self.delta.stride()[:2],
                self.length,
                self.batch,
                self.tiles,
                self.segment_tiles,
                self.segments,
                0 if gy is None else skipped,
                self.reverse_bits,
            ),
            (
                self.channels,
                self.n,
                BLOCK_D,
                gy is not None,
                y is not None,
                spans is not None,
                self.D is not None and y is not None,
                self.delta_bias is not None,
                self.lengths is not None,
            ),
            num_warps=1,
            max_registers=FORWARD.registers,
        )

    def find_starts(self, carry: Tensor, initial: Tensor | None, *, gy: Tensor | None = None) -> None:
        """Fill ``carry`` (G, batch, segment, N, D), zero on entry, with the state that each segment starts
        from; ``initial`` is (G, batch, N, D)."""
        if self.segments == 1:
            if initial is not None:
                carry.copy_(initial.unsqueeze(2))
            return
        spans = self.empty(self.groups, self.batch, self.segments, self.channels)
        self.recur(carry, spans=spans, gy=gy)
        block = 128
        self.launch(
            self.kernels.pass_kernel,
            (-(-self.channels // block), self.rows, self.n),
            (carry, spans, self.A2, self.u if initial is None else initial.contiguous()),
            (self.batch, self.channels, self.segments),
            (self.n, block, gy is not None, initial is not None),
            num_warps=4,
        )


def with_rows_in_line(x: Tensor) -> Tensor:
    """Return x (G, batch, L, D), copied if an utterance's frames do not follow each other in memory."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


def _copy_tiles(
    B: Tensor, C: Tensor, tiles: Tensor, lengths: Tensor | None, reverse_bits: int, *, back: bool
) -> None:
    from hmamba_asr.ops.launch import launch
    from hmamba_asr.ops.selective_scan.kernels import tile_kernel

    groups, batch, length, n = B.shape
    launch(
        tile_kernel,
        (tiles.shape[2], groups * batch, 2),
        (B, C, tiles, B if lengths is None else lengths),
        (*B.stride()[:3], *C.stride()[:3], length, batch, tiles.shape[2], reverse_bits),
        (n, 1 << (n - 1).bit_length(), lengths is not None, back),
        num_warps=1,
    )


def to_tiles(B: Tensor, C: Tensor, lengths: Tensor | None, reverse_bits: int) -> Tensor:
    """Return B and C (G, batch, L, N) as the kernels want them: (G, batch, tile, 2, N, 16), float32 in scan
    time."""
    groups, batch, length, n = B.shape
    tiles = torch.empty(groups, batch, -(-length // T), 2, n, T, device=B.device, dtype=torch.float32)
    B, C = (x if x.stride(-1) == 1 else x.contiguous() for x in (B, C))
    _copy_tiles(B, C, tiles, lengths, reverse_bits, back=False)
    return tiles


def from_tiles(tiles: Tensor, B: Tensor, C: Tensor, lengths: Tensor | None, reverse_bits: int) -> None:
    """Copy tiles back into B and C, whose last axis must be contiguous."""
    _copy_tiles(B, C, tiles, lengths, reverse_bits, back=True)


def in_base_2(A: Tensor) -> Tensor:
    """Return A (G, D, N) as the kernels want it: (G, N, D), for powers of 2."""
    return torch.mul(A.float().transpose(1, 2), LOG2_E).contiguous()


def run_forward(
    u: Tensor,
    delta: Tensor,
    A2: Tensor,
    BC: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    reverse_bits: int,
    *,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the forward pass.

    Shapes are those of :func:`scan_directions`; ``A2`` is made by :func:`in_base_2`, ``BC`` by
    :func:`to_tiles`. The output is written to ``y`` if given, which may be ``u`` itself.

    Returns
    -------
    tuple of Tensor
        y (G, batch, L, D) in u's dtype, and the last state (G, batch, N, D) in float32.
    """
    scan = _Scan(u, delta, A2, BC, D, delta_bias, lengths, reverse_bits, FORWARD)
    (carry,) = scan.zeros(scan.carry_shape)
    scan.find_starts(carry, initial)
    y = torch.empty(u.shape, device=u.device, dtype=u.dtype) if y is None else y
    scan.recur(carry, y=y)
    return y, carry[:, :, -1]


def run_backward(
    gy: Tensor,
    glast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A2: Tensor,
    BC: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    reverse_bits: int,
    *,
    deterministic: bool,
    gu: Tensor | None = None,
    gdelta: Tensor | None = None,
) -> dict[str, Tensor]:
    """Launch the backward pass, for the gradients gy (G, batch, L, D), also with stride 0 over G, and glast
    (G, batch, N, D).

    The gradients of u and delta are written to ``gu`` and ``gdelta`` if given, which may be ``u`` and
    ``delta``. All else is as in :func:`run_forward`.

    Returns
    -------
    dict of str to Tensor
        The gradients "u", "delta", "BC" (the tiles) and "initial"; and two that are still to be summed over
        their second axis: "A" (G, batch x segment, N, D), and "vectors" (G, batch x segment, 2, D), those of
        D and delta_bias.
    """
    scan = _Scan(u, delta, A2, BC, D, delta_bias, lengths, reverse_bits, BACKWARD)
    n, copies = scan.n, scan.blocks if deterministic else 1
    gy = with_rows_in_line(gy)
    carry, adjoint, gBC = scan.zeros(scan.carry_shape, scan.carry_shape, (copies, *BC.shape))
    vectors = scan.empty(*scan.carry_shape[:3], 2, scan.channels)
    scan.find_starts(carry, initial)
    scan.find_starts(adjoint, glast, gy=gy)
    gu, gdelta = (
        torch.empty(x.shape, device=x.device, dtype=x.dtype) if given is None else given
        for x, given in ((u, gu), (delta, gdelta))
    )
    items = scan.blocks * scan.rows * scan.segments
    programs = min(items, scan.slots)
    # For bfloat16 inputs these states take half of the bytes. The recurrence itself does not read them; each
    # starts it again for its own 16 frames only.
    states = scan.empty(
        programs, scan.segment_tiles, n, BLOCK_D, dtype=torch.bfloat16 if u.dtype == torch.bfloat16 else None
    )
    scan.launch(
        scan.kernels.backward_kernel,
        (programs, 1, 1),
        (
            scan.u,
            scan.delta,
            *scan.optional(delta_bias),
            scan.A2,
            scan.BC,
            *scan.optional(D),
            gy,
            carry,
            adjoint,
            states,
            *scan.optional(lengths),
            gu,
            gdelta,
            gBC,
            vectors,
        ),
        (
            *scan.u.stride()[:2],
            *scan.delta.stride()[:2],
            *gy.stride()[:2],
            scan.length,
            scan.batch,
            scan.tiles,
            scan.segment_tiles,
            scan.segments,
            items,
            scan.blocks,
            reverse_bits,
            gBC.stride(0) if deterministic else 0,
        ),
        (
            scan.channels,
            n,
            BLOCK_D,
            D is not None,
            delta_bias is not None,
            lengths is not None,
            not deterministic,
            u.dtype == torch.float32,
            INLINE_PTX and os.environ.get("TRITON_INTERPRET") != "1",
        ),
        num_warps=1,
        max_registers=BACKWARD.registers,
    )
    return {
        "u": gu,
        "delta": gdelta,
        "BC": gBC.sum(0) if deterministic else gBC[0],
        "A": carry.flatten(1, 2),
        "vectors": vectors.flatten(1, 2),
        "initial": adjoint[:, :, 0],
    }


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    reverse_bits: int,
) -> tuple[Tensor, Tensor]:
    tiles = to_tiles(B, C, lengths, reverse_bits)
    return run_forward(u, delta, in_base_2(A), tiles, D, delta_bias, lengths, initial, reverse_bits)


def _fake(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Tensor | int | None
) -> tuple[Tensor, Tensor]:
    groups, batch, _, channels = u.shape
    return u.new_empty(u.shape), u.new_empty(groups, batch, A.shape[-1], channels, dtype=torch.float32)


def _backward(
    grads: Sequence[Tensor], saved: list[Tensor], wanted: list[bool], reverse_bits: int
) -> list[Tensor | None]:
    """Return the gradients of all inputs but ``lengths``, in their order."""
    u, delta, A, B, C, D, delta_bias, lengths, initial = saved
    gy, glast = grads
    found = run_backward(
        gy,
        glast,
        u,
        delta,
        in_base_2(A),
        to_tiles(B, C, lengths, reverse_bits),
        D,
        delta_bias,
        lengths,
        initial,
        reverse_bits,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    gB, gC = (torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (B, C))
    from_tiles(found["BC"], gB, gC, lengths, reverse_bits)
    gA = found["A"].sum(1).transpose(1, 2).to(A.dtype).contiguous()
    vectors = [
        None if x is None else g.to(x.dtype).contiguous()
        for g, x in zip(found["vectors"].sum(1).unbind(1), (D, delta_bias), strict=True)
    ]
    return [found["u"], found["delta"], gA, gB, gC, *vectors, found["initial"]]


_selective_scan_op = KernelOp(
    "selective_scan",
    _forward,
    backward=_backward,
    differentiable=(0, 1, 2, 3, 4, 5, 6, 8),
    results=2,
    fake=_fake,
)


def scan_directions(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    reversed_groups: tuple[bool, ...],
) -> tuple[Tensor, Tensor]:
    """Scan G parameter sets at once, each forwards or in reverse, with softplus, bias and skip inside.

    Parameters
    ----------
    u, delta : Tensor
        (G, batch, L, D).
    A : Tensor
        (G, D, N).
    B, C : Tensor
        (G, batch, L, N).
    D, delta_bias : Tensor or None
        (G, D).
    lengths : Tensor or None
        (batch,).
    initial : Tensor or None
        (G, batch, N, D), float32.
    reversed_groups : tuple of bool
        Which sets run in reverse.

    Returns
    -------
    tuple of Tensor
        y like u, and the last state (G, batch, N, D) in float32.
    """
    bits = sum(1 << g for g, reverse in enumerate(reversed_groups) if reverse)
    D, delta_bias, lengths = (None if x is None else x.contiguous() for x in (D, delta_bias, lengths))
    C = C.to(B.dtype)  # one kernel copies both
    return _selective_scan_op(u, delta, A, B, C, D, delta_bias, lengths, initial, bits)
