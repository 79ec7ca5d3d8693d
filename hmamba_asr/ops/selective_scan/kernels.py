"""Triton kernels of the selective scan. Tensors in, tensors out; :mod:`.triton` allocates and launches.

Work is cut three ways: G x batch rows, blocks of BLOCK_D channels, and *segments* of time. A program is one warp, a channel to a
thread. It walks through its segment in tiles of 16 frames, and through a tile once for every state dimension n: the frames
are unrolled, so the recurrence is 16 fused multiply-adds in registers, with no exchange between threads and no layout left
to the compiler. Between tiles the state rests in memory (one load and one store for every 16 frames, from the cache).

Time is *scan time*: t = 0 is the first frame the recurrence meets, which for a reverse direction is the utterance's last
valid one. Frames past the end have dt = 0 and no input, which leaves the state as it is.

Cost for every (frame, channel, n) and direction: one exp2 in the forward pass, two in the backward pass (states before each
tile, and the pass itself), and in each pass up to one more where time is cut into several segments.
"""

import triton
import triton.language as tl

T = tl.constexpr(16)  # frames of a tile, and the smallest side of a tensor core product
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x):
    # In base 2, which is what the hardware has; past 20 the identity is exact in float32.
    return tl.where(x > 20.0, x, LN_2 * tl.log2(1.0 + tl.exp2(x * LOG2_E)))


@triton.jit
def _row_of(t, length, reverse):
    """Row in memory of scan time t; frames past the end keep their place."""
    return tl.where((reverse != 0) & (t < length), length - 1 - t, t).to(tl.int64)


@triton.jit
def _length_of(lengths, b, L, HAS_LENGTHS: tl.constexpr):
    if HAS_LENGTHS:
        return tl.minimum(tl.load(lengths + b).to(tl.int32), L)
    else:
        return L


@triton.jit
def _vector(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _columns(x):
    """16 vectors (D,) as the columns of a matrix (D, 16)."""
    # join puts the new axis last: what meets first differs in the index's highest bit.
    a0, a1, a2, a3 = tl.join(x[0], x[8]), tl.join(x[1], x[9]), tl.join(x[2], x[10]), tl.join(x[3], x[11])
    a4, a5, a6, a7 = tl.join(x[4], x[12]), tl.join(x[5], x[13]), tl.join(x[6], x[14]), tl.join(x[7], x[15])
    b0, b1, b2, b3 = tl.join(a0, a4), tl.join(a1, a5), tl.join(a2, a6), tl.join(a3, a7)
    return tl.reshape(tl.join(tl.join(b0, b2), tl.join(b1, b3)), [x[0].shape[0], 16])


@triton.jit
def tile_kernel(
    x, tiles, lengths, s_g, s_b, s_l, L, batch, n_tiles, part, parts, reverse_bits,
    N: tl.constexpr, N_PAD: tl.constexpr, HAS_LENGTHS: tl.constexpr, FROM_TILES: tl.constexpr,
):  # fmt: skip
    """Copies x (G, batch, L, N) to tiles (G, batch, tile, parts, N, 16) float32 in scan time, zero past the end, or back.

    The scan then reads the 16 values of one n, the same for all threads, from neighbouring addresses.
    """
    tile, gb = tl.program_id(0), tl.program_id(1)
    g, b = gb // batch, gb % batch
    length = _length_of(lengths, b, L, HAS_LENGTHS)
    n = tl.arange(0, N_PAD)[None, :]
    t = tile * T + tl.arange(0, T)[:, None]
    row = _row_of(t, length, (reverse_bits >> g) & 1)
    outside = x + g.to(tl.int64) * s_g + b.to(tl.int64) * s_b + row * s_l + n
    inside = tiles + ((gb * n_tiles + tile).to(tl.int64) * parts + part) * N * T + n * T + tl.arange(0, T)[:, None]
    if FROM_TILES:
        value = tl.where(t < length, tl.load(inside, mask=n < N, other=0.0), 0.0)
        tl.store(outside, value.to(x.dtype.element_ty), mask=(n < N) & (t < L))
    else:
        tl.store(inside, tl.load(outside, mask=(n < N) & (t < length), other=0.0).to(tl.float32), mask=n < N)


@triton.jit
def scan_kernel(
    u, delta, bias, A2, BC, D, y, starts, carry, spans, lengths,
    su_g, su_b, su_l, sd_g, sd_b, sd_l, L, batch, channels, n_tiles, tiles_each, n_segments, first_segment, reverse_bits,
    N: tl.constexpr, BLOCK_D: tl.constexpr, ADJOINT: tl.constexpr, WRITE_Y: tl.constexpr, WRITE_STARTS: tl.constexpr,
    WRITE_SPANS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Runs the recurrence from the state in ``carry`` (G, batch, segment, N, D), where it leaves the segment's last state.

    With ADJOINT the recurrence of the gradient runs from the segment's end instead, u being the gradient of y:
    p_t = a_t (C_t gy_t + p_{t+1}), which is the gradient of the state before t.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    gb = tl.program_id(1)
    g, b = gb // batch, gb % batch
    segment = tl.program_id(2) + first_segment
    length = _length_of(lengths, b, L, HAS_LENGTHS)
    reverse = (reverse_bits >> g) & 1
    in_d = d < channels
    u += g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
    delta += g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
    y += gb.to(tl.int64) * L * channels + d
    slot = (gb * n_segments + segment).to(tl.int64)
    carry += slot * N * channels + d
    A2 += g * N * channels + d
    if HAS_BIAS:
        shift = _vector(bias + g * channels + d, in_d)
    if HAS_D:
        skip = _vector(D + g * channels + d, in_d)
    span = tl.zeros([BLOCK_D], tl.float32)
    begin = segment * tiles_each
    count = tl.minimum(tiles_each, n_tiles - begin)
    for k in range(0, count):
        tile = begin + (count - 1 - k if ADJOINT else k)
        dts, drives, outs = (), (), ()
        for j in tl.static_range(16):
            t = tile * T + j
            row = _row_of(t, length, reverse)
            mask = (t < length) & in_d
            dt = _vector(delta + row * sd_l, mask)
            if HAS_BIAS:
                dt += shift
            dt = tl.where(mask, _softplus(dt), 0.0)
            v = _vector(u + row * su_l, mask)
            dts += (dt,)
            drives += (v if ADJOINT else dt * v,)
            outs += (skip * v if HAS_D else tl.zeros([BLOCK_D], tl.float32),)
            if WRITE_SPANS:
                span += dt
        place = (gb * n_tiles + tile).to(tl.int64) * N
        Bn = BC + place * (2 * T)
        if ADJOINT:
            Bn += N * T  # C stands in for B
        here = starts + place * channels + d
        for n in range(0, tl.where(tile * T < length, N, 0)):
            rate = _vector(A2 + n * channels, in_d)
            h = _vector(carry + n * channels, in_d)
            if WRITE_STARTS:
                tl.store(here + n * channels, h, mask=in_d)
            new_outs = ()
            if ADJOINT:
                for j in tl.static_range(16):
                    h = tl.exp2(dts[15 - j] * rate) * (drives[15 - j] * tl.load(Bn + n * T + (15 - j)) + h)
            else:
                for j in tl.static_range(16):
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * tl.load(Bn + n * T + j)
                    if WRITE_Y:
                        new_outs += (outs[j] + h * tl.load(Bn + (N + n) * T + j),)
            if WRITE_Y:
                outs = new_outs
            tl.store(carry + n * channels, h, mask=in_d)
        if WRITE_Y:
            for j in tl.static_range(16):
                t = tile * T + j
                out = tl.where(t < length, outs[j], 0.0).to(y.dtype.element_ty)
                tl.store(y + _row_of(t, length, reverse) * channels, out, mask=(t < L) & in_d)
    if WRITE_SPANS:
        tl.store(spans + slot * channels + d, span, mask=in_d)


@triton.jit
def pass_kernel(
    carry, spans, A2, initial, batch, channels, n_segments,
    N: tl.constexpr, BLOCK: tl.constexpr, FROM_END: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Turns each segment's last state, reached from zero, into the state each segment starts from, in place."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gb, n = tl.program_id(1), tl.program_id(2)
    in_d = d < channels
    rate = _vector(A2 + (gb // batch * N + n) * channels + d, in_d)
    if HAS_INITIAL:
        state = _vector(initial + (gb * N + n) * channels + d, in_d)
    else:
        state = tl.zeros([BLOCK], tl.float32)
    for k in range(0, n_segments):
        segment = n_segments - 1 - k if FROM_END else k
        slot = (gb * n_segments + segment).to(tl.int64)
        where = carry + (slot * N + n) * channels + d
        own = _vector(where, in_d)
        tl.store(where, state, mask=in_d)
        state = tl.exp2(rate * _vector(spans + slot * channels + d, in_d)) * state + own


@triton.jit
def backward_kernel(
    u, delta, bias, A2, BC, D, gy, starts, carry, lengths, gu, gdelta, gBC, gA, gD, gbias,
    su_g, su_b, su_l, sd_g, sd_b, sd_l, sy_g, sy_b, sy_l, L, batch, channels, n_tiles, tiles_each, n_segments, reverse_bits,
    copy_stride, N: tl.constexpr, N_PAD: tl.constexpr, BLOCK_D: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ATOMIC: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of one segment, tile by tile from its end, from the adjoint in ``carry`` and the states in ``starts``.

    gu, gdelta (G, batch, L, D) contiguous, gdelta possibly the storage of delta; gBC (G, batch, tile, 2, N, 16), added to
    atomically or one copy for every block of channels; gA (G, batch, segment, N, D), zero on entry; gD, gbias
    (G, batch, segment, D).

    The sums over channels in gBC are products with a matrix of ones, which the tensor cores do beside everything else: in
    tf32, which keeps more bits than 16-bit inputs have, or for float32 inputs (EXACT) in three of them.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    gb, segment = tl.program_id(1), tl.program_id(2)
    g, b = gb // batch, gb % batch
    length = _length_of(lengths, b, L, HAS_LENGTHS)
    reverse = (reverse_bits >> g) & 1
    in_d = d < channels
    u += g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
    delta += g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
    gy += g.to(tl.int64) * sy_g + b.to(tl.int64) * sy_b + d
    gu += gb.to(tl.int64) * L * channels + d
    gdelta += gb.to(tl.int64) * L * channels + d
    gBC += tl.program_id(0).to(tl.int64) * copy_stride
    slot = (gb * n_segments + segment).to(tl.int64)
    carry += slot * N * channels + d
    gA += slot * N * channels + d
    A2 += g * N * channels + d
    if HAS_BIAS:
        shift = _vector(bias + g * channels + d, in_d)
    if HAS_D:
        skip = _vector(D + g * channels + d, in_d)
    gD_sum = tl.zeros([BLOCK_D], tl.float32)
    gbias_sum = tl.zeros([BLOCK_D], tl.float32)
    n_row = tl.arange(0, N_PAD)[:, None]
    precision: tl.constexpr = "tf32x3" if EXACT else "tf32"
    ones = tl.full([N_PAD, BLOCK_D], 1.0, tl.float32)
    begin = segment * tiles_each
    count = tl.minimum(tiles_each, n_tiles - begin)
    for k in range(0, count):
        tile = begin + count - 1 - k
        dts, drives, outs, zeros = (), (), (), ()
        for j in tl.static_range(16):
            t = tile * T + j
            row = _row_of(t, length, reverse)
            mask = (t < length) & in_d
            dt = _vector(delta + row * sd_l, mask)
            if HAS_BIAS:
                dt += shift
            dt = tl.where(mask, _softplus(dt), 0.0)
            dts += (dt,)
            drives += (dt * _vector(u + row * su_l, mask),)
            outs += (_vector(gy + row * sy_l, mask),)
            zeros += (tl.zeros([BLOCK_D], tl.float32),)
        by_decay, by_drive = zeros, zeros  # sums over n: g_t a_t h_{t-1} A (in base 2) and g_t B_t
        sum_B = tl.zeros([N_PAD, 16], tl.float32)
        sum_C = tl.zeros([N_PAD, 16], tl.float32)
        place = (gb * n_tiles + tile).to(tl.int64) * N
        for n in range(0, tl.where(tile * T < length, N, 0)):
            rate = _vector(A2 + n * channels, in_d)
            h = _vector(starts + place * channels + d + n * channels, in_d)
            Bn = BC + (place * 2 + n) * T
            Cn = Bn + N * T
            decays, decayed, into_C = (), (), ()
            for j in tl.static_range(16):
                a = tl.exp2(dts[j] * rate)
                decays += (a,)
                decayed += (a * h,)
                h = a * h + drives[j] * tl.load(Bn + j)
                into_C += (h * outs[j],)
            p = _vector(carry + n * channels, in_d)
            gA_n = _vector(gA + n * channels, in_d)
            new_by_decay, new_by_drive, into_B = (), (), ()
            for r in tl.static_range(16):  # j = 15 - r, which must stay a constant
                grad = p + outs[15 - r] * tl.load(Cn + (15 - r))
                through = grad * decayed[15 - r]
                new_by_decay = (by_decay[15 - r] + through * rate,) + new_by_decay
                new_by_drive = (by_drive[15 - r] + grad * tl.load(Bn + (15 - r)),) + new_by_drive
                gA_n += through * dts[15 - r]
                into_B = (grad * drives[15 - r],) + into_B
                p = decays[15 - r] * grad
            by_decay, by_drive = new_by_decay, new_by_drive
            tl.store(carry + n * channels, p, mask=in_d)
            tl.store(gA + n * channels, gA_n, mask=in_d)
            over_B = tl.dot(ones, _columns(into_B), input_precision=precision)
            over_C = tl.dot(ones, _columns(into_C), input_precision=precision)
            sum_B = tl.where(n_row == n, over_B, sum_B)
            sum_C = tl.where(n_row == n, over_C, sum_C)
        for j in tl.static_range(16):
            t = tile * T + j
            row = _row_of(t, length, reverse)
            mask = (t < length) & in_d
            v = _vector(u + row * su_l, mask)
            # softplus' = 1 - exp(-softplus)
            graw = (LN_2 * by_decay[j] + v * by_drive[j]) * (1.0 - tl.exp2(-LOG2_E * dts[j]))
            gD_sum += outs[j] * v
            gbias_sum += graw
            gv = dts[j] * by_drive[j]
            if HAS_D:
                gv += skip * outs[j]
            written = (t < L) & in_d
            tl.store(gu + row * channels, tl.where(mask, gv, 0.0).to(gu.dtype.element_ty), mask=written)
            tl.store(gdelta + row * channels, tl.where(mask, graw, 0.0).to(gdelta.dtype.element_ty), mask=written)
        where = gBC + place * (2 * T) + n_row * T + tl.arange(0, 16)[None, :]
        present = (n_row < N) & (tile * T < length)
        if ATOMIC:
            tl.atomic_add(where, sum_B, mask=present, sem="relaxed")
            tl.atomic_add(where + N * T, sum_C, mask=present, sem="relaxed")
        else:
            tl.store(where, sum_B, mask=present)
            tl.store(where + N * T, sum_C, mask=present)
    if HAS_D:
        tl.store(gD + slot * channels + d, gD_sum, mask=in_d)
    if HAS_BIAS:
        tl.store(gbias + slot * channels + d, gbias_sum, mask=in_d)
