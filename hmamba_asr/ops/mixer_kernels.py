"""Triton kernels around the selective scan in a Mamba mixer: short convolution with SiLU, and the output gate.

Memory-bound: each reads its inputs once and writes its outputs once (neighbouring taps come from the cache).
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-LOG2_E * x))


@triton.jit
def _tile(lengths, L, channels, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr):
    """(batch row, its length, frames (ROWS, 1), channels (1, COLS), which of these exist) of this program."""
    b = tl.program_id(1)
    length = L
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + b).to(tl.int32), L)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.program_id(2) * COLS + tl.arange(0, COLS)[None, :]
    return b.to(tl.int64), length, t, d, d < channels


@triton.jit
def _frames(x, row, s_l, d, length, in_d):
    """Frames ``row`` of one utterance, zero outside it."""
    inside = (row >= 0) & (row < length) & in_d
    return tl.load(x + row.to(tl.int64) * s_l + d, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _convolve(x, weight, bias, row, back, g, s_l, d, length, channels, in_d, K: tl.constexpr):
    """Depthwise convolution at frames ``row``; the last tap is the frame itself, the others lie ``back`` of it."""
    out = tl.load(bias + g * channels + d, mask=in_d, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        tap = tl.load(weight + (g * channels + d) * K + k, mask=in_d, other=0.0).to(tl.float32)
        out += tap * _frames(x, row - back * (K - 1 - k), s_l, d, length, in_d)
    return out


@triton.jit
def conv_silu_kernel(
    x, weight, bias, u, lengths, s_b, s_l, L, batch, channels, reverse_bits,
    G: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """u (G, batch, L, D) = silu(convolution of x (batch, L, D)), once for each direction; zero past the end."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS)
    x += b * s_b
    for g in tl.static_range(G):
        back = 1 - 2 * ((reverse_bits >> g) & 1)
        v = _convolve(x, weight, bias, t, back, g, s_l, d, length, channels, in_d, K)
        v = tl.where(t < length, v * _sigmoid(v), 0.0)
        where = u + ((g * batch + b) * L + t) * channels + d
        tl.store(where, v.to(u.dtype.element_ty), mask=(t < L) & in_d)


@triton.jit
def conv_silu_backward_kernel(
    x, weight, bias, gu, gx, partial, lengths, s_b, s_l, sg_b, sg_l, L, batch, channels, reverse_bits,
    G: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """gx (batch, L, D) from gu (G, batch, L, D), recomputing the convolution; ``partial`` (programs over frames and batch, G,
    K + 1, D) gets the sums for the taps and the bias."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS)
    x += b * s_b
    into_x = tl.zeros([ROWS, COLS], tl.float32)
    partial += (b * tl.num_programs(0) + tl.program_id(0)) * (G * (K + 1) * channels) + d
    for g in tl.static_range(G):
        back = 1 - 2 * ((reverse_bits >> g) & 1)
        gu_here = gu + (g * batch + b) * L * channels
        for m in tl.static_range(K):  # the frame m further on reads this one through tap K - 1 - m
            row = t + back * m
            v = _convolve(x, weight, bias, row, back, g, s_l, d, length, channels, in_d, K)
            gate = _sigmoid(v)
            gv = _frames(gu_here, row, channels, d, length, in_d) * gate * (1.0 + v * (1.0 - gate))
            into_x += gv * tl.load(weight + (g * channels + d) * K + (K - 1 - m), mask=in_d, other=0.0).to(tl.float32)
            if m == 0:
                for k in tl.static_range(K):
                    by_tap = tl.sum(gv * _frames(x, t - back * (K - 1 - k), s_l, d, length, in_d), 0, keep_dims=True)
                    tl.store(partial + (g * (K + 1) + k) * channels, by_tap, mask=in_d)
                tl.store(partial + (g * (K + 1) + K) * channels, tl.sum(gv, 0, keep_dims=True), mask=in_d)
    into_x = tl.where(t < length, into_x, 0.0).to(gx.dtype.element_ty)
    tl.store(gx + b * sg_b + t.to(tl.int64) * sg_l + d, into_x, mask=(t < L) & in_d)


@triton.jit
def gate_kernel(
    y, z, mean, out, lengths, s_b, s_l, L, batch, channels,
    G: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """mean over G of y (G, batch, L, D), and out = mean silu(z); zero past the end."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for g in tl.static_range(G):
        total += _frames(y + (g * batch + b) * L * channels, t, channels, d, length, in_d)
    total /= G
    gate = _frames(z + b * s_b, t, s_l, d, length, in_d)
    where = (b * L + t) * channels + d
    tl.store(mean + where, total.to(mean.dtype.element_ty), mask=(t < L) & in_d)
    tl.store(out + where, (total * gate * _sigmoid(gate)).to(out.dtype.element_ty), mask=(t < L) & in_d)


@triton.jit
def gate_backward_kernel(
    gout, mean, z, gy, gz, lengths, s_b, s_l, so_b, so_l, sg_b, sg_l, L, batch, channels,
    G: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """gy (batch, L, D), the same for each of G directions, and gz; zero past the end."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS)
    g = _frames(gout + b * so_b, t, so_l, d, length, in_d)
    gate = _frames(z + b * s_b, t, s_l, d, length, in_d)
    open_ = _sigmoid(gate)
    where = (b * L + t) * channels + d
    written = (t < L) & in_d
    tl.store(gy + where, (g * gate * open_ / G).to(gy.dtype.element_ty), mask=written)
    into_z = g * _frames(mean + b * L * channels, t, channels, d, length, in_d) * open_ * (1.0 + gate * (1.0 - open_))
    tl.store(gz + b * sg_b + t.to(tl.int64) * sg_l + d, into_z.to(gz.dtype.element_ty), mask=written)
