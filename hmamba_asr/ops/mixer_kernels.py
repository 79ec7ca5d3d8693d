"""Triton kernels around the selective scan in a Mamba mixer: short convolution with SiLU, and the output gate.

Memory-bound: each reads its inputs once and writes its outputs once (neighbouring taps come from the cache).
"""

import triton
import triton.language as tl

from hmamba_asr.ops.launch import kernel

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-LOG2_E * x))


@triton.jit
def _tile(lengths, L, channels, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGNED: tl.constexpr):
    """(batch row, its length, frames (ROWS, 1), channels (1, COLS), which of these exist) of this program."""
    b = tl.program_id(1)
    length = L
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + b).to(tl.int32), L)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLS)[None, :]
    start = tl.program_id(2) * COLS
    in_d = start + (column // 8 * 8 if ALIGNED else column) < channels  # eight at a time exist or do not
    return b.to(tl.int64), length, t, start + column, in_d


@triton.jit
def _at(x, row, s_l, d, ALIGNED: tl.constexpr):
    """Pointers to frames ``row`` (ROWS, 1); ALIGNED promises rows at multiples of 16 bytes, to be moved 16 bytes at a time."""
    pointers = x + row.to(tl.int64) * s_l + d
    if ALIGNED:
        pointers = tl.max_contiguous(tl.multiple_of(pointers, (1, 16)), (1, d.shape[1]))
    return pointers


@triton.jit
def _frames(x, row, s_l, d, length, in_d, ALIGNED: tl.constexpr):
    """Frames ``row`` of one utterance, zero outside it."""
    inside = (row >= 0) & (row < length) & in_d
    return tl.load(_at(x, row, s_l, d, ALIGNED), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _convolve(x, weight, bias, row, back, g, s_l, d, length, channels, in_d, K: tl.constexpr, ALIGNED: tl.constexpr):
    """Depthwise convolution at frames ``row``; the last tap is the frame itself, the others lie ``back`` of it."""
    out = tl.load(bias + g * channels + d, mask=in_d, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        tap = tl.load(weight + (g * channels + d) * K + k, mask=in_d, other=0.0).to(tl.float32)
        out += tap * _frames(x, row - back * (K - 1 - k), s_l, d, length, in_d, ALIGNED)
    return out


@kernel
def conv_silu_kernel(
    x, weight, bias, u, lengths, s_b, s_l, L, batch, channels, reverse_bits,
    G: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """u (G, batch, L, D) = silu(convolution of x (batch, L, D)), once for each direction; zero past the end."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS, ALIGNED)
    x += b * s_b
    for g in tl.static_range(G):
        back = 1 - 2 * ((reverse_bits >> g) & 1)
        v = _convolve(x, weight, bias, t, back, g, s_l, d, length, channels, in_d, K, ALIGNED)
        v = tl.where(t < length, v * _sigmoid(v), 0.0)
        where = _at(u + (g * batch + b) * L * channels, t, channels, d, ALIGNED)
        tl.store(where, v.to(u.dtype.element_ty), mask=(t < L) & in_d)


@kernel
def conv_silu_backward_kernel(
    x, weight, bias, gu, gx, partial, lengths, s_b, s_l, sg_b, sg_l, L, batch, channels, reverse_bits,
    G: tl.constexpr, K: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """gx (batch, L, D) from gu (G, batch, L, D), recomputing the convolution, with ADD on top of what is there; ``partial``
    (programs over frames and batch, G, K + 1, D) gets the sums for the taps and the bias."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS, ALIGNED)
    x += b * s_b
    into_x = tl.zeros([ROWS, COLS], tl.float32)
    partial += (b * tl.num_programs(0) + tl.program_id(0)) * (G * (K + 1) * channels) + d
    for g in tl.static_range(G):
        back = 1 - 2 * ((reverse_bits >> g) & 1)
        gu_here = gu + (g * batch + b) * L * channels
        for m in tl.static_range(K):  # the frame m further on reads this one through tap K - 1 - m
            row = t + back * m
            v = _convolve(x, weight, bias, row, back, g, s_l, d, length, channels, in_d, K, ALIGNED)
            gate = _sigmoid(v)
            gv = _frames(gu_here, row, channels, d, length, in_d, ALIGNED) * gate * (1.0 + v * (1.0 - gate))
            into_x += gv * tl.load(weight + (g * channels + d) * K + (K - 1 - m), mask=in_d, other=0.0).to(tl.float32)
            if m == 0:
                for k in tl.static_range(K):
                    tapped = _frames(x, t - back * (K - 1 - k), s_l, d, length, in_d, ALIGNED)
                    by_tap = tl.sum(gv * tapped, 0, keep_dims=True)
                    tl.store(partial + (g * (K + 1) + k) * channels, by_tap, mask=in_d)
                tl.store(partial + (g * (K + 1) + K) * channels, tl.sum(gv, 0, keep_dims=True), mask=in_d)
    where = _at(gx + b * sg_b, t, sg_l, d, ALIGNED)
    if ADD:
        into_x += tl.load(where, mask=(t < length) & in_d, other=0.0).to(tl.float32)
    tl.store(where, tl.where(t < length, into_x, 0.0).to(gx.dtype.element_ty), mask=(t < L) & in_d)


@kernel
def gate_kernel(
    y, z, mean, out, lengths, s_b, s_l, L, batch, channels,
    G: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """mean over G of y (G, batch, L, D), and out = mean silu(z); zero past the end."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS, ALIGNED)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for g in tl.static_range(G):
        total += _frames(y + (g * batch + b) * L * channels, t, channels, d, length, in_d, ALIGNED)
    total /= G
    gate = _frames(z + b * s_b, t, s_l, d, length, in_d, ALIGNED)
    written = (t < L) & in_d
    tl.store(_at(mean + b * L * channels, t, channels, d, ALIGNED), total.to(mean.dtype.element_ty), mask=written)
    out = _at(out + b * L * channels, t, channels, d, ALIGNED)
    tl.store(out, (total * gate * _sigmoid(gate)).to(mean.dtype.element_ty), mask=written)


@kernel
def gate_backward_kernel(
    gout, mean, z, gz, out, lengths, s_b, s_l, sg_b, sg_l, L, channels,
    G: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Turns gout (batch, L, D) into the gradient of each of G directions' y, in place; gz, and once more out = mean silu(z)."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS, ALIGNED)
    here = b * L * channels
    g = _frames(gout + here, t, channels, d, length, in_d, ALIGNED)
    average = _frames(mean + here, t, channels, d, length, in_d, ALIGNED)
    gate = _frames(z + b * s_b, t, s_l, d, length, in_d, ALIGNED)
    opened = _sigmoid(gate)
    written = (t < L) & in_d
    kind = mean.dtype.element_ty
    tl.store(_at(gout + here, t, channels, d, ALIGNED), (g * gate * opened / G).to(kind), mask=written)
    tl.store(_at(out + here, t, channels, d, ALIGNED), (average * gate * opened).to(kind), mask=written)
    into_z = g * average * opened * (1.0 + gate * (1.0 - opened))
    tl.store(_at(gz + b * sg_b, t, sg_l, d, ALIGNED), into_z.to(kind), mask=written)
