"""scripts/plot_boundaries.py: pictures of a run's recordings, with the boundaries at their times."""

from __future__ import annotations

from dataclasses import replace

import plot_boundaries
import pytest
import torch

from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.modules.chunkers import FixedStrideChunker


def test_nested_stages_stand_at_their_times():
    """Chunks of two frames, and chunks of three of these. Frame t is centred on feature frame 4 t."""
    sizes = {"num_layers": 1, "d_model": 8, "d_ffn": 16, "kernel_size": 3, "dropout": 0.0, "d_state": 2}
    flat = ConMambaEncoder(**sizes)
    nested = HierarchicalEncoder(
        outer=flat,
        chunker=FixedStrideChunker(stride=2),
        inner=HierarchicalEncoder(
            outer=flat, chunker=FixedStrideChunker(stride=3), inner=flat, d_model=8, output="chunks"
        ),
        d_model=8,
        output="chunks",
    ).eval()
    with torch.no_grad():
        encoded = nested(torch.randn(1, 11, 8), torch.tensor([11]))
    encoded = replace(encoded, time_axis=replace(encoded.time_axis, offset=-2.0, hop=4.0))
    outer, inner = plot_boundaries.boundary_tracks(encoded, 0.01)
    assert outer.times == pytest.approx([0.04 * frame for frame in range(11)])
    # The nested stage is given the outer stage's chunks.
    assert inner.times == pytest.approx([0.08 * chunk for chunk in range(6)])
    assert inner.times[inner.mask] == pytest.approx([0.0, 0.24]) and outer.mask.sum() == 6


@pytest.mark.slow
def test_pictures_of_boundaries(h_net_run, recipe, tmp_path, monkeypatch, capsys):
    """Each recording gets a PNG, with the model's decisions at the times of the encoder's frames."""
    drawn = {}
    draw = plot_boundaries.draw_boundaries
    monkeypatch.setattr(
        plot_boundaries,
        "draw_boundaries",
        lambda path, **what: (drawn.update({path: what}), draw(path, **what)),
    )
    audio = sorted((recipe.corpus / "test-clean").rglob("*.flac"))[-2:]
    assert (
        plot_boundaries.main([str(h_net_run.folder), *map(str, audio), "--output", str(tmp_path / "p")]) == 0
    )
    assert capsys.readouterr().out.split() == [str(tmp_path / "p" / f"{path.stem}.png") for path in audio]
    for path, what in drawn.items():
        assert path.read_bytes().startswith(b"\x89PNG")
        (stage,) = what["tracks"]
        frames = -(-len(what["spectrogram"]) // 4)
        assert stage.times == pytest.approx([0.04 * frame for frame in range(frames)])
        assert stage.mask[0] and (stage.mask == (stage.prob >= 0.5)).all() and len(stage.prob) == frames

    assert plot_boundaries.main([str(tmp_path), str(audio[0])]) == 2
    assert "hyperparams.yaml; give the output folder of a training run" in capsys.readouterr().err
    assert plot_boundaries.main([str(h_net_run.folder), str(recipe.corpus)]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_flat_encoder_has_no_boundaries_to_draw(full_run, recipe, capsys):
    audio = next((recipe.corpus / "test-clean").rglob("*.flac"))
    assert plot_boundaries.main([str(full_run.folder), str(audio)]) == 2
    assert (
        f"nothing to draw for {audio.stem}: the encoder of this run has no chunking stage"
        in capsys.readouterr().err
    )
