"""Triton kernels of the selective scan. Tensors in, tensors out; :mod:`.triton` allocates and launches.

Work is cut three ways: G x batch rows, blocks of BLOCK_D channels, and *segments* of time. A program is one warp, a channel to a
thread. It walks through its segment in tiles of 16 frames, and through a tile once for every state dimension n: the frames
are unrolled, so the recurrence is 16 fused multiply-adds in registers, with no exchange between threads and no layout left
to the compiler. Between tiles the state rests in memory (one load and one store for every 16 frames, from the cache).

Time is *scan time*: t = 0 is the first frame the recurrence meets, which for a reverse direction is the utterance's last
valid one. Frames past the end have dt = 0 and no input, which leaves the state as it is.

Cost for every (frame, channel, n) and direction: one exp2 in the forward pass, two in the backward pass (states before each
tile, and the pass itself), and up to one more in the forward and two in the backward pass where time is cut into segments.
On compute capability 9.0 the inner loops have 8 instructions for each of them forwards and 21 backwards; a processor issues
four in the time of one exp2, so the forward loop is as close to that limit as to the limit of issue.
"""

import triton
import triton.language as tl

from hmamba_asr.ops.launch import kernel

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) to 2e-7, also where it is small: max(x, 0) + log1p(exp(-|x|)), the latter by a polynomial fitted to
    log1p(t) / t on [0, 1] for the least relative error."""
    t = tl.exp2(-LOG2_E * tl.abs(x))
    p = 0.0052326880395412445 * t - 0.029505213722586632
    p = p * t + 0.07822591066360474
    p = p * t - 0.13663242757320404
    p = p * t + 0.19106005132198334
    p = p * t - 0.2484298199415207
    p = p * t + 0.3331909775733948
    p = p * t - 0.4999949336051941
    p = p * t + 0.9999999403953552
    return tl.maximum(x, 0.0) + t * p


@triton.jit
def _softplus_slope(dt):
    """Derivative of softplus where its value is dt: 1 - exp(-dt), by its series where that would cancel."""
    series = dt * (1.0 - dt * (0.5 - dt * (0.16666667 - dt * 0.041666668)))
    return tl.where(dt < 0.0625, series, 1.0 - tl.exp2(-LOG2_E * dt))


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
def _at(pointer, ALIGNED: tl.constexpr):
    """Pointers to a program's channels, with what ALIGNED promises of them."""
    return tl.max_contiguous(tl.multiple_of(pointer, 16), pointer.shape[0]) if ALIGNED else pointer


@triton.jit
def _vector(pointer, mask, ALIGNED: tl.constexpr):
    return tl.load(_at(pointer, ALIGNED), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, value, mask, ALIGNED: tl.constexpr):
    tl.store(_at(pointer, ALIGNED), value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _channels(block, channels, BLOCK_D: tl.constexpr, ALIGNED: tl.constexpr):
    """A program's channels, and which of them exist; with ALIGNED eight neighbours exist together, and rows are aligned with
    them, so that a thread's channels can be read at once."""
    lane = tl.arange(0, BLOCK_D)
    start = block * BLOCK_D
    if ALIGNED:
        return tl.max_contiguous(tl.multiple_of(start + lane, 8), BLOCK_D), start + lane // 8 * 8 < channels
    else:
        return start + lane, start + lane < channels


@triton.jit
def _heads(pointer, T: tl.constexpr):
    """The first of every 8 values from ``pointer`` on: loading it early brings the others into the cache."""
    out = ()
    for j in tl.static_range(0, T, 8):
        out += (tl.load(pointer + j),)
    return out


@triton.jit
def _value(heads, pointer, j: tl.constexpr):
    return heads[j // 8] if j % 8 == 0 else tl.load(pointer + j)


@triton.jit
def _first_row(tile, length, reverse, T: tl.constexpr):
    """Row of a tile's first frame; the others follow in steps of 1, or of -1 where time is reversed."""
    return tl.where(reverse != 0, length - 1 - tile * T, tile * T).to(tl.int64)


@triton.jit
def _frames(pointer, step, left, in_d, T: tl.constexpr, ALIGNED: tl.constexpr):
    """A tile's 16 frames from ``pointer`` on, zero from the ``left``-th."""
    out = ()
    for j in tl.static_range(T):
        out += (_vector(pointer + j * step, (j < left) & in_d, ALIGNED),)
    return out


@triton.jit
def _store_frames(pointer, step, left, x, in_d, T: tl.constexpr, ALIGNED: tl.constexpr):
    for j in tl.static_range(T):
        _store(pointer + j * step, x[j], (j < left) & in_d, ALIGNED)


@triton.jit
def _store_padding(pointer, s_l, tile, left, L, in_d, T: tl.constexpr, ALIGNED: tl.constexpr):
    """Zeros past the end of an utterance, where frames keep their place in either direction."""
    if left < T:
        for j in tl.static_range(T):
            t = tile * T + j
            zero = tl.zeros(in_d.shape, tl.float32)
            _store(pointer + t.to(tl.int64) * s_l, zero, (j >= left) & (t < L) & in_d, ALIGNED)


@triton.jit
def _dts(delta, step, left, in_d, shift, T: tl.constexpr, ALIGNED: tl.constexpr):
    """dt = softplus(delta + bias) of a tile's frames, zero past the end."""
    out = ()
    for j in tl.static_range(T):
        raw = _vector(delta + j * step, (j < left) & in_d, ALIGNED)
        out += (tl.where(j < left, _softplus(raw + shift), 0.0),)
    return out


@triton.jit
def _columns(x, T: tl.constexpr):
    """8 or 16 vectors (D,) as the columns of a matrix (D, T)."""
    # join puts the new axis last: what meets first differs in the index's highest bit.
    if T == 8:
        b0, b1, b2, b3 = tl.join(x[0], x[4]), tl.join(x[1], x[5]), tl.join(x[2], x[6]), tl.join(x[3], x[7])
    else:
        a0, a1, a2, a3 = tl.join(x[0], x[8]), tl.join(x[1], x[9]), tl.join(x[2], x[10]), tl.join(x[3], x[11])
        a4, a5, a6, a7 = tl.join(x[4], x[12]), tl.join(x[5], x[13]), tl.join(x[6], x[14]), tl.join(x[7], x[15])
        b0, b1, b2, b3 = tl.join(a0, a4), tl.join(a1, a5), tl.join(a2, a6), tl.join(a3, a7)
    return tl.reshape(tl.join(tl.join(b0, b2), tl.join(b1, b3)), [x[0].shape[0], T])


@kernel
def tile_kernel(
    B, C, tiles, lengths, sb_g, sb_b, sb_l, sc_g, sc_b, sc_l, L, batch, n_tiles, reverse_bits,
    N: tl.constexpr, N_PAD: tl.constexpr, T: tl.constexpr, HAS_LENGTHS: tl.constexpr, FROM_TILES: tl.constexpr,
):  # fmt: skip
    """Copies B and C (G, batch, L, N) to tiles (G, batch, tile, 2, N, T) float32 in scan time, zero past the end, or back.

    The scan then reads the 16 values of one n, the same for all threads, from neighbouring addresses.
    """
    tile, gb, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    g, b = gb // batch, gb % batch
    length = _length_of(lengths, b, L, HAS_LENGTHS)
    n = tl.arange(0, N_PAD)[None, :]
    j = tl.arange(0, T)[:, None]
    t = tile * T + j
    row = _row_of(t, length, (reverse_bits >> g) & 1)
    if part == 0:
        outside = B + g.to(tl.int64) * sb_g + b.to(tl.int64) * sb_b + row * sb_l + n
    else:
        outside = C + g.to(tl.int64) * sc_g + b.to(tl.int64) * sc_b + row * sc_l + n
    inside = tiles + ((gb * n_tiles + tile).to(tl.int64) * 2 + part) * N * T + n * T + j
    if FROM_TILES:
        value = tl.where(t < length, tl.load(inside, mask=n < N, other=0.0), 0.0)
        tl.store(outside, value.to(B.dtype.element_ty), mask=(n < N) & (t < L))
    else:
        tl.store(inside, tl.load(outside, mask=(n < N) & (t < length), other=0.0).to(tl.float32), mask=n < N)


@kernel
def scan_kernel(
    u, delta, bias, A2, BC, D, y, carry, spans, lengths,
    su_g, su_b, su_l, sd_g, sd_b, sd_l, L, batch, channels, n_tiles, tiles_each, n_segments, first_segment, reverse_bits,
    N: tl.constexpr, T: tl.constexpr, BLOCK_D: tl.constexpr, ADJOINT: tl.constexpr, WRITE_Y: tl.constexpr, WRITE_SPANS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Runs the recurrence from the state in ``carry`` (G, batch, segment, N, D), where it leaves the segment's last state. With
    WRITE_Y, y (G, batch, L, D) may be the storage of u.

    With ADJOINT the recurrence of the gradient runs from the segment's end instead, u being the gradient of y:
    p_t = a_t (C_t gy_t + p_{t+1}), which is the gradient of the state before t.
    """
    d, in_d = _channels(tl.program_id(0), channels, BLOCK_D, ALIGNED)
    gb = tl.program_id(1)
    g, b = gb // batch, gb % batch
    segment = tl.program_id(2) + first_segment
    length = _length_of(lengths, b, L, HAS_LENGTHS)
    reverse = (reverse_bits >> g) & 1
    u += g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
    delta += g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
    y += gb.to(tl.int64) * L * channels + d
    slot = (gb * n_segments + segment).to(tl.int64)
    carry += slot * N * channels + d
    A2 += g * N * channels + d
    shift = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        shift = _vector(bias + g * channels + d, in_d, ALIGNED)
    if HAS_D:
        skip = _vector(D + g * channels + d, in_d, ALIGNED)
    span = tl.zeros([BLOCK_D], tl.float32)
    begin = segment * tiles_each
    count = tl.minimum(tiles_each, n_tiles - begin)
    sign = 1 - 2 * reverse.to(tl.int64)
    for k in range(0, count):
        tile = begin + (count - 1 - k if ADJOINT else k)
        first, left = _first_row(tile, length, reverse, T), length - tile * T
        dts = _dts(delta + first * sd_l, sign * sd_l, left, in_d, shift, T, ALIGNED)
        vs = _frames(u + first * su_l, sign * su_l, left, in_d, T, ALIGNED)
        drives, outs = (), ()
        for j in tl.static_range(T):
            drives += (vs[j] if ADJOINT else dts[j] * vs[j],)
            outs += (skip * vs[j] if HAS_D else tl.zeros([BLOCK_D], tl.float32),)
            if WRITE_SPANS:
                span += dts[j]
        Bn = BC + (gb * n_tiles + tile).to(tl.int64) * (2 * N * T)
        if ADJOINT:
            Bn += N * T  # C stands in for B
        # What a round needs is loaded one round ahead: a program is a single warp, and few of them share a processor.
        next_rate, next_h, next_B = _vector(A2, in_d, ALIGNED), _vector(carry, in_d, ALIGNED), _heads(Bn, T)
        next_C = _heads(Bn + N * T, T)
        for n in range(0, tl.where(left > 0, N, 0)):
            rate, h, heads, C_heads = next_rate, next_h, next_B, next_C
            after = tl.minimum(n + 1, N - 1)
            next_rate, next_h = _vector(A2 + after * channels, in_d, ALIGNED), _vector(carry + after * channels, in_d, ALIGNED)
            next_B = _heads(Bn + after * T, T)
            if WRITE_Y:
                next_C = _heads(Bn + (N + after) * T, T)
            new_outs = ()
            if ADJOINT:
                for j in tl.static_range(T):
                    c = _value(heads, Bn + n * T, T - 1 - j)
                    h = tl.exp2(dts[T - 1 - j] * rate) * (drives[T - 1 - j] * c + h)
            else:
                for j in tl.static_range(T):
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * _value(heads, Bn + n * T, j)
                    if WRITE_Y:
                        new_outs += (outs[j] + h * _value(C_heads, Bn + (N + n) * T, j),)
            if WRITE_Y:
                outs = new_outs
            _store(carry + n * channels, h, in_d, ALIGNED)
        if WRITE_Y:
            _store_frames(y + first * channels, sign * channels, left, outs, in_d, T, ALIGNED)
            _store_padding(y, channels, tile, left, L, in_d, T, ALIGNED)
    if WRITE_SPANS:
        _store(spans + slot * channels + d, span, in_d, ALIGNED)


@kernel
def pass_kernel(
    carry, spans, A2, initial, batch, channels, n_segments,
    N: tl.constexpr, BLOCK: tl.constexpr, FROM_END: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Turns each segment's last state, reached from zero, into the state each segment starts from, in place."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gb, n = tl.program_id(1), tl.program_id(2)
    in_d = d < channels
    rate = _vector(A2 + (gb // batch * N + n) * channels + d, in_d, False)
    if HAS_INITIAL:
        state = _vector(initial + (gb * N + n) * channels + d, in_d, False)
    else:
        state = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n_segments, 8):
        places, owns, decays = (), (), ()
        for k in tl.static_range(8):  # eight at a time, so that the loads do not wait for each other
            at = tl.minimum(first + k, n_segments - 1)
            slot = (gb * n_segments + (n_segments - 1 - at if FROM_END else at)).to(tl.int64)
            places += (carry + (slot * N + n) * channels + d,)
            owns += (_vector(places[k], in_d, False),)
            decays += (tl.exp2(rate * _vector(spans + slot * channels + d, in_d, False)),)
        for k in tl.static_range(8):
            tl.store(places[k], state, mask=in_d & (first + k < n_segments))
            state = decays[k] * state + owns[k]


@kernel
def backward_kernel(
    u, delta, bias, A2, BC, D, gy, carry, adjoint, states, lengths, gu, gdelta, gBC, sums,
    su_g, su_b, su_l, sd_g, sd_b, sd_l, sy_g, sy_b, sy_l, L, batch, channels, n_tiles, tiles_each, n_segments, items, blocks,
    reverse_bits, copy_stride, N: tl.constexpr, N_PAD: tl.constexpr, T: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ATOMIC: tl.constexpr, EXACT: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Gradients. A program takes every so many-th of ``items`` (a block of channels, a batch row, a segment): it runs the
    recurrence from ``carry``, keeps the state before each tile in its own part of ``states`` (programs, tiles, N, BLOCK_D),
    and returns through the tiles with the adjoint in ``adjoint``.

    gu, gdelta (G, batch, L, D) contiguous, possibly the storage of u and delta; gBC (G, batch, tile, 2, N, T), added to
    atomically or one copy for every block of channels; sums (G, batch, segment, N + 2, D), zero on entry, for A, D and bias.

    The sums over channels in gBC are products with a matrix of ones, which the tensor cores do beside everything else: in
    tf32, which keeps more bits than 16-bit inputs have, or for float32 inputs (EXACT) in three of them.
    """
    lane = tl.arange(0, BLOCK_D)
    n_row = tl.arange(0, N_PAD)[:, None]
    precision: tl.constexpr = "tf32x3" if EXACT else "tf32"
    ones = tl.full([N_PAD, BLOCK_D], 1.0, tl.float32)
    states += tl.program_id(0).to(tl.int64) * tiles_each * N * BLOCK_D + lane
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block, rest = item % blocks, item // blocks
        gb, segment = rest // n_segments, rest % n_segments
        g, b = gb // batch, gb % batch
        d, in_d = _channels(block, channels, BLOCK_D, ALIGNED)
        length = _length_of(lengths, b, L, HAS_LENGTHS)
        reverse = (reverse_bits >> g) & 1
        u_here = u + g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
        delta_here = delta + g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
        gy_here = gy + g.to(tl.int64) * sy_g + b.to(tl.int64) * sy_b + d
        gu_here = gu + gb.to(tl.int64) * L * channels + d
        gdelta_here = gdelta + gb.to(tl.int64) * L * channels + d
        sign = 1 - 2 * reverse.to(tl.int64)
        carry_here = carry + rest.to(tl.int64) * N * channels + d
        adjoint_here = adjoint + rest.to(tl.int64) * N * channels + d
        sums_here = sums + rest.to(tl.int64) * (N + 2) * channels + d
        rates = A2 + g * N * channels + d
        shift = tl.zeros([BLOCK_D], tl.float32)
        if HAS_BIAS:
            shift = _vector(bias + g * channels + d, in_d, ALIGNED)
        if HAS_D:
            skip = _vector(D + g * channels + d, in_d, ALIGNED)
        begin = segment * tiles_each
        # Tiles past the utterance's end only have zeros to write.
        count = tl.minimum(tiles_each, n_tiles - begin)
        used = tl.maximum(tl.minimum(count, tl.cdiv(length, T) - begin), 0)
        for k in range(0, used):
            first, left = _first_row(begin + k, length, reverse, T), length - (begin + k) * T
            dts = _dts(delta_here + first * sd_l, sign * sd_l, left, in_d, shift, T, ALIGNED)
            vs = _frames(u_here + first * su_l, sign * su_l, left, in_d, T, ALIGNED)
            drives = ()
            for j in tl.static_range(T):
                drives += (dts[j] * vs[j],)
            Bn = BC + (gb * n_tiles + begin + k).to(tl.int64) * (2 * N * T)
            next_rate, next_h, next_B = _vector(rates, in_d, ALIGNED), _vector(carry_here, in_d, ALIGNED), _heads(Bn, T)
            for n in range(0, N):
                rate, h, heads = next_rate, next_h, next_B
                after = tl.minimum(n + 1, N - 1)
                next_rate, next_h = _vector(rates + after * channels, in_d, ALIGNED), _vector(carry_here + after * channels, in_d, ALIGNED)
                next_B = _heads(Bn + after * T, T)
                tl.store(_at(states + (k * N + n) * BLOCK_D, ALIGNED), h)
                for j in tl.static_range(T):
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * _value(heads, Bn + n * T, j)
                _store(carry_here + n * channels, h, in_d, ALIGNED)
        gD_sum = tl.zeros([BLOCK_D], tl.float32)
        gbias_sum = tl.zeros([BLOCK_D], tl.float32)
        for k in range(0, count):
            tile = begin + count - 1 - k
            first, left = _first_row(tile, length, reverse, T), length - tile * T
            dts = _dts(delta_here + first * sd_l, sign * sd_l, left, in_d, shift, T, ALIGNED)
            vs = _frames(u_here + first * su_l, sign * su_l, left, in_d, T, ALIGNED)
            outs = _frames(gy_here + first * sy_l, sign * sy_l, left, in_d, T, ALIGNED)
            drives, zeros = (), ()
            for j in tl.static_range(T):
                drives += (dts[j] * vs[j],)
                zeros += (tl.zeros([BLOCK_D], tl.float32),)
            by_decay, by_drive = zeros, zeros  # sums over n: g_t a_t h_{t-1} A (in base 2) and g_t B_t
            sum_B = tl.zeros([N_PAD, T], tl.float32)
            sum_C = tl.zeros([N_PAD, T], tl.float32)
            place = (gb * n_tiles + tile).to(tl.int64) * (2 * N * T)
            Bs = BC + place
            saved = states + (count - 1 - k) * N * BLOCK_D
            next_rate, next_h = _vector(rates, in_d, ALIGNED), tl.load(_at(saved, ALIGNED))
            next_p, next_gA = _vector(adjoint_here, in_d, ALIGNED), _vector(sums_here, in_d, ALIGNED)
            next_B, next_C = _heads(Bs, T), _heads(Bs + N * T, T)
            for n in range(0, tl.where(count - 1 - k < used, N, 0)):
                rate, h, p, gA, heads, C_heads = next_rate, next_h, next_p, next_gA, next_B, next_C
                after = tl.minimum(n + 1, N - 1)
                next_rate, next_h = _vector(rates + after * channels, in_d, ALIGNED), tl.load(_at(saved + after * BLOCK_D, ALIGNED))
                next_p, next_gA = _vector(adjoint_here + after * channels, in_d, ALIGNED), _vector(sums_here + after * channels, in_d, ALIGNED)
                next_B, next_C = _heads(Bs + after * T, T), _heads(Bs + (N + after) * T, T)
                Bn, Cn = Bs + n * T, Bs + (N + n) * T
                decays, decayed, into_C = (), (), ()
                for j in tl.static_range(T):
                    a = tl.exp2(dts[j] * rate)
                    decays += (a,)
                    decayed += (a * h,)
                    h = a * h + drives[j] * _value(heads, Bn, j)
                    into_C += (h * outs[j],)
                new_by_decay, new_by_drive, into_B = (), (), ()
                for r in tl.static_range(T):  # frame T - 1 - r, written out because it must stay a constant
                    grad = p + outs[T - 1 - r] * _value(C_heads, Cn, T - 1 - r)
                    through = grad * decayed[T - 1 - r]
                    new_by_decay = (by_decay[T - 1 - r] + through * rate,) + new_by_decay
                    new_by_drive = (by_drive[T - 1 - r] + grad * _value(heads, Bn, T - 1 - r),) + new_by_drive
                    gA += through * dts[T - 1 - r]
                    into_B = (grad * drives[T - 1 - r],) + into_B
                    p = decays[T - 1 - r] * grad
                by_decay, by_drive = new_by_decay, new_by_drive
                _store(adjoint_here + n * channels, p, in_d, ALIGNED)
                _store(sums_here + n * channels, gA, in_d, ALIGNED)
                over_B = tl.dot(ones, _columns(into_B, T), input_precision=precision)
                over_C = tl.dot(ones, _columns(into_C, T), input_precision=precision)
                sum_B = tl.where(n_row == n, over_B, sum_B)
                sum_C = tl.where(n_row == n, over_C, sum_C)
            # Read again: sixteen registers fewer in the loop above.
            vs = _frames(u_here + first * su_l, sign * su_l, left, in_d, T, ALIGNED)
            gus, gdeltas = (), ()
            for j in tl.static_range(T):
                graw = (LN_2 * by_decay[j] + vs[j] * by_drive[j]) * _softplus_slope(dts[j])
                gD_sum += outs[j] * vs[j]
                gbias_sum += graw
                gdeltas += (graw,)
                gus += (dts[j] * by_drive[j] + skip * outs[j] if HAS_D else dts[j] * by_drive[j],)
            _store_frames(gu_here + first * channels, sign * channels, left, gus, in_d, T, ALIGNED)
            _store_frames(gdelta_here + first * channels, sign * channels, left, gdeltas, in_d, T, ALIGNED)
            _store_padding(gu_here, channels, tile, left, L, in_d, T, ALIGNED)
            _store_padding(gdelta_here, channels, tile, left, L, in_d, T, ALIGNED)
            into = gBC + block.to(tl.int64) * copy_stride + place + n_row * T + tl.arange(0, T)[None, :]
            present = (n_row < N) & (count - 1 - k < used)
            if ATOMIC:
                tl.atomic_add(into, sum_B, mask=present, sem="relaxed")
                tl.atomic_add(into + N * T, sum_C, mask=present, sem="relaxed")
            else:
                tl.store(into, sum_B, mask=present)
                tl.store(into + N * T, sum_C, mask=present)
        _store(sums_here + N * channels, gD_sum, in_d, ALIGNED)
        _store(sums_here + (N + 1) * channels, gbias_sum, in_d, ALIGNED)
