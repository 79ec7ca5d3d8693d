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

T = tl.constexpr(16)  # frames of a tile, and the smallest side of a tensor core product
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
def _vector(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _channels_there(d, channels, EVEN: tl.constexpr):
    """Which of these channels exist; with EVEN all, and the compiler drops the masks."""
    return tl.full(d.shape, True, tl.int1) if EVEN else d < channels


@triton.jit
def _first_row(tile, length, reverse):
    """Row of a tile's first frame; the others follow in steps of 1, or of -1 where time is reversed."""
    return tl.where(reverse != 0, length - 1 - tile * T, tile * T).to(tl.int64)


@triton.jit
def _frames(pointer, step, left, in_d):
    """A tile's 16 frames from ``pointer`` on, zero from the ``left``-th."""
    out = ()
    for j in tl.static_range(16):
        out += (_vector(pointer + j * step, (j < left) & in_d),)
    return out


@triton.jit
def _store_frames(pointer, step, left, x, in_d):
    for j in tl.static_range(16):
        tl.store(pointer + j * step, x[j].to(pointer.dtype.element_ty), mask=(j < left) & in_d)


@triton.jit
def _store_padding(pointer, s_l, tile, left, L, in_d):
    """Zeros past the end of an utterance, where frames keep their place in either direction."""
    if left < T:
        for j in tl.static_range(16):
            t = tile * T + j
            zero = tl.zeros(in_d.shape, pointer.dtype.element_ty)
            tl.store(pointer + t.to(tl.int64) * s_l, zero, mask=(j >= left) & (t < L) & in_d)


@triton.jit
def _dts(delta, step, left, in_d, shift):
    """dt = softplus(delta + bias) of a tile's frames, zero past the end."""
    out = ()
    for j in tl.static_range(16):
        raw = _vector(delta + j * step, (j < left) & in_d)
        out += (tl.where(j < left, _softplus(raw + shift), 0.0),)
    return out


@triton.jit
def _columns(x):
    """16 vectors (D,) as the columns of a matrix (D, 16)."""
    # join puts the new axis last: what meets first differs in the index's highest bit.
    a0, a1, a2, a3 = tl.join(x[0], x[8]), tl.join(x[1], x[9]), tl.join(x[2], x[10]), tl.join(x[3], x[11])
    a4, a5, a6, a7 = tl.join(x[4], x[12]), tl.join(x[5], x[13]), tl.join(x[6], x[14]), tl.join(x[7], x[15])
    b0, b1, b2, b3 = tl.join(a0, a4), tl.join(a1, a5), tl.join(a2, a6), tl.join(a3, a7)
    return tl.reshape(tl.join(tl.join(b0, b2), tl.join(b1, b3)), [x[0].shape[0], 16])


@kernel
def tile_kernel(
    B, C, tiles, lengths, sb_g, sb_b, sb_l, sc_g, sc_b, sc_l, L, batch, n_tiles, reverse_bits,
    N: tl.constexpr, N_PAD: tl.constexpr, HAS_LENGTHS: tl.constexpr, FROM_TILES: tl.constexpr,
):  # fmt: skip
    """Copies B and C (G, batch, L, N) to tiles (G, batch, tile, 2, N, 16) float32 in scan time, zero past the end, or back.

    The scan then reads the 16 values of one n, the same for all threads, from neighbouring addresses.
    """
    tile, gb, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    g, b = gb // batch, gb % batch
    length = _length_of(lengths, b, L, HAS_LENGTHS)
    n = tl.arange(0, N_PAD)[None, :]
    j = tl.arange(0, 16)[:, None]
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
    N: tl.constexpr, BLOCK_D: tl.constexpr, ADJOINT: tl.constexpr, WRITE_Y: tl.constexpr, WRITE_SPANS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Runs the recurrence from the state in ``carry`` (G, batch, segment, N, D), where it leaves the segment's last state. With
    WRITE_Y, y (G, batch, L, D) may be the storage of u.

    With ADJOINT the recurrence of the gradient runs from the segment's end instead, u being the gradient of y:
    p_t = a_t (C_t gy_t + p_{t+1}), which is the gradient of the state before t.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    gb = tl.program_id(1)
    g, b = gb // batch, gb % batch
    segment = tl.program_id(2) + first_segment
    length = _length_of(lengths, b, L, HAS_LENGTHS)
    reverse = (reverse_bits >> g) & 1
    in_d = _channels_there(d, channels, EVEN)
    u += g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
    delta += g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
    y += gb.to(tl.int64) * L * channels + d
    slot = (gb * n_segments + segment).to(tl.int64)
    carry += slot * N * channels + d
    A2 += g * N * channels + d
    shift = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        shift = _vector(bias + g * channels + d, in_d)
    if HAS_D:
        skip = _vector(D + g * channels + d, in_d)
    span = tl.zeros([BLOCK_D], tl.float32)
    begin = segment * tiles_each
    count = tl.minimum(tiles_each, n_tiles - begin)
    sign = 1 - 2 * reverse.to(tl.int64)
    for k in range(0, count):
        tile = begin + (count - 1 - k if ADJOINT else k)
        first, left = _first_row(tile, length, reverse), length - tile * T
        dts = _dts(delta + first * sd_l, sign * sd_l, left, in_d, shift)
        vs = _frames(u + first * su_l, sign * su_l, left, in_d)
        drives, outs = (), ()
        for j in tl.static_range(16):
            drives += (vs[j] if ADJOINT else dts[j] * vs[j],)
            outs += (skip * vs[j] if HAS_D else tl.zeros([BLOCK_D], tl.float32),)
            if WRITE_SPANS:
                span += dts[j]
        Bn = BC + (gb * n_tiles + tile).to(tl.int64) * (2 * N * T)
        if ADJOINT:
            Bn += N * T  # C stands in for B
        # What a round needs is loaded one round ahead: a program is a single warp, and few of them share a processor. One value
        # of each 32 bytes of B and C brings the rest into the cache.
        next_rate, next_h = _vector(A2, in_d), _vector(carry, in_d)
        next_B0, next_B8 = tl.load(Bn), tl.load(Bn + 8)
        if WRITE_Y:
            next_C0, next_C8 = tl.load(Bn + N * T), tl.load(Bn + N * T + 8)
        for n in range(0, tl.where(left > 0, N, 0)):
            rate, h, B0, B8 = next_rate, next_h, next_B0, next_B8
            after = tl.minimum(n + 1, N - 1)
            next_rate, next_h = _vector(A2 + after * channels, in_d), _vector(carry + after * channels, in_d)
            next_B0, next_B8 = tl.load(Bn + after * T), tl.load(Bn + after * T + 8)
            if WRITE_Y:
                C0, C8 = next_C0, next_C8
                next_C0, next_C8 = tl.load(Bn + (N + after) * T), tl.load(Bn + (N + after) * T + 8)
            new_outs = ()
            if ADJOINT:
                for j in tl.static_range(16):
                    c = B8 if j == 7 else (B0 if j == 15 else tl.load(Bn + n * T + (15 - j)))
                    h = tl.exp2(dts[15 - j] * rate) * (drives[15 - j] * c + h)
            else:
                for j in tl.static_range(16):
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * (B0 if j == 0 else (B8 if j == 8 else tl.load(Bn + n * T + j)))
                    if WRITE_Y:
                        c = C0 if j == 0 else (C8 if j == 8 else tl.load(Bn + (N + n) * T + j))
                        new_outs += (outs[j] + h * c,)
            if WRITE_Y:
                outs = new_outs
            tl.store(carry + n * channels, h, mask=in_d)
        if WRITE_Y:
            _store_frames(y + first * channels, sign * channels, left, outs, in_d)
            _store_padding(y, channels, tile, left, L, in_d)
    if WRITE_SPANS:
        tl.store(spans + slot * channels + d, span, mask=in_d)


@kernel
def pass_kernel(
    carry, spans, A2, initial, batch, channels, n_segments,
    N: tl.constexpr, BLOCK: tl.constexpr, FROM_END: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Turns each segment's last state, reached from zero, into the state each segment starts from, in place."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gb, n = tl.program_id(1), tl.program_id(2)
    in_d = d < channels
    rate = _vector(A2 + (gb // batch * N + n) * channels + d, in_d)
    state = _vector(initial + (gb * N + n) * channels + d, in_d) if HAS_INITIAL else tl.zeros([BLOCK], tl.float32)
    for first in range(0, n_segments, 8):
        places, owns, decays = (), (), ()
        for k in tl.static_range(8):  # eight at a time, so that the loads do not wait for each other
            at = tl.minimum(first + k, n_segments - 1)
            slot = (gb * n_segments + (n_segments - 1 - at if FROM_END else at)).to(tl.int64)
            places += (carry + (slot * N + n) * channels + d,)
            owns += (_vector(places[k], in_d),)
            decays += (tl.exp2(rate * _vector(spans + slot * channels + d, in_d)),)
        for k in tl.static_range(8):
            tl.store(places[k], state, mask=in_d & (first + k < n_segments))
            state = decays[k] * state + owns[k]


@kernel
def backward_kernel(
    u, delta, bias, A2, BC, D, gy, carry, adjoint, states, lengths, gu, gdelta, gBC, sums,
    su_g, su_b, su_l, sd_g, sd_b, sd_l, sy_g, sy_b, sy_l, L, batch, channels, n_tiles, tiles_each, n_segments, items, blocks,
    reverse_bits, copy_stride, N: tl.constexpr, N_PAD: tl.constexpr, BLOCK_D: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ATOMIC: tl.constexpr, EXACT: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Gradients. A program takes every so many-th of ``items`` (a block of channels, a batch row, a segment): it runs the
    recurrence from ``carry``, keeps the state before each tile in its own part of ``states`` (programs, tiles, N, BLOCK_D),
    and returns through the tiles with the adjoint in ``adjoint``.

    gu, gdelta (G, batch, L, D) contiguous, possibly the storage of u and delta; gBC (G, batch, tile, 2, N, 16), added to
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
        d = block * BLOCK_D + lane
        in_d = _channels_there(d, channels, EVEN)
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
            shift = _vector(bias + g * channels + d, in_d)
        if HAS_D:
            skip = _vector(D + g * channels + d, in_d)
        begin = segment * tiles_each
        # Tiles past the utterance's end only have zeros to write.
        count = tl.minimum(tiles_each, n_tiles - begin)
        used = tl.maximum(tl.minimum(count, tl.cdiv(length, T) - begin), 0)
        for k in range(0, used):
            first, left = _first_row(begin + k, length, reverse), length - (begin + k) * T
            dts = _dts(delta_here + first * sd_l, sign * sd_l, left, in_d, shift)
            vs = _frames(u_here + first * su_l, sign * su_l, left, in_d)
            drives = ()
            for j in tl.static_range(16):
                drives += (dts[j] * vs[j],)
            Bn = BC + (gb * n_tiles + begin + k).to(tl.int64) * (2 * N * T)
            next_rate, next_h = _vector(rates, in_d), _vector(carry_here, in_d)
            next_B0, next_B8 = tl.load(Bn), tl.load(Bn + 8)
            for n in range(0, N):
                rate, h, B0, B8 = next_rate, next_h, next_B0, next_B8
                after = tl.minimum(n + 1, N - 1)
                next_rate, next_h = _vector(rates + after * channels, in_d), _vector(carry_here + after * channels, in_d)
                next_B0, next_B8 = tl.load(Bn + after * T), tl.load(Bn + after * T + 8)
                tl.store(states + (k * N + n) * BLOCK_D, h)
                for j in tl.static_range(16):
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * (B0 if j == 0 else (B8 if j == 8 else tl.load(Bn + n * T + j)))
                tl.store(carry_here + n * channels, h, mask=in_d)
        gD_sum = tl.zeros([BLOCK_D], tl.float32)
        gbias_sum = tl.zeros([BLOCK_D], tl.float32)
        for k in range(0, count):
            tile = begin + count - 1 - k
            first, left = _first_row(tile, length, reverse), length - tile * T
            dts = _dts(delta_here + first * sd_l, sign * sd_l, left, in_d, shift)
            vs = _frames(u_here + first * su_l, sign * su_l, left, in_d)
            outs = _frames(gy_here + first * sy_l, sign * sy_l, left, in_d)
            drives, zeros = (), ()
            for j in tl.static_range(16):
                drives += (dts[j] * vs[j],)
                zeros += (tl.zeros([BLOCK_D], tl.float32),)
            by_decay, by_drive = zeros, zeros  # sums over n: g_t a_t h_{t-1} A (in base 2) and g_t B_t
            sum_B = tl.zeros([N_PAD, 16], tl.float32)
            sum_C = tl.zeros([N_PAD, 16], tl.float32)
            place = (gb * n_tiles + tile).to(tl.int64) * (2 * N * T)
            Bs = BC + place
            saved = states + (count - 1 - k) * N * BLOCK_D
            next_rate, next_h = _vector(rates, in_d), tl.load(saved)
            next_p, next_gA = _vector(adjoint_here, in_d), _vector(sums_here, in_d)
            next_B0, next_B8, next_C0, next_C8 = tl.load(Bs), tl.load(Bs + 8), tl.load(Bs + N * T), tl.load(Bs + N * T + 8)
            for n in range(0, tl.where(count - 1 - k < used, N, 0)):
                rate, h, p, gA = next_rate, next_h, next_p, next_gA
                B0, B8, C0, C8 = next_B0, next_B8, next_C0, next_C8
                after = tl.minimum(n + 1, N - 1)
                next_rate, next_h = _vector(rates + after * channels, in_d), tl.load(saved + after * BLOCK_D)
                next_p, next_gA = _vector(adjoint_here + after * channels, in_d), _vector(sums_here + after * channels, in_d)
                next_B0, next_B8 = tl.load(Bs + after * T), tl.load(Bs + after * T + 8)
                next_C0, next_C8 = tl.load(Bs + (N + after) * T), tl.load(Bs + (N + after) * T + 8)
                Bn = Bs + n * T
                Cn = Bn + N * T
                decays, decayed, into_C = (), (), ()
                for j in tl.static_range(16):
                    a = tl.exp2(dts[j] * rate)
                    decays += (a,)
                    decayed += (a * h,)
                    h = a * h + drives[j] * (B0 if j == 0 else (B8 if j == 8 else tl.load(Bn + j)))
                    into_C += (h * outs[j],)
                new_by_decay, new_by_drive, into_B = (), (), ()
                for r in tl.static_range(16):  # frame 15 - r, written out because it must stay a constant
                    c = C8 if r == 7 else (C0 if r == 15 else tl.load(Cn + (15 - r)))
                    grad = p + outs[15 - r] * c
                    through = grad * decayed[15 - r]
                    new_by_decay = (by_decay[15 - r] + through * rate,) + new_by_decay
                    new_by_drive = (by_drive[15 - r] + grad * tl.load(Bn + (15 - r)),) + new_by_drive
                    gA += through * dts[15 - r]
                    into_B = (grad * drives[15 - r],) + into_B
                    p = decays[15 - r] * grad
                by_decay, by_drive = new_by_decay, new_by_drive
                tl.store(adjoint_here + n * channels, p, mask=in_d)
                tl.store(sums_here + n * channels, gA, mask=in_d)
                over_B = tl.dot(ones, _columns(into_B), input_precision=precision)
                over_C = tl.dot(ones, _columns(into_C), input_precision=precision)
                sum_B = tl.where(n_row == n, over_B, sum_B)
                sum_C = tl.where(n_row == n, over_C, sum_C)
            # Read again: sixteen registers fewer in the loop above.
            vs = _frames(u_here + first * su_l, sign * su_l, left, in_d)
            gus, gdeltas = (), ()
            for j in tl.static_range(16):
                graw = (LN_2 * by_decay[j] + vs[j] * by_drive[j]) * _softplus_slope(dts[j])
                gD_sum += outs[j] * vs[j]
                gbias_sum += graw
                gdeltas += (graw,)
                gus += (dts[j] * by_drive[j] + skip * outs[j] if HAS_D else dts[j] * by_drive[j],)
            _store_frames(gu_here + first * channels, sign * channels, left, gus, in_d)
            _store_frames(gdelta_here + first * channels, sign * channels, left, gdeltas, in_d)
            _store_padding(gu_here, channels, tile, left, L, in_d)
            _store_padding(gdelta_here, channels, tile, left, L, in_d)
            into = gBC + block.to(tl.int64) * copy_stride + place + n_row * T + tl.arange(0, 16)[None, :]
            present = (n_row < N) & (count - 1 - k < used)
            if ATOMIC:
                tl.atomic_add(into, sum_B, mask=present, sem="relaxed")
                tl.atomic_add(into + N * T, sum_C, mask=present, sem="relaxed")
            else:
                tl.store(into, sum_B, mask=present)
                tl.store(into + N * T, sum_C, mask=present)
        tl.store(sums_here + N * channels, gD_sum, mask=in_d)
        tl.store(sums_here + (N + 1) * channels, gbias_sum, mask=in_d)
