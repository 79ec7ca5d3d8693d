"""Figures of the chunking stages by hand, joined over batches, and the collapse warning."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise

import pytest
import torch

from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.modules.chunkers import FixedStrideChunker
from hmamba_asr.training.chunk_statistics import (
    CollapseDetector,
    chunk_durations,
    chunk_records,
    named_figures,
    stage_figures,
    stage_sums,
)
from hmamba_asr.training.journal import merge_sums
from hmamba_asr.training.losses import RatioLoss

LENGTHS = torch.tensor([11, 1, 6])


def encoder(outer_stride=2, inner_stride=3):
    torch.manual_seed(0)

    def stack():
        return ConMambaEncoder(num_layers=1, d_model=8, d_ffn=16, kernel_size=3, dropout=0.0, d_state=2)

    inner = HierarchicalEncoder(
        outer=stack(),
        chunker=FixedStrideChunker(stride=inner_stride),
        inner=stack(),
        d_model=8,
        output="chunks",
    )
    return HierarchicalEncoder(
        outer=stack(),
        chunker=FixedStrideChunker(stride=outer_stride),
        inner=inner,
        d_model=8,
        output="chunks",
    ).eval()


def stages(lengths=LENGTHS):
    return encoder()(torch.randn(len(lengths), 11, 8), lengths).stages


def test_nested_stages_stand_at_their_times_in_a_picture():
    import plot_boundaries

    with torch.no_grad():
        outer, inner = plot_boundaries.stages_in_time(
            stages(torch.tensor([11])), lambda frames: 0.04 * frames
        )
    assert outer.times == pytest.approx([0.04 * frame for frame in range(11)])
    assert inner.times == pytest.approx(
        [0.08 * chunk for chunk in range(6)]
    )  # it is given the outer stage's chunks
    assert inner.times[inner.mask] == pytest.approx([0.0, 0.24]) and outer.mask.sum() == 6


def test_chunks_begin_half_a_frame_before_the_centre_of_their_first_frame():
    """Two stride-2 convolutions with symmetric padding: frame t is centred on feature frame 4 t, 10 ms
    each."""
    first, _, last = chunk_records(
        stages(), ["a", "b", "c"], centres=lambda frame: 4 * frame, hop_seconds=0.01
    )
    assert (first.id, first.frames, first.starts) == ("a", 11, ((0, 2, 4, 6, 8, 10), (0, 6)))
    assert first.boundaries() == pytest.approx([0.06, 0.14, 0.22, 0.30, 0.38]) and first.boundaries(
        1
    ) == pytest.approx([0.22])
    assert 1000 * first.durations(1) == pytest.approx([240, 200])
    assert (last.id, last.frames, last.starts[1]) == ("c", 6, (0,))
    assert chunk_records((), ["a"], centres=lambda frame: frame, hop_seconds=0.01) == []


def as_floats(sums):
    return {name: float(value) for name, value in sums.items()}


def test_chunks_share_out_the_utterance():
    """11 frames: a chunk every second one, and every sixth one in the nested stage; the last chunk ends with
    the utterance."""
    outer, inner = (chunk_durations(stage, LENGTHS) for stage in stages())
    assert outer.tolist() == [[2, 2, 2, 2, 2, 1], [1, 0, 0, 0, 0, 0], [2, 2, 2, 0, 0, 0]]
    assert inner.tolist() == [[6, 5], [1, 0], [6, 0]]


def test_figures_by_hand():
    outer, inner = stage_figures(as_floats(stage_sums(stages(), frame_ms=40.0)), 3)
    kept = torch.tensor([6 / 11, 1.0, 0.5])
    assert outer["kept"] == pytest.approx(kept.mean().item())
    assert outer["kept_std"] == pytest.approx(kept.std(correction=0).item(), abs=1e-6)
    assert outer["kept_min"] == 0.5 and outer["kept_max"] == 1.0
    assert outer["prob"] == pytest.approx(outer["kept"])  # a fixed stride is sure of its boundaries
    assert outer["chunk_ms"] == pytest.approx(40 * 18 / 10) and outer["chunk_ms_max"] == 80
    assert inner["kept"] == pytest.approx((2 / 6 + 1 + 1 / 3) / 3)
    assert inner["chunk_ms"] == pytest.approx(40 * 18 / 4) and inner["chunk_ms_max"] == 240
    assert "ratio_loss" not in outer and "floored" not in outer


def test_figures_do_not_depend_on_how_utterances_are_batched():
    together = as_floats(stage_sums(stages(), frame_ms=40.0))
    apart: Counter = Counter()
    for index in range(3):
        merge_sums(apart, as_floats(stage_sums(stages(LENGTHS[index : index + 1]), frame_ms=40.0)))
    assert named_figures(apart, 3) == pytest.approx(named_figures(together, 3))
    assert named_figures(together, 3, "valid_").keys() == {
        f"valid_{name}" for name in named_figures(together, 3)
    }
    assert stage_figures({}, 3) == [] and named_figures({}, 3) == {}


def test_the_routers_rate_leaves_first_frames_out():
    """10 frames of 19 after the first are chosen; an utterance of one frame says nothing."""
    sums = as_floats(stage_sums(stages(torch.tensor([11, 1])), frame_ms=40.0))
    assert sums["stage0_rate_min"] == sums["stage0_rate_max"] == pytest.approx(5 / 10)


def test_ratio_loss_schedules():
    loss = RatioLoss(weight=0.03, warmup_steps=10, ramp_steps=4)
    assert [loss.weight_at(step) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.015, 0.03, 0.03])
    assert [loss.target_at(step, 3.0) for step in (0, 1, 4, 99)] == pytest.approx([1, 1.5, 3, 3])
    at_once = RatioLoss(weight=0.03)
    assert at_once.weight_at(0) == 0.03 and at_once.target_at(0, 2.5) == 2.5
    with pytest.raises(ValueError, match="the ratio loss's ramp_steps must be 0 or more, not -1"):
        RatioLoss(weight=0.03, ramp_steps=-1)
    assert [part.tolist() for part in loss.of_stages(stages(), 5)] == [[0, 0, 0]] * 2  # nothing to learn from


def sums_of(low, high, utterances=4):
    kept = (low + high) / 2
    named = {
        "kept": kept * utterances,
        "kept_squares": kept**2 * utterances,
        "kept_min": low,
        "kept_max": high,
        "chunks": 9,
    }
    named |= {"prob": 0.1 * utterances, "rate_min": low, "rate_max": high, "chunk_ms": 90, "chunk_ms_max": 30}
    return {f"stage0_{name}": value for name, value in named.items()}


@pytest.mark.parametrize(
    ("rates", "target", "word"),
    [
        ((0.0, 0.09), 2, "no frame"),
        ((0.92, 1.0), 2, "each frame"),
        ((0.0, 0.04), 4, "no frame"),
        ((0.0, 0.3), 2, None),
        ((0.3, 1.0), 2, None),
        ((0.0, 0.09), 4, None),
        ((1.0, 1.0), 1, None),
        ((0.0, 0.0), None, None),
        ((float("inf"), -float("inf")), 2, None),
    ],
)
def test_a_collapse_is_said_once(caplog, rates, target, word):
    """All utterances alike, over a stretch of steps; not where the target is every frame, nothing is learned,
    or no utterance has a second frame."""
    detector = CollapseDetector(patience=5)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 30):
            detector.update(sums_of(*rates), 4, step=step, targets=[target])
    assert [word in record.getMessage() for record in caplog.records] == ([True] if word else [])
    if word:
        message = caplog.records[0].getMessage()
        assert (
            "stage 0" in message
            and "for 5 optimizer steps (up to step 5)" in message
            and f"target {1 / target:.3f}" in message
        )
        assert (
            f"mean {sum(rates) / 2:.3f}, min {rates[0]:.3f}, max {rates[1]:.3f}" in message
            and "mean p 0.100" in message
        )


def test_a_second_collapse_is_said_again_and_an_interrupted_one_is_none(caplog):
    detector, bad, good = CollapseDetector(patience=3), sums_of(0.0, 0.0), sums_of(0.4, 0.6)
    with caplog.at_level(logging.WARNING):
        for step, sums in enumerate([bad, bad, good, bad, bad, bad, bad, good, bad, bad, bad], start=1):
            detector.update(sums, 4, step=step, targets=[2.0])
    steps = [record.args[2] for record in caplog.records]
    assert steps == [6, 11] and all(later - earlier >= 3 for earlier, later in pairwise(steps))
