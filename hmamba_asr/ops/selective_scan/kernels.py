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

import os

import triton
import triton.language as tl

from hmamba_asr.ops.launch import kernel

T = tl.constexpr(16)  # frames of a tile, and the smallest side of a tensor core product
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # where no assembly can be run


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
def _channels_there(d, channels: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which of these channels exist; where all do, the compiler drops the masks."""
    return tl.full(d.shape, True, tl.int1) if channels % BLOCK_D == 0 else d < channels


@triton.jit
def _frames(inputs, tile, length, reverse, in_d, channels: tl.constexpr):
    """For each of ``inputs`` (pointers, the first to delta) a tile's 16 frames as they are stored, in scan time; past the end of
    the utterance zero, or for delta what softplus makes zero of.

    They are read in the order of memory, at constant distances, and turned round in registers. Most tiles are full and need no
    masks.
    """
    left = length - tile * T
    offset = tl.where(reverse != 0, left - T, tile * T).to(tl.int64) * channels
    if left < T:
        x = _loads(inputs, offset, reverse, left, in_d, channels, False)
    else:
        x = _loads(inputs, offset, reverse, left, in_d, channels, True)
    out = ()
    for k in tl.static_range(len(inputs)):
        turned = ()
        for j in tl.static_range(16):
            turned += (tl.where(reverse != 0, x[k][15 - j], x[k][j]),)
        out += (turned,)
    return out


@triton.jit
def _loads(inputs, offset, reverse, left, in_d, channels: tl.constexpr, FULL: tl.constexpr):
    out = ()
    for k in tl.static_range(len(inputs)):
        x = ()
        for i in tl.static_range(16):
            mask = in_d if FULL else (tl.where(reverse != 0, 15 - i, i) < left) & in_d
            x += (tl.load(inputs[k] + offset + i * channels, mask=mask, other=-60000.0 if k == 0 else 0.0),)
        out += (x,)
    return out


@triton.jit
def _wide(x):
    out = ()
    for j in tl.static_range(16):
        out += (x[j].to(tl.float32),)
    return out


@triton.jit
def _four(pointer, BLOCK_D: tl.constexpr):
    """Four neighbouring values, each for all channels (BLOCK_D,), in one load of 16 bytes a thread."""
    at = pointer + tl.zeros([BLOCK_D, 1], tl.int32) + tl.arange(0, 4)[None, :]
    x = tl.load(tl.max_contiguous(tl.multiple_of(at, (1, 16)), (1, 4)))
    even, odd = tl.split(tl.reshape(x, [BLOCK_D, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _sixteen(first, pointer, BLOCK_D: tl.constexpr):
    """The 16 values at ``pointer``, of which the ``first`` four have been loaded."""
    return first + _four(pointer + 4, BLOCK_D) + _four(pointer + 8, BLOCK_D) + _four(pointer + 12, BLOCK_D)


@triton.jit
def _fetch(pointer, SIZE: tl.constexpr):
    """Brings SIZE float32 values into the cache: one of each 32 bytes is read, and all of them make a zero (NaN too)."""
    zero = tl.zeros([32], tl.float32)
    for start in tl.static_range(0, SIZE, 256):
        at = start + tl.arange(0, 32) * 8
        zero += tl.minimum(tl.abs(tl.load(pointer + at, mask=at < SIZE, other=0.0)), 0.0)
    return zero


@triton.jit
def _store_frames(outputs, values, tile, length, reverse, L, in_d, channels: tl.constexpr):
    """A tile's 16 frames of each output, and zeros past the utterance's end, where frames keep their place in either
    direction."""
    left = length - tile * T
    offset = tl.where(reverse != 0, left - T, tile * T).to(tl.int64) * channels
    ordered = ()
    for k in tl.static_range(len(outputs)):
        x = ()
        for i in tl.static_range(16):
            x += (tl.where(reverse != 0, values[k][15 - i], values[k][i]).to(outputs[k].dtype.element_ty),)
        ordered += (x,)
    if left < T:
        for k in tl.static_range(len(outputs)):
            for i in tl.static_range(16):
                inside = tl.where(reverse != 0, 15 - i, i) < left
                tl.store(outputs[k] + offset + i * channels, ordered[k][i], mask=inside & in_d)
                t = tile * T + i
                zero = tl.zeros(in_d.shape, outputs[k].dtype.element_ty)
                tl.store(outputs[k] + t.to(tl.int64) * channels, zero, mask=(i >= left) & (t < L) & in_d)
    else:
        for k in tl.static_range(len(outputs)):
            for i in tl.static_range(16):
                tl.store(outputs[k] + offset + i * channels, ordered[k][i], mask=in_d)


@triton.jit
def _dts(delta, shift):
    """dt = softplus(delta + bias) of a tile's frames."""
    out = ()
    for j in tl.static_range(16):
        out += (_softplus(delta[j].to(tl.float32) + shift),)
    return out


@triton.jit
def _lane_frame():
    """The frame whose sum :func:`_sums_over_channels` leaves in each thread; in the upper sixteen that of C."""
    lane = tl.arange(0, 32)
    return lane % 4 * 4 + lane // 4 % 2 * 2 + lane // 8 % 2


@triton.jit
def _add_over_channels(sums, columns, x0, x1, x2, x3, four: tl.constexpr, EXACT: tl.constexpr):
    """Adds frames 4 ``four`` to 4 ``four`` + 3, with a channel to a thread, to ``sums``.

    The tensor cores do it where the values are: what four threads of a row hold are, in a product of a 16 x 8 with an 8 x 8
    matrix, four columns of the first for frames 0 and 2, and the other four for frames 1 and 3. With ones in the right places
    of the second (``columns``: whether lane // 4 is 0, 1, ... 7), their sums land in columns 2 ``four`` and 2 ``four`` + 1. In
    tf32, which keeps more bits than 16-bit inputs have, or (EXACT) with a second product for what it cuts off.
    """
    if INTERPRETED:
        frame, total = _lane_frame(), sums[0]
        total += tl.where(frame == 4 * four, tl.sum(x0, 0), 0.0) + tl.where(frame == 4 * four + 1, tl.sum(x1, 0), 0.0)
        total += tl.where(frame == 4 * four + 2, tl.sum(x2, 0), 0.0) + tl.where(frame == 4 * four + 3, tl.sum(x3, 0), 0.0)
        return (total, sums[1], sums[2], sums[3])
    else:
        if EXACT:
            h0, h1, h2, h3 = _tf32(x0), _tf32(x1), _tf32(x2), _tf32(x3)
            sums = _product(sums, columns, x0 - h0, x1 - h1, x2 - h2, x3 - h3, four)
            return _product(sums, columns, h0, h1, h2, h3, four)
        else:
            return _product(sums, columns, x0, x1, x2, x3, four)


@triton.jit
def _tf32(x):
    return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _product(sums, columns, x0, x1, x2, x3, four: tl.constexpr):
    return tl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [x0, x2, x1, x3, columns[2 * four], columns[2 * four + 1], sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _sums_over_channels(of_B, of_C):
    """One value a thread, of the frame :func:`_lane_frame` says: what the tensor cores left, summed over groups of threads."""
    if INTERPRETED:
        return tl.where(tl.arange(0, 32) < 16, of_B[0], of_C[0])
    else:
        # Of rows lane // 4 and lane // 4 + 8 a thread has columns 2 (lane % 4) and the next. Each exchange halves what it has.
        b0, b1 = _exchange(of_B[0], of_B[2], 4), _exchange(of_B[1], of_B[3], 4)
        c0, c1 = _exchange(of_C[0], of_C[2], 4), _exchange(of_C[1], of_C[3], 4)
        return _exchange(_exchange(b0, b1, 8), _exchange(c0, c1, 8), 16)


@triton.jit
def _exchange(low, high, bit: tl.constexpr):
    """Two threads whose numbers differ in ``bit`` share the work: the one without it sums ``low`` of both, the other ``high``."""
    upper = (tl.arange(0, 32) & bit) != 0
    kept, given = tl.where(upper, high, low), tl.where(upper, low, high)
    lane = tl.full([32], bit, tl.int32)
    asm: tl.constexpr = "shfl.sync.bfly.b32 $0, $1, $2, 31, -1;"
    return kept + tl.inline_asm_elementwise(asm, "=r,r,r", [given, lane], dtype=tl.float32, is_pure=True, pack=1)


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
    su_g, su_b, sd_g, sd_b, L, batch, n_tiles, tiles_each, n_segments, first_segment, reverse_bits,
    channels: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, ADJOINT: tl.constexpr, WRITE_Y: tl.constexpr,
    WRITE_SPANS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
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
    in_d = _channels_there(d, channels, BLOCK_D)
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
    for k in range(0, count):
        tile = begin + (count - 1 - k if ADJOINT else k)
        Bn = BC + (gb * n_tiles + tile).to(tl.int64) * (2 * N * T) + (N * T if ADJOINT else 0)  # C stands in for B
        fetched = _fetch(Bn, 2 * N * T if WRITE_Y else N * T)
        raw, vs = _frames((delta, u), tile, length, reverse, in_d, channels)
        dts, vs = _dts(raw, shift + fetched), _wide(vs)
        drives, outs = (), ()
        for j in tl.static_range(16):
            drives += (vs[j] if ADJOINT else dts[j] * vs[j],)
            outs += (skip * vs[j] if HAS_D else tl.zeros([BLOCK_D], tl.float32),)
            if WRITE_SPANS:
                span += dts[j]
        # What a round needs first is loaded one round ahead: a program is a single warp, and few of them share a processor.
        next_rate, next_h, next_B = _vector(A2, in_d), _vector(carry, in_d), _four(Bn, BLOCK_D)
        if WRITE_Y:
            next_C = _four(Bn + N * T, BLOCK_D)
        for n in range(0, tl.where(tile * T < length, N, 0)):
            rate, h, Bs = next_rate, next_h, _sixteen(next_B, Bn + n * T, BLOCK_D)
            after = tl.minimum(n + 1, N - 1)
            if WRITE_Y:
                Cs = _sixteen(next_C, Bn + (N + n) * T, BLOCK_D)
                next_C = _four(Bn + (N + after) * T, BLOCK_D)
            next_rate, next_h = _vector(A2 + after * channels, in_d), _vector(carry + after * channels, in_d)
            next_B = _four(Bn + after * T, BLOCK_D)
            new_outs = ()
            if ADJOINT:
                for j in tl.static_range(16):
                    h = tl.exp2(dts[15 - j] * rate) * (drives[15 - j] * Bs[15 - j] + h)
            else:
                for j in tl.static_range(16):
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * Bs[j]
                    if WRITE_Y:
                        new_outs += (outs[j] + h * Cs[j],)
            if WRITE_Y:
                outs = new_outs
            tl.store(carry + n * channels, h, mask=in_d)
        if WRITE_Y:
            _store_frames((y,), (outs,), tile, length, reverse, L, in_d, channels)
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
    su_g, su_b, sd_g, sd_b, sy_g, sy_b, L, batch, n_tiles, tiles_each, n_segments, items, blocks, reverse_bits, copy_stride,
    channels: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ATOMIC: tl.constexpr, EXACT: tl.constexpr,
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
    own_sum = lane // 16 * N * T + _lane_frame()
    columns = ()
    for r in tl.static_range(8):
        columns += (tl.where(lane // 4 == r, 1.0, 0.0),)
    states += tl.program_id(0).to(tl.int64) * tiles_each * N * BLOCK_D + lane
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block, rest = item % blocks, item // blocks
        gb, segment = rest // n_segments, rest % n_segments
        g, b = gb // batch, gb % batch
        d = block * BLOCK_D + lane
        in_d = _channels_there(d, channels, BLOCK_D)
        length = _length_of(lengths, b, L, HAS_LENGTHS)
        reverse = (reverse_bits >> g) & 1
        u_here = u + g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
        delta_here = delta + g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
        gy_here = gy + g.to(tl.int64) * sy_g + b.to(tl.int64) * sy_b + d
        gu_here = gu + gb.to(tl.int64) * L * channels + d
        gdelta_here = gdelta + gb.to(tl.int64) * L * channels + d
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
            Bn = BC + (gb * n_tiles + begin + k).to(tl.int64) * (2 * N * T)
            fetched = _fetch(Bn, N * T)
            raw, vs = _frames((delta_here, u_here), begin + k, length, reverse, in_d, channels)
            dts, vs = _dts(raw, shift + fetched), _wide(vs)
            drives = ()
            for j in tl.static_range(16):
                drives += (dts[j] * vs[j],)
            next_rate, next_h, next_B = _vector(rates, in_d), _vector(carry_here, in_d), _four(Bn, BLOCK_D)
            for n in range(0, N):
                rate, h, Bs = next_rate, next_h, _sixteen(next_B, Bn + n * T, BLOCK_D)
                after = tl.minimum(n + 1, N - 1)
                next_rate, next_h = _vector(rates + after * channels, in_d), _vector(carry_here + after * channels, in_d)
                next_B = _four(Bn + after * T, BLOCK_D)
                tl.store(states + (k * N + n) * BLOCK_D, h)
                for j in tl.static_range(16):
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * Bs[j]
                tl.store(carry_here + n * channels, h, mask=in_d)
        gD_sum = tl.zeros([BLOCK_D], tl.float32)
        gbias_sum = tl.zeros([BLOCK_D], tl.float32)
        for k in range(0, count):
            tile = begin + count - 1 - k
            place = (gb * n_tiles + tile).to(tl.int64) * (2 * N * T)
            Bn = BC + place
            fetched = _fetch(Bn, 2 * N * T)
            raw, vs, outs = _frames((delta_here, u_here, gy_here), tile, length, reverse, in_d, channels)
            dts, outs = _dts(raw, shift + fetched), _wide(outs)
            drives, zeros = (), ()
            for j in tl.static_range(16):
                drives += (dts[j] * vs[j].to(tl.float32),)
                zeros += (tl.zeros([BLOCK_D], tl.float32),)
            by_decay, by_drive = zeros, zeros  # sums over n: g_t a_t h_{t-1} A (in base 2) and g_t B_t
            sum_place = gBC + block.to(tl.int64) * copy_stride + place + own_sum
            saved = states + (count - 1 - k) * N * BLOCK_D
            next_rate, next_h, next_B = _vector(rates, in_d), tl.load(saved), _four(Bn, BLOCK_D)
            next_p, next_gA = _vector(adjoint_here, in_d), _vector(sums_here, in_d)
            for n in range(0, tl.where(count - 1 - k < used, N, 0)):
                rate, h, p, gA = next_rate, next_h, next_p, next_gA
                Bs = _sixteen(next_B, Bn + n * T, BLOCK_D)
                after = tl.minimum(n + 1, N - 1)
                Cs = _sixteen(_four(Bn + (N + n) * T, BLOCK_D), Bn + (N + n) * T, BLOCK_D)
                next_rate, next_h = _vector(rates + after * channels, in_d), tl.load(saved + after * BLOCK_D)
                next_p, next_gA = _vector(adjoint_here + after * channels, in_d), _vector(sums_here + after * channels, in_d)
                next_B = _four(Bn + after * T, BLOCK_D)
                none = tl.zeros([BLOCK_D], tl.float32)
                of_B, of_C = (none, none, none, none), (none, none, none, none)
                decays, decayed, into = (), (), ()
                for j in tl.static_range(16):
                    a = tl.exp2(dts[j] * rate)
                    decays += (a,)
                    decayed += (a * h,)
                    h = decayed[j] + drives[j] * Bs[j]
                    into += (h * outs[j],)
                    if j % 4 == 3:
                        of_C = _add_over_channels(of_C, columns, into[0], into[1], into[2], into[3], j // 4, EXACT)
                        into = ()
                new_by_decay, new_by_drive, into = (), (), ()
                for r in tl.static_range(16):  # frame 15 - r, written out because it must stay a constant
                    grad = p + outs[15 - r] * Cs[15 - r]
                    through = grad * decayed[15 - r]
                    new_by_decay = (by_decay[15 - r] + through * rate,) + new_by_decay
                    new_by_drive = (by_drive[15 - r] + grad * Bs[15 - r],) + new_by_drive
                    gA += through * dts[15 - r]
                    into = (grad * drives[15 - r],) + into
                    p = decays[15 - r] * grad
                    if r % 4 == 3:
                        of_B = _add_over_channels(of_B, columns, into[0], into[1], into[2], into[3], (15 - r) // 4, EXACT)
                        into = ()
                by_decay, by_drive = new_by_decay, new_by_drive
                tl.store(adjoint_here + n * channels, p, mask=in_d)
                tl.store(sums_here + n * channels, gA, mask=in_d)
                if ATOMIC:
                    tl.atomic_add(sum_place + n * T, _sums_over_channels(of_B, of_C), sem="relaxed")
                else:
                    tl.store(sum_place + n * T, _sums_over_channels(of_B, of_C))
            # Read again: sixteen registers fewer in the loop above.
            _, vs = _frames((delta_here, u_here), tile, length, reverse, in_d, channels)
            vs = _wide(vs)
            gus, gdeltas = (), ()
            for j in tl.static_range(16):
                graw = (LN_2 * by_decay[j] + vs[j] * by_drive[j]) * _softplus_slope(dts[j])
                gD_sum += outs[j] * vs[j]
                gbias_sum += graw
                gdeltas += (graw,)
                gus += (dts[j] * by_drive[j] + skip * outs[j] if HAS_D else dts[j] * by_drive[j],)
            _store_frames((gu_here, gdelta_here), (gus, gdeltas), tile, length, reverse, L, in_d, channels)
        tl.store(sums_here + N * channels, gD_sum, mask=in_d)
        tl.store(sums_here + (N + 1) * channels, gbias_sum, mask=in_d)
