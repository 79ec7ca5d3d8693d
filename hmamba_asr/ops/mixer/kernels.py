"""Triton kernels around the selective scan in a Mamba mixer: short convolution with SiLU, output gate, and
weights.

They are memory-bound: each reads its inputs once and writes its outputs once.
"""

# Tuples grow in Triton's language, which Python's types do not allow.
# mypy: disable-error-code="assignment, misc, var-annotated"

import triton
import triton.language as tl

from hmamba_asr.ops.launch import kernel

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-LOG2_E * x))


@triton.jit
def _tile(
    lengths,
    L,
    channels,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Return this program's batch row, its length, frames (ROWS, 1), channels (1, COLS) and which of these
    exist."""
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
    """Return pointers to frames ``row`` (ROWS, 1). ALIGNED promises rows at multiples of 16 bytes, which are
    moved 16 bytes at a time."""
    pointers = x + row.to(tl.int64) * s_l + d
    if ALIGNED:
        pointers = tl.max_contiguous(tl.multiple_of(pointers, (1, 16)), (1, d.shape[1]))
    return pointers


@triton.jit
def _frames(x, row, s_l, d, length, in_d, ALIGNED: tl.constexpr):
    """Load frames ``row`` of one utterance, zero outside it."""
    inside = (row >= 0) & (row < length) & in_d
    return tl.load(_at(x, row, s_l, d, ALIGNED), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _rows(x, s_l, first, count: tl.constexpr, length, in_d):
    """Load ``count`` frames of one utterance from ``first`` on, zero outside it."""
    out = ()
    for i in tl.static_range(count):
        row = first + i
        out += (
            tl.load(x + row.to(tl.int64) * s_l, mask=(row >= 0) & (row < length) & in_d, other=0.0).to(
                tl.float32
            ),
        )
    return out


@triton.jit
def _weights(weight, bias, g, d, channels, in_d, K: tl.constexpr):
    """Load the K taps, of which the last is for the frame itself, and the bias."""
    out = ()
    for k in tl.static_range(K):
        out += (tl.load(weight + (g * channels + d) * K + k, mask=in_d, other=0.0).to(tl.float32),)
    return out, tl.load(bias + g * channels + d, mask=in_d, other=0.0).to(tl.float32)


@triton.jit
def _convolve(
    xs, taps, bias, start: tl.constexpr, count: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr
):
    """Convolve ``count`` frames, of which xs[start] is the first, with the frames before or after each."""
    out = ()
    for j in tl.static_range(count):
        v = bias
        for k in tl.static_range(K):
            v += taps[k] * xs[start + j + (K - 1 - k if REVERSE else k - (K - 1))]
        out += (v,)
    return out


@kernel
def conv_silu_kernel(
    x,
    weight,
    bias,
    u,
    lengths,
    s_b,
    s_l,
    L,
    batch,
    channels,
    tiles_each,
    REVERSE_BITS: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """Write u (G, batch, L, D) = silu(convolution of x (batch, L, D)) for each direction, zero past the end.

    A warp walks through tiles of 16 frames, a channel to a thread, and reads each frame once for all taps and
    directions.
    """
    b, length, d, in_d = _walk(lengths, L, channels, BLOCK_D, HAS_LENGTHS)
    x += b * s_b + d
    for k in range(0, tiles_each):
        first = (tl.program_id(0) * tiles_each + k) * 16
        xs = _rows(x, s_l, first - (K - 1), 16 + 2 * (K - 1), length, in_d)
        for g in tl.static_range(G):
            taps, shift = _weights(weight, bias, g, d, channels, in_d, K)
            vs = _convolve(xs, taps, shift, K - 1, 16, K, (REVERSE_BITS >> g) & 1)
            for j in tl.static_range(16):
                t = first + j
                out = tl.where(t < length, vs[j] * _sigmoid(vs[j]), 0.0).to(u.dtype.element_ty)
                tl.store(u + ((g * batch + b) * L + t) * channels + d, out, mask=(t < L) & in_d)


@kernel
def conv_silu_backward_kernel(
    x,
    weight,
    bias,
    gu,
    gx,
    partial,
    lengths,
    s_b,
    s_l,
    L,
    batch,
    channels,
    tiles_each,
    REVERSE_BITS: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """Write gx (batch, L, D) from gu (G, batch, L, D). The convolution is computed again.

    ``partial`` (batch x programs over frames, G, K + 1, D) gets this program's sums for taps and bias.
    """
    b, length, d, in_d = _walk(lengths, L, channels, BLOCK_D, HAS_LENGTHS)
    x += b * s_b + d
    gx += b * L * channels + d
    partial += (b * tl.num_programs(0) + tl.program_id(0)) * (G * (K + 1) * channels) + d
    for k in range(0, tiles_each):
        first = (tl.program_id(0) * tiles_each + k) * 16
        xs = _rows(x, s_l, first - (K - 1), 16 + 2 * (K - 1), length, in_d)
        into_x = ()
        for _ in tl.static_range(16):
            into_x += (tl.zeros([BLOCK_D], tl.float32),)
        for g in tl.static_range(G):
            # A frame gets gradients from the K - 1 frames that read it. They lie after it, or in a reverse
            # direction before it.
            taps, shift = _weights(weight, bias, g, d, channels, in_d, K)
            vs = _convolve(
                xs,
                taps,
                shift,
                (K - 1) * (1 - ((REVERSE_BITS >> g) & 1)),
                16 + K - 1,
                K,
                (REVERSE_BITS >> g) & 1,
            )
            start = first - (K - 1) * ((REVERSE_BITS >> g) & 1)
            gus = _rows(gu + (g * batch + b) * L * channels + d, channels, start, 16 + K - 1, length, in_d)
            gvs, new_into_x = (), ()
            for j in tl.static_range(16 + K - 1):
                gate = _sigmoid(vs[j])
                gvs += (gus[j] * gate * (1.0 + vs[j] * (1.0 - gate)),)
            for j in tl.static_range(16):
                v = into_x[j]
                for m in tl.static_range(K):  # the m-th frame further on reads this one through tap K - 1 - m
                    v += taps[K - 1 - m] * gvs[j + (K - 1 - m if (REVERSE_BITS >> g) & 1 else m)]
                new_into_x += (v,)
            into_x = new_into_x
            for tap in tl.static_range(K + 1):
                total = tl.zeros([BLOCK_D], tl.float32)
                for j in tl.static_range(16):
                    gv = gvs[j + (K - 1) * ((REVERSE_BITS >> g) & 1)]
                    if tap == K:
                        total += gv
                    else:
                        total += gv * xs[j + (2 * (K - 1) - tap if (REVERSE_BITS >> g) & 1 else tap)]
                where = partial + (g * (K + 1) + tap) * channels
                if k > 0:
                    total += tl.load(where, mask=in_d, other=0.0)
                tl.store(where, total, mask=in_d)
        for j in tl.static_range(16):
            t = first + j
            v = tl.where(t < length, into_x[j], 0.0).to(gx.dtype.element_ty)
            tl.store(gx + t.to(tl.int64) * channels, v, mask=(t < L) & in_d)


@triton.jit
def _walk(lengths, L, channels, BLOCK_D: tl.constexpr, HAS_LENGTHS: tl.constexpr):
    b = tl.program_id(1)
    length = L
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + b).to(tl.int32), L)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    return b.to(tl.int64), length, d, d < channels


@kernel
def prepare_kernel(
    A_log,
    x_proj,
    dt_proj,
    in_proj,
    out_proj,
    A2,
    x_padded,
    dt_padded,
    in_cast,
    out_cast,
    channels,
    rank,
    columns,
    d_model,
    d_out,
    G: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the weights as the kernels and matrix products want them, in one launch.

    A2 (G, N, D) is -exp(A_log) in base 2; x_proj (G, D, columns) and dt_proj (G, columns - 2 N, D) are padded
    with zeros; in_proj and out_proj are copied. All but A2 are in the dtype of u.
    """
    part = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if part == 0:
        g, n, d = i // (N * channels), i // channels % N, i % channels
        inside = g < G
        value = tl.load(A_log + (g * channels + d) * N + n, mask=inside, other=0.0).to(tl.float32)
        tl.store(A2 + i, -LOG2_E * tl.exp2(LOG2_E * value), mask=inside)
    elif part == 1:
        row, column = i // columns, i % columns
        inside = row < G * channels
        there = inside & (column < 2 * N + rank)
        value = tl.load(x_proj + row * (2 * N + rank) + column, mask=there, other=0.0).to(tl.float32)
        tl.store(x_padded + i, value.to(x_padded.dtype.element_ty), mask=inside)
    elif part == 2:
        rows = columns - 2 * N
        g, r, d = i // (rows * channels), i // channels % rows, i % channels
        inside = g < G
        value = tl.load(dt_proj + (g * rank + r) * channels + d, mask=inside & (r < rank), other=0.0).to(
            tl.float32
        )
        tl.store(dt_padded + i, value.to(dt_padded.dtype.element_ty), mask=inside)
    elif part == 3:
        inside = i < 2 * d_model * channels
        value = tl.load(in_proj + i, mask=inside, other=0.0).to(tl.float32)
        tl.store(in_cast + i, value.to(in_cast.dtype.element_ty), mask=inside)
    else:
        inside = i < d_out * channels
        value = tl.load(out_proj + i, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_cast + i, value.to(out_cast.dtype.element_ty), mask=inside)


@kernel
def finish_kernel(
    sums,
    vectors,
    partial,
    A2,
    gA_log,
    gD,
    gbias,
    gconv,
    gconv_bias,
    sums_rows,
    partial_rows,
    channels,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Add up what the programs of the backward kernels left.

    sums (G, sums_rows, N, D), vectors (G, sums_rows, 2, D) and partial (partial_rows, G, K + 1, D) become the
    gradients of A_log (G, D, N), D and dt_bias (G, D), and the convolution's taps (G, D, K) and bias (G, D).
    """
    what, g = tl.program_id(1), tl.program_id(2)
    d = tl.program_id(0) * COLS + tl.arange(0, COLS)
    in_d = d < channels
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros([ROWS, COLS], tl.float32)
    if what < N:
        source = sums + (g.to(tl.int64) * sums_rows * N + what) * channels
        stride, rows = N * channels, sums_rows
    elif what < N + 2:
        source = vectors + (g.to(tl.int64) * sums_rows * 2 + what - N) * channels
        stride, rows = 2 * channels, sums_rows
    else:
        source = partial + (g * (K + 1) + what - (N + 2)).to(tl.int64) * channels
        stride, rows = tl.num_programs(2) * (K + 1) * channels, partial_rows
    for start in range(0, rows, ROWS):
        at = (start + row).to(tl.int64) * stride + d[None, :]
        total += tl.load(source + at, mask=(start + row < rows) & in_d[None, :], other=0.0)
    out = tl.sum(total, 0)
    if what < N:  # the kernel's sums are for A, and dA / dA_log = A
        out *= tl.load(A2 + (g * N + what) * channels + d, mask=in_d, other=0.0) / LOG2_E
        tl.store(gA_log + (g * channels + d) * N + what, out, mask=in_d)
    elif what == N:
        tl.store(gD + g * channels + d, out, mask=in_d)
    elif what == N + 1:
        tl.store(gbias + g * channels + d, out, mask=in_d)
    elif what == N + 2 + K:
        tl.store(gconv_bias + g * channels + d, out, mask=in_d)
    else:
        tl.store(gconv + (g * channels + d) * K + what - (N + 2), out, mask=in_d)


@kernel
def gate_kernel(
    y,
    z,
    mean,
    out,
    lengths,
    s_b,
    s_l,
    L,
    batch,
    channels,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Write the mean over G of y (G, batch, L, D), and out = mean silu(z), zero past the end."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS, ALIGNED)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for g in tl.static_range(G):
        total += _frames(y + (g * batch + b) * L * channels, t, channels, d, length, in_d, ALIGNED)
    total /= G
    gate = _frames(z + b * s_b, t, s_l, d, length, in_d, ALIGNED)
    written = (t < L) & in_d
    tl.store(
        _at(mean + b * L * channels, t, channels, d, ALIGNED), total.to(mean.dtype.element_ty), mask=written
    )
    out = _at(out + b * L * channels, t, channels, d, ALIGNED)
    tl.store(out, (total * gate * _sigmoid(gate)).to(mean.dtype.element_ty), mask=written)


@kernel
def gate_backward_kernel(
    gout,
    mean,
    z,
    out,
    lengths,
    L,
    channels,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Turn gout (batch, L, D) into the gradient of each of G directions' y, and z into its own gradient, in
    place. Write out = mean silu(z) once more."""
    b, length, t, d, in_d = _tile(lengths, L, channels, ROWS, COLS, HAS_LENGTHS, ALIGNED)
    here = b * L * channels
    g = _frames(gout + here, t, channels, d, length, in_d, ALIGNED)
    average = _frames(mean + here, t, channels, d, length, in_d, ALIGNED)
    gate = _frames(z + here, t, channels, d, length, in_d, ALIGNED)
    opened = _sigmoid(gate)
    written = (t < L) & in_d
    kind = mean.dtype.element_ty
    tl.store(_at(gout + here, t, channels, d, ALIGNED), (g * gate * opened / G).to(kind), mask=written)
    tl.store(_at(out + here, t, channels, d, ALIGNED), (average * gate * opened).to(kind), mask=written)
    into_z = g * average * opened * (1.0 + gate * (1.0 - opened))
    tl.store(_at(z + here, t, channels, d, ALIGNED), into_z.to(kind), mask=written)
