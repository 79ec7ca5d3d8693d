"""Figures of the chunking stages, worked out by hand and merged over batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from hmamba_asr.evaluation.chunk_statistics import (
    chunk_durations,
    segmentations,
    stage_figures,
    stage_sums,
)
from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.modules.chunkers import FixedStrideChunker
from hmamba_asr.system.sums import merge_sums

LENGTHS = torch.tensor([11, 1, 6])


def encoder():
    """Chunks of two frames, and chunks of three of these."""
    torch.manual_seed(0)

    def stack():
        return ConMambaEncoder(num_layers=1, d_model=8, d_ffn=16, kernel_size=3, dropout=0.0, d_state=2)

    inner = HierarchicalEncoder(
        outer=stack(), chunker=FixedStrideChunker(stride=3), inner=stack(), d_model=8, output="chunks"
    )
    return HierarchicalEncoder(
        outer=stack(), chunker=FixedStrideChunker(stride=2), inner=inner, d_model=8, output="chunks"
    ).eval()


def encoded(lengths=LENGTHS):
    """As a model with two stride-2 convolutions gives it: frame t is centred on feature frame 4 t."""
    output = encoder()(torch.randn(len(lengths), 11, 8), lengths)
    return replace(output, time_axis=replace(output.time_axis, offset=-2.0, hop=4.0))


def sums_of(lengths=LENGTHS):
    sums = stage_sums(encoded(lengths).stages, frame_ms=40.0)
    return {name: float(value) for name, value in sums.items()}


def test_chunks_begin_half_a_frame_before_the_centre_of_their_first_frame():
    """Feature frames are 10 ms apart."""
    first, _, last = segmentations(encoded(), ["a", "b", "c"], hop_seconds=0.01)
    assert (first.id, first.frames, first.starts) == ("a", 11, ((0, 2, 4, 6, 8, 10), (0, 6)))
    assert first.boundaries() == pytest.approx([0.06, 0.14, 0.22, 0.30, 0.38])
    assert first.boundaries(1) == pytest.approx([0.22])
    assert 1000 * first.durations(1) == pytest.approx([240, 200])
    assert (last.id, last.frames, last.starts[1]) == ("c", 6, (0,))
    assert segmentations(replace(encoded(), stages=()), ["a"], hop_seconds=0.01) == []


def test_chunks_share_out_the_utterance():
    """11 frames: a chunk every second one, and every sixth one in the nested stage; the last chunk ends with
    the utterance."""
    outer, inner = (chunk_durations(stage, LENGTHS) for stage in encoded().stages)
    assert outer.tolist() == [[2, 2, 2, 2, 2, 1], [1, 0, 0, 0, 0, 0], [2, 2, 2, 0, 0, 0]]
    assert inner.tolist() == [[6, 5], [1, 0], [6, 0]]


def test_figures_by_hand():
    outer, inner = stage_figures(sums_of(), 3)
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
    apart: Counter = Counter()
    for index in range(3):
        merge_sums(apart, sums_of(LENGTHS[index : index + 1]))
    together = stage_figures(sums_of(), 3)
    assert [pytest.approx(stage) for stage in stage_figures(apart, 3)] == together and len(together) == 2
    assert stage_figures({}, 3) == []


def test_the_routers_rate_leaves_first_frames_out():
    """5 frames of 10 after the first are chosen; an utterance of one frame says nothing."""
    sums = sums_of(torch.tensor([11, 1]))
    assert sums["stage0_rate_min"] == sums["stage0_rate_max"] == pytest.approx(5 / 10)
