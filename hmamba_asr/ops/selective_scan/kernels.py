"""Triton kernels of the selective scan. :mod:`.fused` allocates and launches them.

Work is cut three ways: G x batch rows, blocks of BLOCK_D channels, and *segments* of time. A program is one
warp, a channel to a thread. It walks through its segment in tiles of 16 frames, and through a tile once for
every state dimension n: the frames are unrolled, so the recurrence is 16 fused multiply-adds in registers,
with no exchange between threads and no layout left to the compiler. Between tiles the state rests in memory
(one load and one store for every 16 frames, from the cache).

Time is *scan time*: t = 0 is the first frame the recurrence meets, which for a reverse direction is the
utterance's last valid one. Frames past the end have dt = 0 and no input, which leaves the state as it is.

Cost for every (frame, channel, n) and direction: the forward pass computes one exp2. The backward pass
computes two, one for the states before each tile and one for the pass itself. Where time is cut into
segments, the forward pass needs up to one more and the backward pass up to two more. On compute capability
9.0 the inner loops have 7 instructions for each of them forwards, 6 and 20 backwards; a processor issues
eight in the time of one exp2. Measured there (NVIDIA H100, 64 x 400 x 288), both passes issue in 40 to 50% of
their cycles, and the whole mixer reaches 8% of the measured exp2 throughput. So the latency of few warps is
the limit, not a unit's throughput.
"""

# Tuples grow in Triton's language, which Python's types do not allow.
# mypy: disable-error-code="assignment, misc, var-annotated"

import triton.language as tl

from hmamba_asr.ops.launch import kernel
from hmamba_asr.ops.selective_scan.tiles import (
    LN_2,
    T,
    add_over_channels,
    channels_there,
    fetch,
    lane_frame,
    length_of,
    load_four,
    load_frames,
    load_vector,
    row_of,
    softplus_slope,
    step_sizes,
    store_frames,
    sums_over_channels,
    widen,
)


@kernel
def tile_kernel(
    B,
    C,
    tiles,
    lengths,
    sb_g,
    sb_b,
    sb_l,
    sc_g,
    sc_b,
    sc_l,
    L,
    batch,
    n_tiles,
    reverse_bits,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    FROM_TILES: tl.constexpr,
):
    """Copy B and C (G, batch, L, N) to tiles (G, batch, tile, 2, N, 16), float32 in scan time, zero past the
    end; with FROM_TILES copy them back.

    The scan then reads the 16 values of one n, the same for all threads, from neighbouring addresses.
    """
    tile, gb, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    g, b = gb // batch, gb % batch
    length = length_of(lengths, b, L, HAS_LENGTHS)
    n = tl.arange(0, N_PAD)[None, :]
    j = tl.arange(0, 16)[:, None]
    t = tile * T + j
    row = row_of(t, length, (reverse_bits >> g) & 1)
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
    u,
    delta,
    bias,
    A2,
    BC,
    D,
    y,
    carry,
    spans,
    lengths,
    su_g,
    su_b,
    sd_g,
    sd_b,
    L,
    batch,
    n_tiles,
    tiles_each,
    n_segments,
    first_segment,
    reverse_bits,
    channels: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ADJOINT: tl.constexpr,
    WRITE_Y: tl.constexpr,
    WRITE_SPANS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """Run the recurrence from the state in ``carry`` (G, batch, segment, N, D), and leave the segment's last
    state there. With WRITE_Y, y (G, batch, L, D) may be the storage of u.

    With ADJOINT the recurrence of the gradient runs instead, from the segment's end, and u is the gradient of
    y. It is p_t = a_t (C_t gy_t + p_{t+1}), the gradient of the state before t.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    gb = tl.program_id(1)
    g, b = gb // batch, gb % batch
    segment = tl.program_id(2) + first_segment
    length = length_of(lengths, b, L, HAS_LENGTHS)
    reverse = (reverse_bits >> g) & 1
    in_d = channels_there(d, channels, BLOCK_D)
    u += g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
    delta += g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
    y += gb.to(tl.int64) * L * channels + d
    slot = (gb * n_segments + segment).to(tl.int64)
    carry += slot * N * channels + d
    A2 += g * N * channels + d
    shift = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        shift = load_vector(bias + g * channels + d, in_d)
    if HAS_D:
        skip = load_vector(D + g * channels + d, in_d)
    span = tl.zeros([BLOCK_D], tl.float32)
    begin = segment * tiles_each
    count = tl.minimum(tiles_each, n_tiles - begin)
    for k in range(0, count):
        tile = begin + (count - 1 - k if ADJOINT else k)
        Bn = (
            BC + (gb * n_tiles + tile).to(tl.int64) * (2 * N * T) + (N * T if ADJOINT else 0)
        )  # C stands in for B
        fetched = fetch(Bn, 2 * N * T if WRITE_Y else N * T)
        raw, vs = load_frames((delta, u), tile, length, reverse, in_d, channels)
        dts, vs = step_sizes(raw, shift + fetched), widen(vs)
        drives, outs = (), ()
        for j in tl.static_range(16):
            drives += (vs[j] if ADJOINT else dts[j] * vs[j],)
            outs += (skip * vs[j] if HAS_D else tl.zeros([BLOCK_D], tl.float32),)
            if WRITE_SPANS:
                span += dts[j]
        # What a round needs first is loaded one round ahead: a program is a single warp, and few of them
        # share a processor.
        next_rate, next_h, next_B = (
            load_vector(A2, in_d),
            load_vector(carry, in_d),
            load_four(Bn + (12 if ADJOINT else 0), BLOCK_D),
        )
        if WRITE_Y:
            next_C = load_four(Bn + N * T, BLOCK_D)
        for n in range(0, tl.where(tile * T < length, N, 0)):
            rate, h, four_B = next_rate, next_h, next_B
            after = tl.minimum(n + 1, N - 1)
            next_rate, next_h = (
                load_vector(A2 + after * channels, in_d),
                load_vector(carry + after * channels, in_d),
            )
            next_B = load_four(Bn + after * T + (12 if ADJOINT else 0), BLOCK_D)
            if WRITE_Y:
                four_C = next_C
                next_C = load_four(Bn + (N + after) * T, BLOCK_D)
            new_outs = ()
            for j in tl.static_range(16):
                if j % 4 == 0 and j > 0:
                    four_B = load_four(Bn + n * T + (12 - j if ADJOINT else j), BLOCK_D)
                    if WRITE_Y:
                        four_C = load_four(Bn + (N + n) * T + j, BLOCK_D)
                if ADJOINT:
                    h = tl.exp2(dts[15 - j] * rate) * (drives[15 - j] * four_B[(15 - j) % 4] + h)
                else:
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * four_B[j % 4]
                if WRITE_Y:
                    new_outs += (outs[j] + h * four_C[j % 4],)
            if WRITE_Y:
                outs = new_outs
            tl.store(carry + n * channels, h, mask=in_d)
        if WRITE_Y:
            store_frames((y,), (outs,), tile, length, reverse, L, in_d, channels)
    if WRITE_SPANS:
        tl.store(spans + slot * channels + d, span, mask=in_d)


@kernel
def pass_kernel(
    carry,
    spans,
    A2,
    initial,
    batch,
    channels,
    n_segments,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    FROM_END: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
):
    """Turn each segment's last state, reached from zero, into the state that the segment starts from, in
    place."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gb, n = tl.program_id(1), tl.program_id(2)
    in_d = d < channels
    rate = load_vector(A2 + (gb // batch * N + n) * channels + d, in_d)
    state = (
        load_vector(initial + (gb * N + n) * channels + d, in_d)
        if HAS_INITIAL
        else tl.zeros([BLOCK], tl.float32)
    )
    for first in range(0, n_segments, 8):
        places, owns, decays = (), (), ()
        for k in tl.static_range(8):  # eight at a time, so that the loads do not wait for each other
            at = tl.minimum(first + k, n_segments - 1)
            slot = (gb * n_segments + (n_segments - 1 - at if FROM_END else at)).to(tl.int64)
            places += (carry + (slot * N + n) * channels + d,)
            owns += (load_vector(places[k], in_d),)
            decays += (tl.exp2(rate * load_vector(spans + slot * channels + d, in_d)),)
        for k in tl.static_range(8):
            tl.store(places[k], state, mask=in_d & (first + k < n_segments))
            state = decays[k] * state + owns[k]


@kernel
def backward_kernel(
    u,
    delta,
    bias,
    A2,
    BC,
    D,
    gy,
    carry,
    adjoint,
    states,
    lengths,
    gu,
    gdelta,
    gBC,
    vectors,
    su_g,
    su_b,
    sd_g,
    sd_b,
    sy_g,
    sy_b,
    L,
    batch,
    n_tiles,
    tiles_each,
    n_segments,
    items,
    blocks,
    reverse_bits,
    copy_stride,
    channels: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    ATOMIC: tl.constexpr,
    EXACT: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """Write the gradients.

    An item is a block of channels, a batch row and a segment; the programs share ``items`` of them. For each,
    a program runs the recurrence from ``carry``, keeps the state before each tile in its own part of
    ``states`` (programs, tiles, N, BLOCK_D), and returns through the tiles with the adjoint in ``adjoint``.
    ``carry`` then holds the segment's sums for A.

    gu and gdelta (G, batch, L, D) are contiguous and may be the storage of u and delta. gBC (G, batch, tile,
    2, N, 16) is added to atomically (ATOMIC), or has one copy for every block of channels. vectors (G,
    batch, segment, 2, D) is for D and bias.

    With INLINE_PTX the sums over channels in gBC are products with a matrix of ones, which the tensor cores
    compute beside everything else: in tf32, or for float32 inputs (EXACT) in two products.
    """
    lane = tl.arange(0, BLOCK_D)
    own_sum = lane // 16 * N * T + lane_frame()
    columns = ()
    for r in tl.static_range(8):
        columns += (tl.where(lane // 4 == r, 1.0, 0.0),)
    states += tl.program_id(0).to(tl.int64) * tiles_each * N * BLOCK_D + lane
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block, rest = item % blocks, item // blocks
        gb, segment = rest // n_segments, rest % n_segments
        g, b = gb // batch, gb % batch
        d = block * BLOCK_D + lane
        in_d = channels_there(d, channels, BLOCK_D)
        length = length_of(lengths, b, L, HAS_LENGTHS)
        reverse = (reverse_bits >> g) & 1
        u_here = u + g.to(tl.int64) * su_g + b.to(tl.int64) * su_b + d
        delta_here = delta + g.to(tl.int64) * sd_g + b.to(tl.int64) * sd_b + d
        gy_here = gy + g.to(tl.int64) * sy_g + b.to(tl.int64) * sy_b + d
        gu_here = gu + gb.to(tl.int64) * L * channels + d
        gdelta_here = gdelta + gb.to(tl.int64) * L * channels + d
        carry_here = carry + rest.to(tl.int64) * N * channels + d
        adjoint_here = adjoint + rest.to(tl.int64) * N * channels + d
        vectors_here = vectors + rest.to(tl.int64) * 2 * channels + d
        rates = A2 + g * N * channels + d
        shift = tl.zeros([BLOCK_D], tl.float32)
        if HAS_BIAS:
            shift = load_vector(bias + g * channels + d, in_d)
        if HAS_D:
            skip = load_vector(D + g * channels + d, in_d)
        begin = segment * tiles_each
        # Tiles past the utterance's end only have zeros to write.
        count = tl.minimum(tiles_each, n_tiles - begin)
        used = tl.maximum(tl.minimum(count, tl.cdiv(length, T) - begin), 0)
        for k in range(0, used - 1):
            Bn = BC + (gb * n_tiles + begin + k).to(tl.int64) * (2 * N * T)
            fetched = fetch(Bn, N * T)
            raw, vs = load_frames((delta_here, u_here), begin + k, length, reverse, in_d, channels)
            dts, vs = step_sizes(raw, shift + fetched), widen(vs)
            drives = ()
            for j in tl.static_range(16):
                drives += (dts[j] * vs[j],)
            next_rate, next_h, next_B = (
                load_vector(rates, in_d),
                load_vector(carry_here, in_d),
                load_four(Bn, BLOCK_D),
            )
            for n in range(0, N):
                rate, h, four_B = next_rate, next_h, next_B
                after = tl.minimum(n + 1, N - 1)
                next_rate, next_h = (
                    load_vector(rates + after * channels, in_d),
                    load_vector(carry_here + after * channels, in_d),
                )
                next_B = load_four(Bn + after * T, BLOCK_D)
                tl.store(states + (k * N + n) * BLOCK_D, h.to(states.dtype.element_ty))
                for j in tl.static_range(16):
                    if j % 4 == 0 and j > 0:
                        four_B = load_four(Bn + n * T + j, BLOCK_D)
                    h = tl.exp2(dts[j] * rate) * h + drives[j] * four_B[j % 4]
                tl.store(carry_here + n * channels, h, mask=in_d)
        last = states + tl.maximum(used - 1, 0) * N * BLOCK_D
        for n in range(0, N):
            h = load_vector(carry_here + n * channels, in_d)
            tl.store(last + n * BLOCK_D, h.to(states.dtype.element_ty))
            tl.store(carry_here + n * channels, tl.zeros([BLOCK_D], tl.float32), mask=in_d)
        gD_sum = tl.zeros([BLOCK_D], tl.float32)
        gbias_sum = tl.zeros([BLOCK_D], tl.float32)
        for k in range(0, count):
            tile = begin + count - 1 - k
            place = (gb * n_tiles + tile).to(tl.int64) * (2 * N * T)
            Bn = BC + place
            fetched = fetch(Bn, 2 * N * T)
            raw, vs, outs = load_frames((delta_here, u_here, gy_here), tile, length, reverse, in_d, channels)
            dts, outs = step_sizes(raw, shift + fetched), widen(outs)
            drives, zeros = (), ()
            for j in tl.static_range(16):
                drives += (dts[j] * vs[j].to(tl.float32),)
                zeros += (tl.zeros([BLOCK_D], tl.float32),)
            by_decay, by_drive = zeros, zeros  # sums over n: g_t a_t h_{t-1} A (in base 2) and g_t B_t
            sum_place = gBC + block.to(tl.int64) * copy_stride + place + own_sum
            saved = states + (count - 1 - k) * N * BLOCK_D
            next_rate, next_h, next_B = load_vector(rates, in_d), tl.load(saved), load_four(Bn, BLOCK_D)
            next_p, next_gA = load_vector(adjoint_here, in_d), load_vector(carry_here, in_d)
            for n in range(0, tl.where(count - 1 - k < used, N, 0)):
                rate, h, p, gA, four_B = next_rate, next_h.to(tl.float32), next_p, next_gA, next_B
                after = tl.minimum(n + 1, N - 1)
                next_rate, next_h = (
                    load_vector(rates + after * channels, in_d),
                    tl.load(saved + after * BLOCK_D),
                )
                next_p, next_gA = (
                    load_vector(adjoint_here + after * channels, in_d),
                    load_vector(carry_here + after * channels, in_d),
                )
                next_B = load_four(Bn + after * T, BLOCK_D)
                none = tl.zeros([BLOCK_D], tl.float32)
                of_B, of_C = (none, none, none, none), (none, none, none, none)
                decays, decayed, into = (), (), ()
                for j in tl.static_range(16):
                    if j % 4 == 0 and j > 0:
                        four_B = load_four(Bn + n * T + j, BLOCK_D)
                    a = tl.exp2(dts[j] * rate)
                    decays += (a,)
                    decayed += (a * h,)
                    h = decayed[j] + drives[j] * four_B[j % 4]
                    into += (h * outs[j],)
                    if j % 4 == 3:
                        of_C = add_over_channels(
                            of_C, columns, into[0], into[1], into[2], into[3], j // 4, EXACT, INLINE_PTX
                        )
                        into = ()
                # The same place, but not to the compiler: loaded again, the values of B take no registers up
                # to here.
                again = Bn + n * T + (reverse_bits >> 24)
                new_by_decay, new_by_drive, into = (), (), ()
                for r in tl.static_range(16):  # frame 15 - r, written out because it must stay a constant
                    if r % 4 == 0:
                        four_B, four_C = (
                            load_four(again + (12 - r), BLOCK_D),
                            load_four(again + (N * T + 12 - r), BLOCK_D),
                        )
                    grad = p + outs[15 - r] * four_C[(15 - r) % 4]
                    through = grad * decayed[15 - r]
                    new_by_decay = (by_decay[15 - r] + through * rate,) + new_by_decay
                    new_by_drive = (by_drive[15 - r] + grad * four_B[(15 - r) % 4],) + new_by_drive
                    gA += through * dts[15 - r]
                    into = (grad * drives[15 - r],) + into
                    p = decays[15 - r] * grad
                    if r % 4 == 3:
                        of_B = add_over_channels(
                            of_B,
                            columns,
                            into[0],
                            into[1],
                            into[2],
                            into[3],
                            (15 - r) // 4,
                            EXACT,
                            INLINE_PTX,
                        )
                        into = ()
                by_decay, by_drive = new_by_decay, new_by_drive
                tl.store(adjoint_here + n * channels, p, mask=in_d)
                tl.store(carry_here + n * channels, gA, mask=in_d)
                if ATOMIC:
                    tl.atomic_add(
                        sum_place + n * T, sums_over_channels(of_B, of_C, INLINE_PTX), sem="relaxed"
                    )
                else:
                    tl.store(sum_place + n * T, sums_over_channels(of_B, of_C, INLINE_PTX))
            # Read again: sixteen registers fewer in the loop above.
            _, vs = load_frames((delta_here, u_here), tile, length, reverse, in_d, channels)
            vs = widen(vs)
            gus, gdeltas = (), ()
            for j in tl.static_range(16):
                graw = (LN_2 * by_decay[j] + vs[j] * by_drive[j]) * softplus_slope(dts[j])
                gD_sum += outs[j] * vs[j]
                gbias_sum += graw
                gdeltas += (graw,)
                gus += (dts[j] * by_drive[j] + skip * outs[j] if HAS_D else dts[j] * by_drive[j],)
            store_frames((gu_here, gdelta_here), (gus, gdeltas), tile, length, reverse, L, in_d, channels)
        tl.store(vectors_here, gD_sum, mask=in_d)
        tl.store(vectors_here + channels, gbias_sum, mask=in_d)
