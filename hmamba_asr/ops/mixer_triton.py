"""The inside of a Mamba mixer in one operation, by Triton kernels and the matrix products between them.

A layer keeps its input and the mean of the directions' outputs for the backward pass, three values for each frame and inner
channel; convolution, projections, step sizes and states are computed again. What the backward pass needs while it works is kept
small as well: gradients overwrite what they are gradients of, and large inputs go through it one direction after the other.

Under ``torch.compile`` this is the custom op ``hmamba_asr::mamba_mixer``, elsewhere an autograd function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.ops.selective_scan import triton as scan

ROWS, COLS = 32, 64  # frames and channels of a program of the memory-bound kernels
ALIGNMENT = 8  # elements: what the tensor cores' matrix products want of 16-bit rows
SPLIT_BYTES = 24 * 2**20  # of what all directions of one backward pass would need at once, from which they take turns


def _padded(x: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """x (G, r, c) as (G, rows, columns) of another dtype, zeros in what is new."""
    if x.shape[1:] == (rows, columns):
        return x.to(dtype)
    out = x.new_zeros(x.shape[0], rows, columns, dtype=dtype)
    out[:, : x.shape[1], : x.shape[2]] = x
    return out


class _Mixer:
    """The weights of some directions, and the forward steps that the backward pass repeats."""

    def __init__(self, xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, lengths, reverse_bits: int):
        from hmamba_asr.ops import mixer_kernels
        from hmamba_asr.ops.launch import launch

        self.kernels, self.launch = mixer_kernels, launch
        self.groups, self.channels, self.taps = conv_weight.shape
        self.batch, self.length = xz.shape[:2]
        self.x, self.z = xz.split(self.channels, dim=-1)
        self.conv_weight, self.conv_bias = conv_weight.contiguous(), conv_bias.contiguous()
        self.n, self.rank = A.shape[2], dt_proj.shape[1]
        columns = -(-x_proj.shape[2] // ALIGNMENT) * ALIGNMENT
        # Unaligned rows would cost the matrix products half of their speed. Columns: B, C, dt and what pads it.
        self.x_proj = _padded(x_proj, self.channels, columns, xz.dtype)
        self.dt_proj = _padded(dt_proj, columns - 2 * self.n, self.channels, xz.dtype)
        self.scan = (dt_bias.contiguous(), A, D.contiguous(), lengths, reverse_bits)
        self.lengths, self.reverse_bits = lengths, reverse_bits
        self.grid = (-(-self.length // ROWS), self.batch, -(-self.channels // COLS))
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
            self.kernels.conv_silu_kernel, self.grid, (self.x, self.conv_weight, self.conv_bias, u, self.lengths_or_any),
            (*self.x.stride()[:2], self.length, self.batch, self.channels, self.reverse_bits),
            (self.groups, self.taps, *self.options), num_warps=4,
        )  # fmt: skip
        return u

    def project(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """B, C and dt side by side (G, batch, L, columns), and delta (G, batch, L, D) before bias and softplus."""
        projected = torch.bmm(u.flatten(1, 2), self.x_proj)
        delta = torch.bmm(projected[..., 2 * self.n :], self.dt_proj).view(u.shape)
        return projected.view(*u.shape[:3], -1), delta

    def B_and_C(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        return projected[..., : self.n], projected[..., self.n : 2 * self.n]

    def backward(self, gy: Tensor, gx: Tensor, *, add: bool, deterministic: bool) -> list[Tensor]:
        """Writes or adds gx (batch, L, D); the gradients of the weights, in the order of the op's arguments."""
        u = self.convolve(self.inner(self.groups))
        projected, delta = self.project(u)
        gprojected = torch.empty_like(projected)
        dt_bias, A, D, lengths, bits = self.scan
        gB, gC = self.B_and_C(gprojected)
        grads = scan.run_backward(
            gy.expand(self.groups, *gy.shape), None, u, delta, A, *self.B_and_C(projected), D, dt_bias, lengths, None, bits,
            deterministic=deterministic, gu=u, gdelta=delta, gB=gB, gC=gC,
        )  # fmt: skip
        gu, gdelta = u.flatten(1, 2), delta.flatten(1, 2)
        projected, gprojected = projected.flatten(1, 2), gprojected.flatten(1, 2)
        torch.bmm(gdelta, self.dt_proj.transpose(1, 2), out=gprojected[..., 2 * self.n :])
        gdt_proj = torch.bmm(projected[..., 2 * self.n :].transpose(1, 2), gdelta)[:, : self.rank]
        u_again = self.convolve(delta).flatten(1, 2)  # in delta's memory, which is done with
        gx_proj = torch.bmm(u_again.transpose(1, 2), gprojected)[..., : 2 * self.n + self.rank]
        torch.baddbmm(gu, gprojected, self.x_proj.transpose(1, 2), out=gu)

        rows = self.grid[0] * self.batch
        partial = torch.empty(rows, self.groups, self.taps + 1, self.channels, device=gu.device, dtype=torch.float32)
        self.launch(
            self.kernels.conv_silu_backward_kernel, self.grid,
            (self.x, self.conv_weight, self.conv_bias, u, gx, partial, self.lengths_or_any),
            (*self.x.stride()[:2], *gx.stride()[:2], self.length, self.batch, self.channels, self.reverse_bits),
            (self.groups, self.taps, add, *self.options), num_warps=8,
        )  # fmt: skip
        taps = partial.sum(0)
        gconv = taps[:, : self.taps].transpose(1, 2), taps[:, self.taps]
        return [*gconv, gx_proj, gdt_proj, grads["delta_bias"], grads["A"], grads["D"]]


def _forward(xz, *inputs) -> tuple[Tensor, Tensor]:
    *weights, out_proj, lengths, bits = inputs
    mixer = _Mixer(xz, *weights, lengths, bits)
    u = mixer.convolve(mixer.inner(mixer.groups))
    projected, delta = mixer.project(u)
    dt_bias, A, D = mixer.scan[:3]
    y, _ = scan.run_forward(u, delta, A, *mixer.B_and_C(projected), D, dt_bias, lengths, None, bits, y=u)
    del projected, delta
    mean, out = mixer.inner(1)[0], mixer.inner(1)[0]
    mixer.launch(
        mixer.kernels.gate_kernel, mixer.grid, (y, mixer.z, mean, out, mixer.lengths_or_any),
        (*mixer.z.stride()[:2], mixer.length, mixer.batch, mixer.channels), (mixer.groups, *mixer.options), num_warps=4,
    )  # fmt: skip
    return F.linear(out, out_proj.to(xz.dtype)), mean


def _gradients(gy_model: Tensor, xz: Tensor, inputs: tuple, mean: Tensor, bits: int, deterministic: bool) -> list[Tensor]:
    *weights, out_proj, lengths = inputs
    groups, channels = weights[0].shape[:2]
    gxz = torch.empty(xz.shape, device=xz.device, dtype=xz.dtype)
    gx, gz = gxz.split(channels, dim=-1)
    gy, out = torch.matmul(gy_model, out_proj.to(xz.dtype)), torch.empty_like(mean)
    # One direction at a time where both would take much memory: u and delta and what their gradients overwrite.
    apart = groups > 1 and groups * 2 * mean.numel() * mean.element_size() > SPLIT_BYTES
    parts = [slice(g, g + 1) for g in range(groups)] if apart else [slice(0, groups)]
    mixers = [_Mixer(xz, *[w[part] for w in weights], lengths, bits >> part.start) for part in parts]
    first = mixers[0]
    first.launch(
        first.kernels.gate_backward_kernel, first.grid, (gy, mean, first.z, gz, out, first.lengths_or_any),
        (*first.z.stride()[:2], *gz.stride()[:2], first.length, channels), (groups, *first.options), num_warps=4,
    )  # fmt: skip
    gout_proj = torch.mm(gy_model.flatten(0, 1).t(), out.flatten(0, 1))
    del out
    grads = [m.backward(gy, gx, add=i > 0, deterministic=deterministic) for i, m in enumerate(mixers)]
    grads = [torch.cat(same) if apart else same[0] for same in zip(*grads, strict=True)]
    grads = [g.to(w.dtype).contiguous() for g, w in zip([*grads, gout_proj], [*weights, out_proj], strict=True)]
    return [gxz, *grads]


class _MixerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        *tensors, ctx.bits = inputs
        out, mean = _forward(*inputs)
        ctx.save_for_backward(*tensors, mean)
        return out

    @staticmethod
    def backward(ctx, gy):
        xz, *inputs, mean = ctx.saved_tensors
        deterministic = torch.are_deterministic_algorithms_enabled()
        return *_gradients(gy, xz, inputs, mean, ctx.bits, deterministic), None, None


@torch.library.custom_op("hmamba_asr::mamba_mixer", mutates_args=())
def _mixer_op(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    out_proj: Tensor, lengths: Tensor | None, reverse_bits: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, mean = _forward(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, lengths, reverse_bits)
    return out, mean


@_mixer_op.register_fake
def _(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, lengths, reverse_bits):
    batch, length, twice = xz.shape
    return xz.new_empty(batch, length, out_proj.shape[0]), xz.new_empty(batch, length, twice // 2)


@torch.library.custom_op("hmamba_asr::mamba_mixer_backward", mutates_args=())
def _mixer_backward_op(
    gy: Tensor, xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A: Tensor,
    D: Tensor, out_proj: Tensor, lengths: Tensor | None, mean: Tensor, reverse_bits: int, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, lengths)
    return tuple(_gradients(gy, xz, inputs, mean, reverse_bits, deterministic))


@_mixer_backward_op.register_fake
def _(gy, xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, lengths, mean, reverse_bits, deterministic):
    inputs = (xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    return tuple(x.new_empty(x.shape) for x in inputs)


def _setup(ctx, inputs, output):
    *tensors, ctx.bits = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, gy, gmean):
    deterministic = torch.are_deterministic_algorithms_enabled()
    return *_mixer_backward_op(gy, *ctx.saved_tensors, ctx.bits, deterministic), None, None


_mixer_op.register_autograd(_backward, setup_context=_setup)


def mixer(
    xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, lengths, reversed_groups: tuple[bool, ...]
) -> Tensor:
    """Same contract as :func:`hmamba_asr.ops.mixer.mamba_mixer`."""
    bits = sum(1 << g for g, reverse in enumerate(reversed_groups) if reverse)
    xz = xz if xz.stride(-1) == 1 else xz.contiguous()
    inputs = (xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, lengths, bits)
    return _mixer_op(*inputs)[0] if torch.compiler.is_compiling() else _MixerFunction.apply(*inputs)
