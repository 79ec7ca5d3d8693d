"""Counted operations against PyTorch's flop counter on the models of the YAMLs, and the scan by hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from torch.utils.flop_counter import FlopCounterMode

from hmamba_asr.evaluation.operations import SCAN_MACS, conmamba_block_macs, count_macs
from hmamba_asr.ops import mixer

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
SECONDS, TOKENS = 3.0, 9


def resolved(name: str, **overrides: object) -> tuple[str, dict]:
    text = (HPARAMS / f"{name}.yaml").read_text(encoding="utf-8")
    overrides = {"data_folder": ".", **overrides}
    whole = resolve_references(text, overrides).read()
    # Only the model and the features: nothing is written or loaded.
    parts = load_hyperpyyaml(io.StringIO(text), {**overrides, "checkpointer": None, "epoch_counter": None})
    return whole, parts


def counted(parts: dict) -> tuple[dict[str, int], tuple[float, ...], int]:
    """What the flop counter sees of the model's parts, the kept fractions, and the frames of the encoder."""
    model = parts["model"].eval()
    samples = torch.randn(1, int(SECONDS * 16000))
    features, lengths = parts["features"](samples, torch.tensor([samples.shape[1]]))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        output = model(features, lengths, torch.ones(1, TOKENS, dtype=torch.long), torch.tensor([TOKENS]))
    flops = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    kept = tuple(float(stage.kept_fraction) for stage in output.encoded.stages)
    frames = int(output.encoded.stages[0].lengths) if kept else int(output.encoded.lengths)
    return {name.removeprefix("ASRModel."): count for name, count in flops.items()}, kept, frames


@pytest.fixture
def no_scan(monkeypatch):
    """Leave the scan out: how much of it are matrix products depends on the backend."""
    monkeypatch.setattr(mixer, "scan_directions", lambda u, *rest, **options: u)


@pytest.mark.parametrize(
    "name", ["conmamba_demo", "hmamba_demo", "hmamba_an4", "fixedstride_an4", "router_an4", "hnet_an4"]
)
def test_parts_are_those_of_the_flop_counter(no_scan, name):
    text, parts = resolved(name)
    seen, kept, frames = counted(parts)
    macs = count_macs(text, seconds=SECONDS, tokens=TOKENS, kept=kept)
    for part, count in macs.items():
        if part == "encoder.chunker":
            continue  # a function of the chunker's weights, not a module: within the encoder's sum below
        scan = 0
        if part.startswith("encoder"):
            layers, length = (
                (2, round(kept[0] * frames) if part.endswith("inner") else frames) if kept else (4, frames)
            )
            scan = layers * 2 * SCAN_MACS * length * (2 * 96) * 8
        assert count - scan == seen[part], part
    whole = sum(count for part, count in macs.items() if part.startswith("encoder"))
    scans = 2 * SCAN_MACS * 2 * 96 * 8 * (2 * (frames + round(kept[0] * frames)) if kept else 4 * frames)
    assert whole - scans == seen["encoder"]


def test_the_conformer_is_that_of_the_flop_counter():
    text, parts = resolved("conformer_small_ls100", pretrained_source="none", vocab_size=50)
    seen, _, _ = counted(parts)
    macs = count_macs(text, seconds=SECONDS, tokens=TOKENS)
    for part in ("frontend", "encoder", "decoder"):
        assert macs[part] == seen[part], part


def test_a_block_by_hand():
    """1 frame, width 16, inner width 32, rank 1, states 2, causal."""
    ffn, convolution = 2 * 2 * 16 * 64, 16 * 32 + 3 * 16 + 16 * 16
    mamba = 16 * 64 + 32 * 4 + 32 * 5 + 1 * 32 + 3 * 32 * 2 + 32 * 16
    found = conmamba_block_macs(1, d_model=16, d_ffn=64, kernel_size=3, causal=True, d_state=2)
    assert found == ffn + convolution + mamba
    both = conmamba_block_macs(1, d_model=16, d_ffn=64, kernel_size=3, d_state=2)
    assert both - found == 32 * 4 + 32 * 5 + 1 * 32 + 3 * 32 * 2


def test_linear_in_time_apart_from_the_decoder_and_smaller_with_fewer_chunks():
    text, _ = resolved("hmamba_demo")
    short, long = (count_macs(text, seconds=s, tokens=0, kept=(0.5,)) for s in (10, 20))
    assert sum(long.values()) == pytest.approx(2 * sum(short.values()), rel=0.01)
    half, all_kept = (count_macs(text, seconds=10, tokens=0, kept=(k,)) for k in (0.5, 1.0))
    assert half["encoder.inner"] == pytest.approx(all_kept["encoder.inner"] / 2, rel=0.01)


def test_unknown_encoders_and_missing_fractions_are_refused():
    text, _ = resolved("hmamba_demo")
    with pytest.raises(ValueError, match="give the kept fraction"):
        count_macs(text, seconds=1, tokens=1)
    with pytest.raises(ValueError, match="has no 'num_decoder_layers'"):
        count_macs(text.replace("num_decoder_layers", "layers"), seconds=1, tokens=1, kept=(0.5,))
    with pytest.raises(ValueError, match="encoder LSTMEncoder are not known here"):
        count_macs(text.replace("HierarchicalEncoder", "LSTMEncoder"), seconds=1, tokens=1)
