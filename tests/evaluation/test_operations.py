"""Counted operations: by hand, for given kept fractions, and as earlier versions counted them from YAMLs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import load_parts, resolve
from hmamba_asr.evaluation.operations import count_operations, recount
from hmamba_asr.evaluation.results import load_results
from hmamba_asr.modules.conmamba import ConMambaBlock
from hmamba_asr.ops.selective_scan import selective_scan

ROOT = Path(__file__).resolve().parents[2]
HPARAMS = ROOT / "hparams"
SECONDS, TOKENS = 3.0, 9
SCAN_MACS = 3  # for each frame, channel, state and direction


def resolved(base: str, *variants: str, **overrides: object) -> str:
    paths = [HPARAMS / "variants" / f"{variant}.yaml" for variant in variants]
    text = compose(HPARAMS / f"{base}.yaml", paths)
    return resolve(text, {"data_folder": ".", "output_folder": "run", **overrides})


def count(text: str, *, seconds: float = SECONDS, tokens: int = TOKENS, kept=()) -> dict[str, int]:
    parts = load_parts(text, ("model", "features"))
    return count_operations(parts["model"], parts["features"], seconds=seconds, tokens=tokens, kept=kept)


def block_macs(frames: int, d_model: int, d_ffn: int, kernel: int, d_state: int, d_conv: int = 4) -> int:
    """Two feed-forward halves, bi-Mamba with an inner width of 2 d_model, convolution."""
    inner, rank = 2 * d_model, math.ceil(d_model / 16)
    per_direction = inner * (d_conv + (rank + 2 * d_state) + rank + SCAN_MACS * d_state)
    mamba = d_model * 2 * inner + 2 * per_direction + inner * d_model
    return frames * (4 * d_model * d_ffn + mamba + 3 * d_model**2 + kernel * d_model)


def test_the_scan_by_hand():
    u, A, BC = torch.randn(2, 5, 32), -torch.rand(32, 4), torch.randn(2, 5, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = selective_scan(u, u, A, BC, BC, backend="chunked")
    assert torch.equal(y, selective_scan(u, u, A, BC, BC, backend="chunked"))  # in training
    assert counter.get_total_flops() == 2 * SCAN_MACS * 2 * 5 * 32 * 4


def test_a_block_by_hand():
    block = ConMambaBlock(
        d_model=16, d_ffn=64, kernel_size=3, dropout=0.0, d_state=2, scan_backend="chunked"
    ).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        block(torch.randn(1, 7, 16), torch.tensor([7]))
    assert counter.get_total_flops() == 2 * block_macs(7, 16, 64, 3, 2)


@pytest.mark.parametrize(
    ("variants", "ratio"), [((), None), (("hmamba",), 2.0), (("fixedstride",), 2.0), (("hnet",), 2.0)]
)
def test_encoders_and_heads_by_hand(variants, ratio):
    """The demo's model: 4 blocks of width 96, or 2 + 2 around a chunker."""
    text = resolved("conmamba_demo", *variants)
    model = load_parts(text, ("model",))["model"]
    width, units = model.ctc_head.w.in_features, model.ctc_head.w.out_features
    block = (model.encoder.outer if ratio else model.encoder).blocks[0]
    sizes = {
        "d_model": width,
        "d_ffn": block.ffn_in[1].out_features,
        "kernel": block.conv.depthwise.kernel_size[0],
        "d_state": block.mamba.d_state,
    }
    frames = 76  # of 301 feature frames
    kept = () if ratio is None else (1 / ratio,)
    macs = count(text, kept=kept)
    if ratio is None:
        assert macs["encoder"] == len(model.encoder.blocks) * block_macs(frames, **sizes)
        states = frames
    else:
        chunks = round(frames / ratio)
        assert macs["encoder.outer"] == len(model.encoder.outer.blocks) * block_macs(frames, **sizes)
        assert macs["encoder.inner"] == len(model.encoder.inner.blocks) * block_macs(chunks, **sizes)
        chunker = {"ctc": frames * width * units, "fixed_stride": 0, "router": 2 * (frames - 1) * width**2}
        back = frames * width**2 if model.encoder.output == "frames" else 0
        assert macs["encoder.chunker"] == chunker[model.chunking[0]["kind"]] + back
        states = frames if model.encoder.output == "frames" else chunks
    assert macs["ctc_head"] == states * width * units
    assert macs["output_head"] == TOKENS * width * model.output_head.w.out_features
    self_attention = 4 * TOKENS * width**2 + 2 * TOKENS**2 * width
    cross_attention = 2 * (TOKENS + states) * width**2 + 2 * TOKENS * states * width
    d_ffn = model.decoder.layers[0].pos_ffn.ffn[0].out_features
    layer = self_attention + cross_attention + 2 * TOKENS * width * d_ffn
    assert macs["decoder"] == len(model.decoder.layers) * layer


def test_the_conformer_by_hand():
    """Relative positions: there are 2 frames - 1 of them, and their products are whole rectangles."""
    text = resolved("conformer_small_ls100", pretrained_source="none", vocab_size=50)
    encoder = load_parts(text, ("model",))["model"].encoder.encoder
    width, frames = 144, 76
    positions = 2 * frames - 1
    attention = 4 * frames * width**2 + positions * width**2 + frames * (2 * frames + positions) * width
    branches = frames * (4 * width * 1024 + 3 * width**2 + 31 * width)
    assert count(text)["encoder"] == len(encoder.layers) * (attention + branches)


def test_linear_in_time_apart_from_the_decoder_and_smaller_with_fewer_chunks():
    text = resolved("conmamba_demo", "hmamba")
    short, long = (count(text, seconds=s, tokens=1, kept=(0.5,)) for s in (10, 20))
    assert sum(long.values()) == pytest.approx(2 * sum(short.values()), rel=0.01)
    half, all_kept = (count(text, seconds=10, kept=(k,)) for k in (0.5, 1.0))
    assert half["encoder.inner"] == pytest.approx(all_kept["encoder.inner"] / 2, rel=0.01)


def test_nested_stages_have_their_own_fractions_and_parts():
    text = resolved("conmamba_demo", "nested")
    few, more = (count(text, kept=kept) for kept in ((0.5, 0.5), (0.5, 1.0)))
    assert list(few) == [
        "frontend",
        *("encoder.outer", "encoder.chunker"),
        *("encoder.inner.outer", "encoder.inner.chunker", "encoder.inner.inner"),
        *("ctc_head", "decoder", "output_head"),
    ]
    differing = {part for part in few if few[part] != more[part]}
    assert "encoder.inner.inner" in differing and "encoder.outer" not in differing


def test_the_model_is_left_as_it_was():
    parts = load_parts(resolved("conmamba_demo", "hmamba"), ("model", "features"))
    model = parts["model"].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backend = model.encoder.outer.blocks[0].mamba.scan_backend
    count_operations(model, parts["features"], kept=(0.5,))
    assert model.training and model.encoder.outer.blocks[0].mamba.scan_backend == backend
    assert not any(module._forward_hooks for module in model.encoder.chunkers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conmamba_mini.1234", 1_985_890_752),
        ("hmamba_mini.1234", 1_670_909_184),
        ("hnet_an4.1234", 255_959_520),
        ("fixedstride_an4.1234", 243_546_912),
    ],
)
def test_old_results_have_the_figures_that_they_always_had(name, expected):
    (results,) = load_results([ROOT / "recipes" / "librispeech" / "results" / f"{name}.results.json"])
    entry = next(entry for searches in results.evaluation.values() for entry in searches.values())
    macs = recount(results.hparams, kept=[stage.kept for stage in entry.stages])
    assert sum(macs.values()) == expected


def test_missing_fractions_and_models_that_cannot_be_built_are_refused():
    text = resolved("conmamba_demo", "hmamba")
    with pytest.raises(ValueError, match="has 1 chunking stages, but there are 0 kept fractions"):
        count(text)
    with pytest.raises(ValueError, match="cannot be built from its YAML"):
        recount(text.replace("num_decoder_layers", "layers"), kept=(0.5,))
    with pytest.raises(ValueError, match="cannot be built from its YAML"):
        recount(text.replace("HierarchicalEncoder", "LSTMEncoder"), kept=(0.5,))


@pytest.mark.parametrize("tag", ["!new:torch.nn.Identity", "!apply:os.getcwd", "!name:torch.optim.AdamW"])
def test_nothing_but_known_modules_is_built_from_a_results_file(tag):
    text = resolved("conmamba_demo").replace("!new:hmamba_asr.modules.frontend.LogMelFeatures", tag)
    with pytest.raises(ValueError, match=f"the YAML names {tag}, which is not built from a results file"):
        recount(text)
