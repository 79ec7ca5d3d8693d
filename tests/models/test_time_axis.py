"""The time axis of an encoder's output: which seconds a state covers."""

from __future__ import annotations

import torch

from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.models.outputs import TimeAxis
from hmamba_asr.modules.chunkers import FixedStrideChunker

HOP = 0.5  # seconds from feature frame to feature frame, and here from input frame to input frame


def edges(starts, frames, offset=0.0):
    axis = TimeAxis(
        torch.tensor([starts + [0, 0]]), torch.tensor([len(starts)]), torch.tensor([frames]), offset
    )
    return axis.edges(0, HOP).tolist()


def test_states_at_the_frame_rate_last_one_frame():
    axis = TimeAxis.of_frames(torch.tensor([3, 2]), 3)
    assert axis.edges(0, HOP).tolist() == [0.0, 0.5, 1.0, 1.5]
    assert axis.edges(1, HOP).tolist() == [0.0, 0.5, 1.0]
    assert edges([0, 1, 2], 3, offset=-0.5) == [-0.25, 0.25, 0.75, 1.25]


def test_chunks_last_until_the_next_begins_and_the_last_one_until_the_frames_end():
    assert edges([0, 1, 5], 7) == [0.0, 0.5, 2.5, 3.5]  # chunks of 1, 4 and 2 frames


def test_nested_chunks_begin_where_the_first_of_their_chunks_begins():
    """Chunks of three frames, every second of which begins a chunk of the second stage."""
    sizes = {"num_layers": 1, "d_model": 8, "d_ffn": 16, "kernel_size": 3, "dropout": 0.0, "d_state": 4}
    flat = ConMambaEncoder(**sizes)
    nested = HierarchicalEncoder(
        outer=flat,
        chunker=FixedStrideChunker(stride=3),
        inner=HierarchicalEncoder(
            outer=flat, chunker=FixedStrideChunker(stride=2), inner=flat, d_model=8, output="chunks"
        ),
        d_model=8,
        output="chunks",
    ).eval()
    with torch.no_grad():
        output = nested(torch.randn(2, 14, 8), torch.tensor([14, 8]))
    assert output.lengths.tolist() == [3, 2]
    assert output.time_axis.edges(0, HOP).tolist() == [0.0, 3.0, 6.0, 7.0]
    assert output.time_axis.edges(1, HOP).tolist() == [0.0, 3.0, 4.0]
