"""Parts of the selective scan's kernels: softplus, moving tiles of frames, and sums over channels.

A program is one warp with one channel per thread, so a vector here is one value in each of its 32 threads.

The sums over channels have two forms. With INLINE_PTX they are tensor core products and exchanges between
threads, written in PTX assembly. Without, they are plain Triton, which also runs in Triton's interpreter. On
an H200 at 64 x 400, 16 x 1600 and 1 x 15000 frames, the mixer's forward and backward pass took 1.33, 1.24 and
1.21 times as long in plain Triton, and the scan's alone 1.58, 1.39 and 1.34 times (bfloat16;
scripts/benchmarks/scan.py --device cuda --inline_ptx both).
"""

# Tuples grow in Triton's language, which Python's types do not allow.
# mypy: disable-error-code="assignment, misc, var-annotated"

import triton
import triton.language as tl

T = tl.constexpr(16)  # frames of a tile, and the smallest side of a tensor core product
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)) with a relative error of 2e-7, also where it is small.

    It is max(x, 0) + log1p(exp(-|x|)). The logarithm is a polynomial, fitted to log1p(t) / t on [0, 1] for
    the least relative error.
    """
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
def softplus_slope(dt):
    """Return the derivative of softplus where its value is dt: 1 - exp(-dt), by its series where that would
    cancel."""
    series = dt * (1.0 - dt * (0.5 - dt * (0.16666667 - dt * 0.041666668)))
    return tl.where(dt < 0.0625, series, 1.0 - tl.exp2(-LOG2_E * dt))


@triton.jit
def row_of(t, length, reverse):
    """Return the row in memory of scan time t; frames past the end keep their place."""
    return tl.where((reverse != 0) & (t < length), length - 1 - t, t).to(tl.int64)


@triton.jit
def length_of(lengths, b, L, HAS_LENGTHS: tl.constexpr):
    if HAS_LENGTHS:
        return tl.minimum(tl.load(lengths + b).to(tl.int32), L)
    else:
        return L


@triton.jit
def load_vector(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def channels_there(d, channels: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return which of these channels exist; where all do, the compiler drops the masks."""
    return tl.full(d.shape, True, tl.int1) if channels % BLOCK_D == 0 else d < channels


@triton.jit
def load_frames(inputs, tile, length, reverse, in_d, channels: tl.constexpr):
    """Load a tile's 16 frames of each of ``inputs`` (pointers, the first to delta), in scan time.

    Past the end of the utterance they are zero, or for delta what softplus turns into zero. They are read in
    the order of memory, at constant distances, and reversed in registers. Most tiles are full and need no
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
def widen(x):
    out = ()
    for j in tl.static_range(16):
        out += (x[j].to(tl.float32),)
    return out


@triton.jit
def load_four(pointer, BLOCK_D: tl.constexpr):
    """Load four neighbouring values, each for all channels (BLOCK_D,), in one load of 16 bytes a thread."""
    at = pointer + tl.zeros([BLOCK_D, 1], tl.int32) + tl.arange(0, 4)[None, :]
    x = tl.load(tl.max_contiguous(tl.multiple_of(at, (1, 16)), (1, 4)))
    even, odd = tl.split(tl.reshape(x, [BLOCK_D, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def fetch(pointer, SIZE: tl.constexpr):
    """Bring SIZE float32 values into the cache, and return zeros. One value of each 32 bytes is read; all of
    them, NaN too, make the zeros, so that the compiler keeps the loads."""
    zero = tl.zeros([32], tl.float32)
    for start in tl.static_range(0, SIZE, 256):
        at = start + tl.arange(0, 32) * 8
        zero += tl.minimum(tl.abs(tl.load(pointer + at, mask=at < SIZE, other=0.0)), 0.0)
    return zero


@triton.jit
def store_frames(outputs, values, tile, length, reverse, L, in_d, channels: tl.constexpr):
    """Store a tile's 16 frames of each output, and zeros past the utterance's end, where frames keep their
    place in either direction."""
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
def step_sizes(delta, shift):
    """Return dt = softplus(delta + bias) of a tile's frames."""
    out = ()
    for j in tl.static_range(16):
        out += (_softplus(delta[j].to(tl.float32) + shift),)
    return out


@triton.jit
def lane_frame():
    """Return the frame whose sum :func:`sums_over_channels` leaves in each thread. The lower sixteen threads
    have those of B, the upper sixteen those of C."""
    lane = tl.arange(0, 32)
    return lane % 4 * 4 + lane // 4 % 2 * 2 + lane // 8 % 2


@triton.jit
def add_over_channels(
    sums, columns, x0, x1, x2, x3, four: tl.constexpr, EXACT: tl.constexpr, INLINE_PTX: tl.constexpr
):
    """Add frames 4 ``four`` to 4 ``four`` + 3, with a channel to a thread, to ``sums``.

    With INLINE_PTX the tensor cores add where the values are, in a product of a 16 x 8 with an 8 x 8 matrix.
    The values of the four threads of a row are four columns of the first matrix for frames 0 and 2, and the
    other four columns for frames 1 and 3. The second matrix has ones in the right places (``columns``:
    whether lane // 4 is 0, 1, ... 7), so that the sums land in columns 2 ``four`` and 2 ``four`` + 1. The
    product is in tf32, which keeps more bits than 16-bit inputs have; with EXACT a second product adds what
    tf32 cuts off.
    """
    if not INLINE_PTX:
        frame, total = lane_frame() - 4 * four, sums[0]
        total += tl.where(frame == 0, tl.sum(x0, 0), 0.0) + tl.where(frame == 1, tl.sum(x1, 0), 0.0)
        total += tl.where(frame == 2, tl.sum(x2, 0), 0.0) + tl.where(frame == 3, tl.sum(x3, 0), 0.0)
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
    return tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _product(sums, columns, x0, x1, x2, x3, four: tl.constexpr):
    asm: tl.constexpr = (
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0, $1, $2, $3}, "
        "{$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    return tl.inline_asm_elementwise(
        asm,
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [x0, x2, x1, x3, columns[2 * four], columns[2 * four + 1], sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def sums_over_channels(of_B, of_C, INLINE_PTX: tl.constexpr):
    """Return one value a thread, that of the frame which :func:`lane_frame` names."""
    if not INLINE_PTX:
        return tl.where(tl.arange(0, 32) < 16, of_B[0], of_C[0])
    else:
        # A thread has columns 2 (lane % 4) and the next of rows lane // 4 and lane // 4 + 8. Each exchange
        # halves what it has.
        b0, b1 = _exchange(of_B[0], of_B[2], 4), _exchange(of_B[1], of_B[3], 4)
        c0, c1 = _exchange(of_C[0], of_C[2], 4), _exchange(of_C[1], of_C[3], 4)
        return _exchange(_exchange(b0, b1, 8), _exchange(c0, c1, 8), 16)


@triton.jit
def _exchange(low, high, bit: tl.constexpr):
    """Share the work between two threads whose numbers differ in ``bit``: the one without the bit sums
    ``low`` of both, the other one ``high``."""
    upper = (tl.arange(0, 32) & bit) != 0
    kept, given = tl.where(upper, high, low), tl.where(upper, low, high)
    lane = tl.full([32], bit, tl.int32)
    asm: tl.constexpr = "shfl.sync.bfly.b32 $0, $1, $2, 31, -1;"
    return kept + tl.inline_asm_elementwise(
        asm, "=r,r,r", [given, lane], dtype=tl.float32, is_pure=True, pack=1
    )
