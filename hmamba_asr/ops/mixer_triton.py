"""The inside of a Mamba mixer in one operation, by Triton kernels and the matrix products between them.

Registered as ``torch.ops.hmamba_asr.mamba_mixer``. The backward pass is given the input, the projected dt, B and C, and the mean
of the directions' outputs; convolution, step sizes and states are computed again, so that a layer keeps 3.3 values for each frame
and inner channel where the same steps under autograd would keep more than ten.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.ops.selective_scan import triton as scan

ROWS, COLS = 32, 64  # frames and channels of a program of the memory-bound kernels
ALIGNMENT = 8  # elements: what the tensor cores' matrix products want of 16-bit rows


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Mixer:
    """The forward steps that the backward pass repeats."""

    def __init__(self, xz, conv_weight, conv_bias, x_proj, dt_proj, lengths, reverse_bits):
        from hmamba_asr.ops import mixer_kernels

        self.kernels = mixer_kernels
        self.batch, self.length, self.channels = xz.shape[0], xz.shape[1], xz.shape[2] // 2
        self.groups, _, self.taps = conv_weight.shape
        self.x, self.z = xz.split(self.channels, dim=-1)
        self.conv = (conv_weight.contiguous(), conv_bias.contiguous())
        self.lengths, self.reverse_bits = lengths, reverse_bits
        self.rank, self.n = dt_proj.shape[1], (x_proj.shape[2] - dt_proj.shape[1]) // 2
        # Columns of dt, B, C; unaligned rows would cost the matrix products half of their speed. The columns of B that stand
        # in the aligned part of dt meet rows of zeros.
        self.x_proj = F.pad(x_proj, (0, _aligned(x_proj.shape[2]) - x_proj.shape[2]))
        self.aligned_rank = min(_aligned(self.rank), self.x_proj.shape[2])
        self.dt_proj = F.pad(dt_proj, (0, 0, 0, self.aligned_rank - self.rank))
        self.grid = (-(-self.length // ROWS), self.batch, -(-self.channels // COLS))
        self.options = dict(ROWS=ROWS, COLS=COLS, HAS_LENGTHS=lengths is not None, num_warps=4)

    @property
    def lengths_or_any(self) -> Tensor:
        return self.x if self.lengths is None else self.lengths

    def convolve(self) -> Tensor:
        """u (G, batch, L, D)."""
        u = torch.empty(
            self.groups, self.batch, self.length, self.channels, device=self.x.device, dtype=self.x.dtype
        )  # fmt: skip
        self.kernels.conv_silu_kernel[self.grid](
            self.x, *self.conv, u, self.lengths_or_any, *self.x.stride()[:2], self.length, self.batch, self.channels,
            self.reverse_bits, G=self.groups, K=self.taps, **self.options,
        )  # fmt: skip
        return u

    def step_sizes(self, projected: Tensor) -> Tensor:
        """delta (G, batch, L, D) before bias and softplus."""
        delta = torch.bmm(projected[..., : self.aligned_rank].flatten(1, 2), self.dt_proj)
        return delta.view(self.groups, self.batch, self.length, self.channels)

    def B_and_C(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        return (projected[..., start : start + self.n] for start in (self.rank, self.rank + self.n))


@torch.library.custom_op("hmamba_asr::mamba_mixer", mutates_args=())
def _mixer(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    lengths: Tensor | None, reverse_bits: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    mixer = _Mixer(xz, conv_weight, conv_bias, x_proj, dt_proj, lengths, reverse_bits)
    u = mixer.convolve()
    projected = torch.bmm(u.flatten(1, 2), mixer.x_proj).view(*u.shape[:3], -1)
    B, C = mixer.B_and_C(projected)
    y, _ = scan.run_forward(u, mixer.step_sizes(projected), A, B, C, D, dt_bias, lengths, None, reverse_bits)
    del u
    out, mean = (torch.empty(y.shape[1:], device=y.device, dtype=y.dtype) for _ in range(2))
    mixer.kernels.gate_kernel[mixer.grid](
        y, mixer.z, mean, out, mixer.lengths_or_any, *mixer.z.stride()[:2], mixer.length, mixer.batch, mixer.channels,
        G=mixer.groups, **mixer.options,
    )  # fmt: skip
    return out, mean, projected


@_mixer.register_fake
def _(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, lengths, reverse_bits):
    batch, length, twice = xz.shape
    projected = xz.new_empty(x_proj.shape[0], batch, length, _aligned(x_proj.shape[2]))
    return xz.new_empty(batch, length, twice // 2), xz.new_empty(batch, length, twice // 2), projected


@torch.library.custom_op("hmamba_asr::mamba_mixer_backward", mutates_args=())
def _mixer_backward(
    gout: Tensor, xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A: Tensor,
    D: Tensor, lengths: Tensor | None, mean: Tensor, projected: Tensor, reverse_bits: int, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    mixer = _Mixer(xz, conv_weight, conv_bias, x_proj, dt_proj, lengths, reverse_bits)
    gxz = torch.empty_like(xz, memory_format=torch.contiguous_format)
    gx, gz = gxz.split(mixer.channels, dim=-1)
    gout = gout if gout.stride(-1) == 1 else gout.contiguous()
    gy = torch.empty_like(mean)
    sizes = (mixer.length, mixer.batch, mixer.channels)
    mixer.kernels.gate_backward_kernel[mixer.grid](
        gout, mean, mixer.z, gy, gz, mixer.lengths_or_any, *mixer.z.stride()[:2], *gout.stride()[:2], *gz.stride()[:2], *sizes,
        G=mixer.groups, **mixer.options,
    )  # fmt: skip

    u, delta = mixer.convolve(), mixer.step_sizes(projected)
    gprojected = torch.zeros_like(projected)
    (B, C), (gB, gC) = mixer.B_and_C(projected), mixer.B_and_C(gprojected)
    grads = scan.run_backward(
        gy.expand(mixer.groups, *gy.shape), None, u, delta, A, B, C, D, dt_bias, lengths, None, reverse_bits,
        deterministic=deterministic, gdelta=delta, gB=gB, gC=gC,
    )  # fmt: skip
    gu, gdelta = grads["u"].flatten(1, 2), grads["delta"].flatten(1, 2)
    gprojected[..., : mixer.rank] = torch.bmm(gdelta, dt_proj.transpose(1, 2)).view(*gprojected.shape[:3], -1)
    gdt_proj = torch.bmm(projected[..., : mixer.aligned_rank].flatten(1, 2).transpose(1, 2), gdelta)[:, : mixer.rank]
    gprojected = gprojected.flatten(1, 2)
    gx_proj = torch.bmm(u.flatten(1, 2).transpose(1, 2), gprojected)[..., : x_proj.shape[2]]
    torch.baddbmm(gu, gprojected, mixer.x_proj.transpose(1, 2), out=gu)
    del u

    partial = torch.empty(
        mixer.grid[0] * mixer.batch, mixer.groups, mixer.taps + 1, mixer.channels, device=xz.device, dtype=torch.float32
    )  # fmt: skip
    mixer.kernels.conv_silu_backward_kernel[mixer.grid](
        mixer.x, *mixer.conv, gu, gx, partial, mixer.lengths_or_any, *mixer.x.stride()[:2], *gx.stride()[:2], *sizes, reverse_bits,
        G=mixer.groups, K=mixer.taps, **mixer.options,
    )  # fmt: skip
    taps = partial.sum(0)
    gconv_weight = taps[:, : mixer.taps].transpose(1, 2).to(conv_weight.dtype).contiguous()
    gconv_bias = taps[:, mixer.taps].to(conv_bias.dtype).contiguous()
    return (
        gxz, gconv_weight, gconv_bias, gx_proj.to(x_proj.dtype).contiguous(), gdt_proj.to(dt_proj.dtype).contiguous(),
        grads["delta_bias"].to(dt_bias.dtype), grads["A"].to(A.dtype).contiguous(), grads["D"].to(D.dtype),
    )  # fmt: skip


@_mixer_backward.register_fake
def _(gout, xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, lengths, mean, projected, reverse_bits, deterministic):
    inputs = (xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _setup(ctx, inputs, output):
    *tensors, ctx.reverse_bits = inputs
    _, mean, projected = output
    ctx.save_for_backward(*tensors, mean, projected)


def _backward(ctx, gout, gmean, gprojected):
    grads = _mixer_backward(gout, *ctx.saved_tensors, ctx.reverse_bits, torch.are_deterministic_algorithms_enabled())
    return *grads, None, None


_mixer.register_autograd(_backward, setup_context=_setup)


def mixer(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, lengths, reversed_groups: tuple[bool, ...]) -> Tensor:
    """Same contract as :func:`hmamba_asr.ops.mixer.mamba_mixer`."""
    bits = sum(1 << g for g, reverse in enumerate(reversed_groups) if reverse)
    x_proj, dt_proj = x_proj.to(xz.dtype), dt_proj.to(xz.dtype)
    return _mixer(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, lengths, bits)[0]
