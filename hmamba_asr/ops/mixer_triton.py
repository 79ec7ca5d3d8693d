"""The inside of a Mamba mixer in one operation, by Triton kernels and the matrix products between them.

A layer keeps its input and the mean of the directions' outputs for the backward pass, three values for each frame and inner
channel; convolution, projections, step sizes and states are computed again. What the backward pass needs while it works is kept
small as well: gradients overwrite what they are gradients of, and large inputs go through it one direction after the other.

Under ``torch.compile`` this is the custom op ``hmamba_asr::mamba_mixer``, elsewhere an autograd function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmamba_asr.ops.selective_scan import triton as scan

ROWS, COLS = 32, 64  # frames and channels of a program of the gate kernels
BLOCK_D, WALK_TILES = 32, 4  # channels and tiles of 16 frames of a program of the convolution kernels
ALIGNMENT = 8  # elements: what the tensor cores' matrix products want of 16-bit rows
SPLIT_BYTES = 64 * 2**20  # of what all directions of one backward pass would need at once, from which they take turns


@dataclass
class _Prepared:
    """The weights as the kernels want them: A2 (G, N, D); x_proj (G, D, columns) for B, C, dt and padding; dt_proj
    (G, columns - 2 N, D), padded with zeros; out_proj (d_model, D)."""

    A2: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    out_proj: Tensor

    @classmethod
    def of(cls, x_proj: Tensor, dt_proj: Tensor, A_log: Tensor, out_proj: Tensor, dtype: torch.dtype) -> _Prepared:
        from hmamba_asr.ops import mixer_kernels
        from hmamba_asr.ops.launch import launch

        groups, channels, n = A_log.shape
        # Unaligned rows would cost the matrix products half of their speed.
        columns = -(-x_proj.shape[2] // ALIGNMENT) * ALIGNMENT
        shapes = ((groups, channels, columns), (groups, columns - 2 * n, channels), out_proj.shape)
        A2 = A_log.new_empty(groups, n, channels, dtype=torch.float32)
        cast = [A_log.new_empty(shape, dtype=dtype) for shape in shapes]
        block, largest = 1024, max(x.numel() for x in (A2, *cast))
        launch(
            mixer_kernels.prepare_kernel, (-(-largest // block), 4, 1),
            (A_log.contiguous(), x_proj.contiguous(), dt_proj.contiguous(), out_proj.contiguous(), A2, *cast),
            (channels, dt_proj.shape[1], columns, out_proj.shape[0]), (groups, n, block), num_warps=4,
        )  # fmt: skip
        return cls(A2, *cast)

    def __getitem__(self, part: slice) -> _Prepared:
        return _Prepared(self.A2[part], self.x_proj[part], self.dt_proj[part], self.out_proj)


class _Mixer:
    """The weights of some directions, and the forward steps that the backward pass repeats."""

    def __init__(self, xz, conv_weight, conv_bias, dt_bias, D, prepared: _Prepared, lengths, reverse_bits: int):
        from hmamba_asr.ops import mixer_kernels
        from hmamba_asr.ops.launch import launch

        self.kernels, self.launch = mixer_kernels, launch
        self.groups, self.channels, self.taps = conv_weight.shape
        self.batch, self.length = xz.shape[:2]
        self.x, self.z = xz.split(self.channels, dim=-1)
        self.conv_weight, self.conv_bias = conv_weight.contiguous(), conv_bias.contiguous()
        self.prepared, self.n = prepared, prepared.A2.shape[1]
        self.dt_bias, self.D, self.lengths = dt_bias.contiguous(), D.contiguous(), lengths
        self.reverse_bits = reverse_bits & ((1 << self.groups) - 1)
        self.grid = (-(-self.length // ROWS), self.batch, -(-self.channels // COLS))
        self.walk_grid = (-(-self.length // (16 * WALK_TILES)), self.batch, -(-self.channels // BLOCK_D))
        aligned = self.channels % 16 == 0 and xz.data_ptr() % 16 == 0 and all(s % 16 == 0 for s in xz.stride()[:2])
        self.options = (ROWS, COLS, lengths is not None, aligned)

    @property
    def lengths_or_any(self) -> Tensor:
        return self.x if self.lengths is None else self.lengths

    def inner(self, groups: int) -> Tensor:
        return torch.empty(groups, self.batch, self.length, self.channels, device=self.x.device, dtype=self.x.dtype)

    def convolve(self, u: Tensor) -> Tensor:
        """u (G, batch, L, D) = silu(convolution)."""
        self.launch(
            self.kernels.conv_silu_kernel, self.walk_grid,
            (self.x, self.conv_weight, self.conv_bias, u, self.lengths_or_any),
            (*self.x.stride()[:2], self.length, self.batch, self.channels, WALK_TILES),
            (self.reverse_bits, self.groups, self.taps, BLOCK_D, self.lengths is not None), num_warps=1,
        )  # fmt: skip
        return u

    def project(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """B, C and dt side by side (G, batch, L, columns), and delta (G, batch, L, D) before bias and softplus."""
        projected = torch.bmm(u.flatten(1, 2), self.prepared.x_proj)
        delta = torch.bmm(projected[..., 2 * self.n :], self.prepared.dt_proj).view(u.shape)
        return projected.view(*u.shape[:3], -1), delta

    def scan_inputs(self, projected: Tensor) -> tuple:
        """What follows u and delta in the scan's arguments."""
        return (self.prepared.A2, projected[..., : self.n], projected[..., self.n : 2 * self.n], self.D, self.dt_bias,
                self.lengths, None, self.reverse_bits)  # fmt: skip

    def backward(self, gy: Tensor, gx: Tensor, grads: dict[str, Tensor], *, add: bool, deterministic: bool) -> None:
        """Writes or adds gx (batch, L, D), and writes ``grads``, the gradients of the weights by name."""
        u = self.convolve(self.inner(self.groups))
        projected, delta = self.project(u)
        gprojected = torch.empty_like(projected)
        gB, gC = gprojected[..., : self.n], gprojected[..., self.n : 2 * self.n]
        by_scan = scan.run_backward(
            gy.expand(self.groups, *gy.shape), None, u, delta, *self.scan_inputs(projected),
            deterministic=deterministic, gu=u, gdelta=delta, gB=gB, gC=gC,
        )  # fmt: skip
        gu, gdelta = u.flatten(1, 2), delta.flatten(1, 2)
        projected, gprojected = projected.flatten(1, 2), gprojected.flatten(1, 2)
        torch.bmm(gdelta, self.prepared.dt_proj.transpose(1, 2), out=gprojected[..., 2 * self.n :])
        rank = grads["dt_proj"].shape[1]
        grads["dt_proj"].copy_(torch.bmm(projected[..., 2 * self.n :].transpose(1, 2), gdelta)[:, :rank])
        u_again = self.convolve(delta).flatten(1, 2)  # in delta's memory, which is done with
        grads["x_proj"].copy_(torch.bmm(u_again.transpose(1, 2), gprojected)[..., : 2 * self.n + rank])
        torch.baddbmm(gu, gprojected, self.prepared.x_proj.transpose(1, 2), out=gu)

        rows = self.walk_grid[0] * self.batch
        partial = torch.empty(rows, self.groups, self.taps + 1, self.channels, device=gu.device, dtype=torch.float32)
        self.launch(
            self.kernels.conv_silu_backward_kernel, self.walk_grid,
            (self.x, self.conv_weight, self.conv_bias, u, gx, partial, self.lengths_or_any),
            (*self.x.stride()[:2], *gx.stride()[:2], self.length, self.batch, self.channels, WALK_TILES),
            (self.reverse_bits, self.groups, self.taps, BLOCK_D, self.lengths is not None, add), num_warps=1,
        )  # fmt: skip
        sums, columns = by_scan["sums"], 64
        self.launch(
            self.kernels.finish_kernel, (-(-self.channels // columns), self.n + 2 + self.taps + 1, self.groups),
            (sums, partial, self.prepared.A2, *(grads[k] for k in ("A_log", "D", "dt_bias", "conv_weight", "conv_bias"))),
            (sums.shape[1], rows, self.channels), (self.n, self.taps, 32, columns), num_warps=4,
        )  # fmt: skip


NAMES = ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D", "out_proj")


def _forward(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj, lengths, bits: int) -> tuple[Tensor, ...]:
    """The output, what the backward pass needs beside the inputs: the mean of the directions, and the prepared weights."""
    prepared = _Prepared.of(x_proj, dt_proj, A_log, out_proj, xz.dtype)
    mixer = _Mixer(xz, conv_weight, conv_bias, dt_bias, D, prepared, lengths, bits)
    u = mixer.convolve(mixer.inner(mixer.groups))
    projected, delta = mixer.project(u)
    y, _ = scan.run_forward(u, delta, *mixer.scan_inputs(projected), y=u)
    del projected, delta
    mean, out = mixer.inner(1)[0], mixer.inner(1)[0]
    mixer.launch(
        mixer.kernels.gate_kernel, mixer.grid, (y, mixer.z, mean, out, mixer.lengths_or_any),
        (*mixer.z.stride()[:2], mixer.length, mixer.batch, mixer.channels), (mixer.groups, *mixer.options), num_warps=4,
    )  # fmt: skip
    return F.linear(out, prepared.out_proj), mean, prepared.A2, prepared.x_proj, prepared.dt_proj, prepared.out_proj


def _gradients(gy_model: Tensor, xz: Tensor, inputs: tuple, saved: tuple, bits: int, deterministic: bool) -> list[Tensor]:
    with torch.autocast(xz.device.type, enabled=False):  # a backward pass may be called where a forward pass was autocast
        return _gradients_as_given(gy_model, xz, inputs, saved, bits, deterministic)


def _gradients_as_given(gy_model, xz, inputs, saved, bits, deterministic) -> list[Tensor]:
    *weights, lengths = inputs
    mean, prepared = saved[0], _Prepared(*saved[1:])
    by_name = dict(zip(NAMES, weights, strict=True))
    grads = {name: torch.empty(w.shape, device=w.device, dtype=w.dtype) for name, w in by_name.items()}
    groups, channels = by_name["D"].shape
    gxz = torch.empty(xz.shape, device=xz.device, dtype=xz.dtype)
    gx, gz = gxz.split(channels, dim=-1)
    gy, out = torch.matmul(gy_model, prepared.out_proj), torch.empty_like(mean)
    # One direction at a time where both would take much memory: u and delta and what their gradients overwrite.
    apart = groups > 1 and groups * 2 * mean.numel() * mean.element_size() > SPLIT_BYTES
    parts = [slice(g, g + 1) for g in range(groups)] if apart else [slice(0, groups)]
    mixers = [
        _Mixer(xz, *[by_name[name][part] for name in ("conv_weight", "conv_bias", "dt_bias", "D")], prepared[part], lengths,
               bits >> part.start) for part in parts
    ]  # fmt: skip
    first = mixers[0]
    first.launch(
        first.kernels.gate_backward_kernel, first.grid, (gy, mean, first.z, gz, out, first.lengths_or_any),
        (*first.z.stride()[:2], *gz.stride()[:2], first.length, channels), (groups, *first.options), num_warps=4,
    )  # fmt: skip
    grads["out_proj"].copy_(torch.mm(gy_model.flatten(0, 1).t(), out.flatten(0, 1)))
    del out
    for i, (part, mixer) in enumerate(zip(parts, mixers, strict=True)):
        of_part = {name: grads[name][part] for name in NAMES[:-1]}
        mixer.backward(gy, gx, of_part, add=i > 0, deterministic=deterministic)
    return [gxz, *grads.values()]


class _MixerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        *tensors, ctx.bits = inputs
        out, *saved = _forward(*inputs)
        ctx.save_for_backward(*tensors, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        xz, *rest = ctx.saved_tensors
        inputs, saved = rest[: len(NAMES) + 1], rest[len(NAMES) + 1 :]
        deterministic = torch.are_deterministic_algorithms_enabled()
        return *_gradients(gy, xz, inputs, saved, ctx.bits, deterministic), None, None


@torch.library.custom_op("hmamba_asr::mamba_mixer", mutates_args=())
def _mixer_op(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A_log: Tensor,
    D: Tensor, out_proj: Tensor, lengths: Tensor | None, reverse_bits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _forward(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj, lengths, reverse_bits)


@_mixer_op.register_fake
def _(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj, lengths, reverse_bits):
    batch, length, twice = xz.shape
    groups, channels, n = A_log.shape
    columns = -(-x_proj.shape[2] // ALIGNMENT) * ALIGNMENT
    return (
        xz.new_empty(batch, length, out_proj.shape[0]), xz.new_empty(batch, length, twice // 2),
        A_log.new_empty(groups, n, channels, dtype=torch.float32), xz.new_empty(groups, channels, columns),
        xz.new_empty(groups, columns - 2 * n, channels), xz.new_empty(out_proj.shape),
    )  # fmt: skip


@torch.library.custom_op("hmamba_asr::mamba_mixer_backward", mutates_args=())
def _mixer_backward_op(
    gy: Tensor, xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor,
    A_log: Tensor, D: Tensor, out_proj: Tensor, lengths: Tensor | None, mean: Tensor, A2: Tensor, x_padded: Tensor,
    dt_padded: Tensor, out_cast: Tensor, reverse_bits: int, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj, lengths)
    saved = (mean, A2, x_padded, dt_padded, out_cast)
    return tuple(_gradients(gy, xz, inputs, saved, reverse_bits, deterministic))


@_mixer_backward_op.register_fake
def _(gy, *inputs):
    return tuple(x.new_empty(x.shape) for x in inputs[: 1 + len(NAMES)])


def _setup(ctx, inputs, output):
    *tensors, ctx.bits = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx, gy, *others):
    deterministic = torch.are_deterministic_algorithms_enabled()
    return *_mixer_backward_op(gy, *ctx.saved_tensors, ctx.bits, deterministic), None, None


_mixer_op.register_autograd(_backward, setup_context=_setup)


def mixer(
    xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj, lengths, reversed_groups: tuple[bool, ...]
) -> Tensor:
    """Same contract as :func:`hmamba_asr.ops.mixer.mamba_mixer`."""
    bits = sum(1 << g for g, reverse in enumerate(reversed_groups) if reverse)
    xz = xz if xz.stride(-1) == 1 else xz.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    inputs = (xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj, lengths, bits)
    return _mixer_op(*inputs)[0] if torch.compiler.is_compiling() else _MixerFunction.apply(*inputs)
