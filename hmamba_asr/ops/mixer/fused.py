"""A Mamba mixer as one operation: Triton kernels, and the matrix products between them.

For the backward pass a layer keeps its input, the mean of the directions' outputs, and its weights as the
kernels want them. The input projection, convolution, the other projections, step sizes and states are
computed again. The backward pass itself needs little memory: it computes each tensor late and frees it early,
and gradients overwrite tensors that are no longer needed.

PyTorch sees the mixer as the operation ``hmamba_asr::mamba_mixer`` (:mod:`~hmamba_asr.ops.register`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.ops.register import KernelOp
from hmamba_asr.ops.selective_scan import fused as scan

ROWS, COLS = 32, 64  # frames and channels of a program of the gate kernels
BLOCK_D, WALK_TILES = 32, 4  # channels and tiles of 16 frames of a program of the convolution kernels
MOST_PARTS = 8  # of a sum over frames, in a product for both directions at once
ALIGNMENT = 8  # elements: what the tensor cores' matrix products want of 16-bit rows


@dataclass
class _Prepared:
    """The weights as the kernels want them.

    A2 (G, N, D); x_proj (G, D, columns), with columns for B, C, dt and padding; dt_proj (G, columns - 2 N,
    D), padded with zeros; in_proj (2 D, d_model); out_proj (d_model, D).
    """

    A2: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    in_proj: Tensor
    out_proj: Tensor

    @classmethod
    def of(
        cls, x_proj: Tensor, dt_proj: Tensor, A_log: Tensor, in_proj: Tensor, out_proj: Tensor, dtype
    ) -> _Prepared:
        from hmamba_asr.ops.launch import launch
        from hmamba_asr.ops.mixer import kernels as mixer_kernels

        groups, channels, n = A_log.shape
        # Unaligned rows would cost the matrix products half of their speed.
        columns = -(-x_proj.shape[2] // ALIGNMENT) * ALIGNMENT
        shapes = (
            (groups, channels, columns),
            (groups, columns - 2 * n, channels),
            in_proj.shape,
            out_proj.shape,
        )
        A2 = A_log.new_empty(groups, n, channels, dtype=torch.float32)
        cast = [A_log.new_empty(shape, dtype=dtype) for shape in shapes]
        block, largest = 1024, max(x.numel() for x in (A2, *cast))
        given = (A_log, x_proj, dt_proj, in_proj, out_proj)
        launch(
            mixer_kernels.prepare_kernel,
            (-(-largest // block), len(given), 1),
            (*(x.contiguous() for x in given), A2, *cast),
            (channels, dt_proj.shape[1], columns, in_proj.shape[1], out_proj.shape[0]),
            (groups, n, block),
            num_warps=4,
        )
        return cls(A2, *cast)


class _Mixer:
    """A mixer's inputs, and those steps of the forward pass that the backward pass repeats."""

    def __init__(
        self, x: Tensor, conv_weight, conv_bias, dt_bias, D, prepared: _Prepared, lengths, reverse_bits: int
    ):
        from hmamba_asr.ops.launch import launch
        from hmamba_asr.ops.mixer import kernels as mixer_kernels

        self.kernels, self.launch, self.x = mixer_kernels, launch, x
        self.groups, self.channels, self.taps = conv_weight.shape
        self.batch, self.length = x.shape[:2]
        self.conv_weight, self.conv_bias = conv_weight.contiguous(), conv_bias.contiguous()
        self.prepared, self.n = prepared, prepared.A2.shape[1]
        self.dt_bias, self.D, self.lengths = dt_bias.contiguous(), D.contiguous(), lengths
        self.reverse_bits = reverse_bits
        self.grid = (-(-self.length // ROWS), self.batch, -(-self.channels // COLS))
        self.walk_grid = (-(-self.length // (16 * WALK_TILES)), self.batch, -(-self.channels // BLOCK_D))
        self.options = (ROWS, COLS, lengths is not None, self.channels % 16 == 0)

    @property
    def lengths_or_any(self) -> Tensor:
        return self.x if self.lengths is None else self.lengths

    def inner(self, *groups: int) -> Tensor:
        return self.x.new_empty(*groups, self.batch, self.length, self.channels)

    def project_in(self, out: Tensor) -> Tensor:
        """Write the convolution's input to ``out`` (batch, L, D)."""
        torch.mm(self.x.flatten(0, 1), self.prepared.in_proj[: self.channels].t(), out=out.flatten(0, 1))
        return out

    def convolve(self, x: Tensor, u: Tensor) -> Tensor:
        """Write u (G, batch, L, D) = silu(convolution of x (batch, L, D))."""
        self.launch(
            self.kernels.conv_silu_kernel,
            self.walk_grid,
            (x, self.conv_weight, self.conv_bias, u, self.lengths_or_any),
            (*x.stride()[:2], self.length, self.batch, self.channels, WALK_TILES),
            (self.reverse_bits, self.groups, self.taps, BLOCK_D, self.lengths is not None),
            num_warps=1,
        )
        return u

    def project(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return B, C and dt side by side (G, batch, L, columns), and delta (G, batch, L, D) before bias and
        softplus."""
        projected = torch.bmm(u.flatten(1, 2), self.prepared.x_proj)
        delta = torch.bmm(projected[..., 2 * self.n :], self.prepared.dt_proj).view(u.shape)
        return projected.view(*u.shape[:3], -1), delta

    def scan_inputs(self, projected: Tensor) -> tuple:
        """Return what follows u and delta in the scan's arguments."""
        tiles = scan.to_tiles(*self.of_scan(projected))
        return self.prepared.A2, tiles, self.D, self.dt_bias, self.lengths, None, self.reverse_bits

    def of_scan(self, projected: Tensor) -> tuple:
        return projected[..., : self.n], projected[..., self.n : 2 * self.n], self.lengths, self.reverse_bits

    def scan_backward(self, gy: Tensor, grads: dict[str, Tensor], deterministic: bool) -> Tensor:
        """Return the gradient of the convolution's input (batch, L, D), and write those of the weights into
        ``grads``, by name.

        gy (batch, L, D) is the gradient of each direction's output. Its memory is used again.
        """
        u = self.convolve(self.project_in(self.inner()), self.inner(self.groups))
        projected, delta = self.project(u)
        dt = projected[..., 2 * self.n :].flatten(1, 2).contiguous()
        inputs, shape = self.scan_inputs(projected), projected.shape
        del projected
        by_scan = scan.run_backward(
            gy.expand(self.groups, *gy.shape),
            None,
            u,
            delta,
            *inputs,
            deterministic=deterministic,
            gu=u,
            gdelta=delta,
        )
        del inputs
        gprojected = self.x.new_empty(shape)
        scan.from_tiles(by_scan["BC"], *self.of_scan(gprojected))
        gu, gdelta, gprojected = u.flatten(1, 2), delta.flatten(1, 2), gprojected.flatten(1, 2)
        torch.bmm(gdelta, self.prepared.dt_proj.transpose(1, 2), out=gprojected[..., 2 * self.n :])
        _product(dt, gdelta, grads["dt_proj"])
        inner = self.project_in(gy)  # in gy's memory, which is done with, as delta's is
        u_again = self.convolve(inner, delta).flatten(1, 2)
        _product(u_again, gprojected, grads["x_proj"])
        torch.baddbmm(gu, gprojected, self.prepared.x_proj.transpose(1, 2), out=gu)

        gx, rows = delta[0], self.walk_grid[0] * self.batch  # and once more
        partial = torch.empty(
            rows, self.groups, self.taps + 1, self.channels, device=gu.device, dtype=torch.float32
        )
        self.launch(
            self.kernels.conv_silu_backward_kernel,
            self.walk_grid,
            (inner, self.conv_weight, self.conv_bias, u, gx, partial, self.lengths_or_any),
            (*inner.stride()[:2], self.length, self.batch, self.channels, WALK_TILES),
            (self.reverse_bits, self.groups, self.taps, BLOCK_D, self.lengths is not None),
            num_warps=1,
        )
        sums, columns = by_scan["A"], 32
        self.launch(
            self.kernels.finish_kernel,
            (-(-self.channels // columns), self.n + 2 + self.taps + 1, self.groups),
            (
                sums,
                by_scan["vectors"],
                partial,
                self.prepared.A2,
                *(grads[k] for k in ("A_log", "D", "dt_bias", "conv_weight", "conv_bias")),
            ),
            (sums.shape[1], rows, self.channels),
            (self.n, self.taps, 128, columns),
            num_warps=4,
        )
        return gx


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write out = a^T b, summed over frames: a (frames, M) and b (frames, N), or with G in front.

    ``out`` may have fewer rows and columns. Padding is cut off the product: without it the factors' rows
    would lose their alignment.
    """
    rows, columns = out.shape[-2:]
    # A product that is short on both sides of a long sum is cut into parts, which keep more of the GPU busy.
    parts = next(n for n in range(MOST_PARTS, 0, -1) if a.shape[-2] % n == 0) if a.dim() == 3 else 1
    left, right = (x.unflatten(-2, (parts, -1)).flatten(0, 1) if parts > 1 else x for x in (a, b))
    multiply = torch.bmm if a.dim() == 3 else torch.mm
    if a.dtype == torch.float32 or not a.is_cuda:  # a CPU does not know out_dtype
        product = multiply(left.transpose(-1, -2), right)
    else:
        product = multiply(left.transpose(-1, -2), right, out_dtype=torch.float32)
    if parts > 1:
        product = product.unflatten(0, (-1, parts)).sum(1, dtype=torch.float32)
    out.copy_(product[..., :rows, :columns])


NAMES = ("in_proj", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D", "out_proj")


def _forward(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    lengths: Tensor | None,
    reverse_bits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the output and what the backward pass needs beside the inputs: the mean of the directions, and
    the prepared weights."""
    prepared = _Prepared.of(x_proj, dt_proj, A_log, in_proj, out_proj, x.dtype)
    mixer = _Mixer(x, conv_weight, conv_bias, dt_bias, D, prepared, lengths, reverse_bits)
    inner, z = F.linear(x, prepared.in_proj).split(mixer.channels, dim=-1)
    u = mixer.convolve(inner, mixer.inner(mixer.groups))
    projected, delta = mixer.project(u)
    y, _ = scan.run_forward(u, delta, *mixer.scan_inputs(projected), y=u)
    del projected, delta
    mean, out = mixer.inner(), mixer.inner()
    mixer.launch(
        mixer.kernels.gate_kernel,
        mixer.grid,
        (y, z, mean, out, mixer.lengths_or_any),
        (*z.stride()[:2], mixer.length, mixer.batch, mixer.channels),
        (mixer.groups, *mixer.options),
        num_warps=4,
    )
    return (
        F.linear(out, prepared.out_proj),
        mean,
        prepared.A2,
        prepared.x_proj,
        prepared.dt_proj,
        prepared.in_proj,
        prepared.out_proj,
    )


def _fake(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    lengths: Tensor | None,
    reverse_bits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    groups, channels, n = A_log.shape
    columns = -(-x_proj.shape[2] // ALIGNMENT) * ALIGNMENT
    return (
        x.new_empty(*x.shape[:2], out_proj.shape[0]),
        x.new_empty(*x.shape[:2], channels),
        A_log.new_empty(groups, n, channels, dtype=torch.float32),
        x.new_empty(groups, channels, columns),
        x.new_empty(groups, columns - 2 * n, channels),
        x.new_empty(in_proj.shape),
        x.new_empty(out_proj.shape),
    )


def _backward(
    grads: Sequence[Tensor], saved: list[Tensor], wanted: list[bool], reverse_bits: int
) -> list[Tensor]:
    """Return the gradients of x and the weights. Takes the mean out of ``saved``, which are the inputs of
    :func:`_forward` and all its outputs but the first."""
    gy_model = grads[0].contiguous()
    mean = saved.pop(len(NAMES) + 2)
    x, lengths, prepared = saved[0], saved[len(NAMES) + 1], _Prepared(*saved[len(NAMES) + 2 :])
    weights = dict(zip(NAMES, saved[1:], strict=False))
    found = {name: torch.empty(w.shape, device=w.device, dtype=w.dtype) for name, w in weights.items()}
    mixer = _Mixer(
        x,
        weights["conv_weight"],
        weights["conv_bias"],
        weights["dt_bias"],
        weights["D"],
        prepared,
        lengths,
        reverse_bits,
    )
    channels = mixer.channels

    z, gy, out = (
        F.linear(x, prepared.in_proj[channels:]),
        torch.matmul(gy_model, prepared.out_proj),
        torch.empty_like(mean),
    )
    mixer.launch(
        mixer.kernels.gate_backward_kernel,
        mixer.grid,
        (gy, mean, z, out, mixer.lengths_or_any),
        (mixer.length, channels),
        (mixer.groups, *mixer.options),
        num_warps=4,
    )
    _product(gy_model.flatten(0, 1), out.flatten(0, 1), found["out_proj"])
    del mean, out
    frames = x.flatten(0, 1)
    into_inner, into_gate = found["in_proj"].split(channels)
    gz = z.flatten(0, 1)
    gx = torch.mm(gz, prepared.in_proj[channels:])
    _product(gz, frames, into_gate)
    del z, gz
    deterministic = torch.are_deterministic_algorithms_enabled()
    ginner = mixer.scan_backward(gy, found, deterministic).flatten(0, 1)
    torch.addmm(gx, ginner, prepared.in_proj[:channels], out=gx)
    _product(ginner, frames, into_inner)
    return [gx.view(x.shape), *found.values()]


_mamba_mixer_op = KernelOp(
    "mamba_mixer", _forward, backward=_backward, differentiable=range(1 + len(NAMES)), fake=_fake
)


def mamba_mixer(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    lengths: Tensor | None,
    reversed_groups: tuple[bool, ...],
) -> Tensor:
    """Compute :func:`hmamba_asr.ops.mixer.mamba_mixer` as one operation."""
    bits = sum(1 << g for g, reverse in enumerate(reversed_groups) if reverse)
    lengths = None if lengths is None else lengths.contiguous()
    weights = (in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj)
    return _mamba_mixer_op(x.contiguous(), *weights, lengths, bits)
