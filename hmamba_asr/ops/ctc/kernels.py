"""CTC prefix scores by Triton kernels: a search step's work in four launches.

A program takes one prefix, and its frames in blocks. A first-order recurrence in log space, r_t =
log(e^r_{t-1} + e^b_t) + x_t, is a scan of pairs (x_t, b_t + x_t). Sums of log-probabilities are float64.
Workstation cards are slow at float64, so exponentials and logarithms are float32: differences are taken
before, in float64, and one addition is off by some 2e-7 at most.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmamba_asr.ops.ctc.reference import IMPOSSIBLE as IMPOSSIBLE_LOG_PROB
from hmamba_asr.ops.ctc.reference import MIN_PRODUCT, Posteriors
from hmamba_asr.ops.launch import kernel, launch
from hmamba_asr.ops.register import KernelOp

BLOCK_T, BLOCK_V = 512, 1024  # frames and labels at a time
WARPS = 4
IMPOSSIBLE = tl.constexpr(IMPOSSIBLE_LOG_PROB)
LEAST = tl.constexpr(MIN_PRODUCT)


@triton.jit
def _impossible():
    """Return IMPOSSIBLE in float64. A bare number would be rounded to float32 first."""
    return tl.full([], IMPOSSIBLE, tl.float64)


@triton.jit
def _log_add(a, b):
    """Return log(e^a + e^b) of float64 values."""
    high = tl.maximum(a, b)
    gap = tl.maximum(tl.minimum(a, b) - high, -100.0).to(tl.float32)
    return high + tl.log(1.0 + tl.exp(gap)).to(tl.float64)


@triton.jit
def _then(x1, y1, x2, y2):
    """Compose two maps r -> log(e^(r + x) + e^y), of which (x1, y1) comes first."""
    return x1 + x2, _log_add(y1 + x2, y2)


@triton.jit
def _log_sum(values, most, total):
    """Add ``values`` to a running log-sum-exp, kept as its largest term and the sum relative to that."""
    higher = tl.maximum(most, tl.max(values, 0))
    gained = tl.sum(tl.exp(tl.maximum(values - higher, -100.0).to(tl.float32)), 0)
    return higher, total * tl.exp(tl.maximum(most - higher, -100.0).to(tl.float32)) + gained


@triton.jit
def _bounds(last_frames, window, b, HAS_WINDOW: tl.constexpr):
    """Load the utterance's last frame, and the first and the last plus one at which a label may begin."""
    last_frame = tl.load(last_frames + b)
    first, end = last_frame * 0, last_frame + 1
    if HAS_WINDOW:
        first, end = tl.load(window + 2 * b), tl.minimum(tl.load(window + 2 * b + 1), end)
    return last_frame, first, end


@triton.jit
def _before(in_label, in_blank, row, t, T, newest, only_blank, first, end):
    """Load what precedes a label that begins at frames t: the prefix, one frame earlier. With ``only_blank``
    only paths that end in a blank count."""
    there = (t >= 1) & (t < T)
    at = row * T + t - 1
    blank = tl.load(in_blank + at, mask=there, other=_impossible())
    label = tl.load(in_label + at, mask=there & (only_blank == 0), other=_impossible())
    start = tl.where(newest >= 0, _impossible(), 0.0)  # in front of frame 0 there is the empty prefix
    value = tl.where(t == 0, start, tl.where(only_blank != 0, blank, _log_add(label, blank)))
    return tl.where((t >= first) & (t < end), value, _impossible())


@kernel
def begin_kernel(
    in_label,
    in_blank,
    score,
    newest,
    log_probs,
    last_frames,
    window,
    phi,
    values,
    K,
    T,
    V,
    blank,
    HAS_WINDOW: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write phi (B, K, T), what precedes a label at each frame, scaled to 1 at its largest.

    Write ``values`` (B, K, 3), each less the prefix' score: the log of that scale, the log psi of the last
    label once more, and the log psi of the end.
    """
    row = tl.program_id(0).to(tl.int64)
    b = row // K
    last_frame, first, end = _bounds(last_frames, window, b, HAS_WINDOW)
    own, last = tl.load(score + row), tl.load(newest + row)
    repeated = tl.where(last >= 0, last, blank)
    nowhere = 10.0 * _impossible()  # past the last frame
    largest, most, total = nowhere, nowhere, tl.full([], 0.0, tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        began = tl.where(t < T, _before(in_label, in_blank, row, t, T, last, 0, first, end), nowhere)
        largest = tl.maximum(largest, tl.max(began, 0))
        x = tl.load(log_probs + (b * T + t) * V + repeated, mask=t <= last_frame, other=0.0).to(tl.float64)
        again = _before(in_label, in_blank, row, t, T, last, 1, first, end) + x
        most, total = _log_sum(tl.where(t < T, again, nowhere), most, total)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        began = _before(in_label, in_blank, row, t, T, last, 0, first, end)
        tl.store(phi + row * T + t, tl.exp(tl.maximum(began - largest, -100.0).to(tl.float32)), mask=t < T)
    at_end = _log_add(tl.load(in_label + row * T + last_frame), tl.load(in_blank + row * T + last_frame))
    tl.store(values + 3 * row, largest - own)
    tl.store(values + 3 * row + 1, most + tl.log(total).to(tl.float64) - own)
    tl.store(values + 3 * row + 2, at_end - own)


@kernel
def scores_kernel(products, values, newest, V, eos, blank, BLOCK_V: tl.constexpr):
    """Turn phi times the labels' probabilities (B, K, V) into log psi(g c) - log psi(g), in place."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    scale, again, at_end = (
        tl.load(values + 3 * row),
        tl.load(values + 3 * row + 1),
        tl.load(values + 3 * row + 2),
    )
    x = tl.load(products + row * V + c, mask=c < V, other=1.0)
    x = tl.log(tl.maximum(x, LEAST)) + scale.to(tl.float32)
    x = tl.where(c == tl.load(newest + row), again.to(tl.float32), x)
    x = tl.where(c == eos, at_end.to(tl.float32), x)
    tl.store(products + row * V + c, tl.where(c == blank, IMPOSSIBLE, x), mask=c < V)


@kernel
def extend_kernel(
    in_label,
    in_blank,
    newest,
    log_probs,
    blanks,
    last_frames,
    window,
    parents,
    labels,
    out_label,
    out_blank,
    out_score,
    K,
    K_new,
    T,
    V,
    eos,
    HAS_WINDOW: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write the forward variables out_label and out_blank (B, K', T), and the score (B, K'), of the prefixes
    ``parents`` (B, K'), each followed by its label of ``labels`` (B, K').

    blanks (B, T) is the log-probability of a blank, 0 past the end.
    """
    new = tl.program_id(0).to(tl.int64)
    b = new // K_new
    last_frame, first, end = _bounds(last_frames, window, b, HAS_WINDOW)
    row, label = b * K + tl.load(parents + new), tl.load(labels + new)
    last = tl.load(newest + row)
    same = (label == last).to(tl.int32)
    nowhere = 10.0 * _impossible()  # past the last frame
    through_label, through_blank = _impossible(), _impossible()
    most, total = nowhere, tl.full([], 0.0, tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        there, newest_frame = t < T, t == start + BLOCK_T - 1
        began = _before(in_label, in_blank, row, t, T, last, same, first, end)
        x = tl.load(log_probs + (b * T + t) * V + label, mask=t <= last_frame, other=0.0).to(tl.float64)
        most, total = _log_sum(tl.where(there, began + x, nowhere), most, total)
        decay, into = tl.associative_scan((x, began + x), 0, _then)
        paths = _log_add(through_label + decay, into)
        through_label = tl.sum(tl.where(newest_frame, paths, 0.0), 0)
        tl.store(
            out_label + new * T + t, tl.where((t >= first) & (t < end), paths, _impossible()), mask=there
        )
        tl.debug_barrier()  # a thread now reads what another one has written
        before = tl.load(out_label + new * T + t - 1, mask=(t >= 1) & there, other=_impossible())
        x = tl.load(blanks + b * T + t, mask=there, other=0.0)
        decay, into = tl.associative_scan((x, before + x), 0, _then)
        paths = _log_add(through_blank + decay, into)
        through_blank = tl.sum(tl.where(newest_frame, paths, 0.0), 0)
        paths = tl.maximum(paths, _impossible())
        if HAS_WINDOW:
            paths = tl.where((t >= first) & (t < end), paths, _impossible())
        tl.store(out_blank + new * T + t, paths, mask=there)
    psi = most + tl.log(total).to(tl.float64)
    at_end = _log_add(tl.load(in_label + row * T + last_frame), tl.load(in_blank + row * T + last_frame))
    tl.store(out_score + new, tl.where(label == eos, at_end, psi))


def _next_scores(
    in_label: Tensor,
    in_blank: Tensor,
    score: Tensor,
    last: Tensor,
    log_probs: Tensor,
    probs: Tensor,
    last_frame: Tensor,
    window: Tensor | None,
    blank: int,
    eos: int,
) -> Tensor:
    batch, prefixes, frames = in_label.shape
    vocab = probs.shape[-1]
    phi = torch.empty(batch, prefixes, frames, dtype=torch.float32, device=in_label.device)
    values = torch.empty(batch, prefixes, 3, dtype=torch.float64, device=in_label.device)
    in_label, in_blank, score, last = (x.contiguous() for x in (in_label, in_blank, score, last))
    given = last if window is None else window.contiguous()
    launch(
        begin_kernel,
        (batch * prefixes, 1, 1),
        (in_label, in_blank, score, last, log_probs, last_frame, given, phi, values),
        (prefixes, frames, vocab, blank),
        (window is not None, BLOCK_T),
        num_warps=WARPS,
    )
    scores = phi @ probs
    launch(
        scores_kernel,
        (batch * prefixes, -(-vocab // BLOCK_V), 1),
        (scores, values, last),
        (vocab, eos, blank),
        (BLOCK_V,),
        num_warps=WARPS,
    )
    return scores


def _extend(
    in_label: Tensor,
    in_blank: Tensor,
    last: Tensor,
    parents: Tensor,
    labels: Tensor,
    log_probs: Tensor,
    blanks: Tensor,
    last_frame: Tensor,
    window: Tensor | None,
    eos: int,
) -> tuple[Tensor, Tensor, Tensor]:
    prefixes, frames = in_label.shape[1:]
    out_label, out_blank = (in_label.new_empty(*labels.shape, frames) for _ in range(2))
    score = in_label.new_empty(labels.shape)
    given = (x.contiguous() for x in (in_label, in_blank, last))
    parents, labels = parents.contiguous(), labels.contiguous()
    bounds = parents if window is None else window.contiguous()
    launch(
        extend_kernel,
        (labels.numel(), 1, 1),
        (
            *given,
            log_probs,
            blanks,
            last_frame,
            bounds,
            parents,
            labels,
            out_label,
            out_blank,
            score,
        ),
        (prefixes, labels.shape[1], frames, log_probs.shape[-1], eos),
        (window is not None, BLOCK_T),
        num_warps=WARPS,
    )
    return out_label, out_blank, score


_next_scores_op = KernelOp("ctc_next_scores", _next_scores)
_extend_op = KernelOp("ctc_extend", _extend, results=3)


def next_scores(
    in_label: Tensor,
    in_blank: Tensor,
    score: Tensor,
    last: Tensor,
    posteriors: Posteriors,
    *,
    window: Tensor | None,
    eos: int,
) -> Tensor:
    """Compute :func:`hmamba_asr.ops.ctc.next_scores`."""
    p = posteriors
    return _next_scores_op(
        in_label, in_blank, score, last, p.log_probs, p.probs, p.last_frame, window, p.blank, eos
    )


def extend(
    in_label: Tensor,
    in_blank: Tensor,
    last: Tensor,
    parents: Tensor,
    labels: Tensor,
    posteriors: Posteriors,
    *,
    window: Tensor | None,
    eos: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`hmamba_asr.ops.ctc.extend`."""
    p = posteriors
    return _extend_op(
        in_label, in_blank, last, parents, labels, p.log_probs, p.blanks, p.last_frame, window, eos
    )
