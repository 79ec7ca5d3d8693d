"""Multiply-accumulate operations of a recogniser, from its YAML alone.

The policy. Counted, one MAC for each multiplication and addition: matrix products, convolutions, both
products of attention (whole squares, also where a mask hides half), and the selective scan with three for
each frame, channel, state and direction: decay times state, input times B, state times C. Not counted:
features, embeddings, norms, activations, gates, softmax, dropout, exponentials, the moving average over
chunks, and the search around the decoder, which here reads each token of one hypothesis once, with kept keys
and values. Frames past an utterance's end do not exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

SCAN_MACS = 3  # for each frame, channel, state and direction

_Node = Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """Reads an object as its arguments, with its tag under the key "!"."""


def _construct(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    arguments = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    return {"!": suffix.rpartition(".")[2], **arguments}


_Loader.add_multi_constructor("!", _construct)


def count_macs(hparams: str, *, seconds: float, tokens: int, kept: tuple[float, ...] = ()) -> dict[str, int]:
    """MACs by part ("frontend", "encoder", or "encoder.outer", "encoder.chunker" and "encoder.inner",
    "ctc_head", "decoder", "output_head") of the recogniser in a resolved YAML.

    For an utterance of ``seconds`` with ``tokens`` output tokens; ``kept``: chunks for each state, by
    chunking stage.

    Raises:
        ValueError: the YAML has an encoder of a kind that is not known here, lacks a size, or has more
        chunking stages than
            ``kept`` has fractions.
    """
    settings = yaml.load(hparams, _Loader)  # noqa: S506 - a SafeLoader
    try:
        return _count(settings["model"], settings["features"], seconds, tokens, kept)
    except KeyError as error:
        raise ValueError(f"the YAML has no {error}, without which operations cannot be counted.") from error


def _count(
    model: _Node, features: _Node, seconds: float, tokens: int, kept: tuple[float, ...]
) -> dict[str, int]:
    frames = 1 + round(1000 * seconds) // features.get("hop_length", 10)
    parts: dict[str, int] = {}
    parts["frontend"], frames = _frontend(model["frontend"], frames)
    encoder, states = _encoder(model["encoder"], frames, kept, "encoder")
    parts |= encoder
    width = model["d_model"]
    units = model["output_head"]["n_neurons"]
    parts["ctc_head"] = states * width * model["ctc_head"]["n_neurons"]
    parts["decoder"] = model["num_decoder_layers"] * _decoder_layer(tokens, states, width, model["d_ffn"])
    parts["output_head"] = tokens * width * units
    return parts


def _frontend(part: _Node, frames: int) -> tuple[int, int]:
    """MACs, and the encoder frames that come of so many feature frames."""
    taps = part.get("kernel_size", 3) ** 2
    bands, before, macs = part.get("n_mels", 80), 1, 0
    for channels in part["channels"]:
        frames, bands = math.ceil(frames / 2), math.ceil(bands / 2)
        macs += frames * bands * channels * before * taps
        before = channels
    return macs + frames * bands * before * part["d_model"], frames


def _encoder(part: _Node, frames: int, kept: tuple[float, ...], name: str) -> tuple[dict[str, int], int]:
    """MACs by part, and the states that the heads read."""
    kind = part["!"]
    if kind == "ConMambaEncoder":
        return {name: part["num_layers"] * conmamba_block_macs(frames, **_sizes(part))}, frames
    if kind == "ConformerControl":
        return {
            name: part["num_layers"]
            * conformer_block_macs(frames, part["d_model"], part["d_ffn"], part["kernel_size"])
        }, frames
    if kind != "HierarchicalEncoder":
        raise ValueError(f"the MACs of an encoder {kind} are not known here; teach evaluation/macs.py.")
    if not kept:
        raise ValueError("this encoder chunks; give the kept fraction of each of its stages.")
    width = part["d_model"]
    inner_width = part.get("inner_d_model") or width
    chunks = max(1, round(kept[0] * frames))
    macs, _ = _encoder(part["outer"], frames, (), f"{name}.outer")
    macs[f"{name}.chunker"] = _chunker(part["chunker"], frames, width)
    if inner_width != width:
        macs[f"{name}.chunker"] += 2 * chunks * width * inner_width
    inner, states = _encoder(part["inner"], chunks, kept[1:], f"{name}.inner")
    macs |= inner
    if part.get("output", "frames") == "frames":
        macs[f"{name}.chunker"] += frames * width**2
        states = frames
    return macs, states


def _chunker(part: _Node, frames: int, width: int) -> int:
    """MACs of deciding where chunks begin."""
    if part.get("target_ratio") == 1:
        return 0
    if part["!"] == "CTCChunker":
        return frames * width * part["ctc_head"]["n_neurons"]
    return 2 * (frames - 1) * width**2 if part["!"] in ("DynamicChunker", "HNetChunker") else 0


def _sizes(part: _Node) -> dict[str, Any]:
    named = ("d_model", "d_ffn", "kernel_size", "causal", "d_state", "d_conv", "expand")
    return {name: part[name] for name in named if name in part}


def conmamba_block_macs(
    frames: int,
    *,
    d_model: int,
    d_ffn: int,
    kernel_size: int,
    causal: bool = False,
    d_state: int = 16,
    d_conv: int = 4,
    expand: int = 2,
) -> int:
    """MACs of a ConMamba block: two feed-forward halves, bi-Mamba, convolution."""
    inner, rank, directions = expand * d_model, math.ceil(d_model / 16), 1 if causal else 2
    per_direction = inner * (d_conv + (rank + 2 * d_state) + rank + SCAN_MACS * d_state)
    mamba = d_model * 2 * inner + directions * per_direction + inner * d_model
    return frames * (4 * d_model * d_ffn + mamba + _convolution(d_model, kernel_size))


def conformer_block_macs(frames: int, d_model: int, d_ffn: int, kernel_size: int) -> int:
    """MACs of a Conformer block with relative positions, of which there are 2 frames - 1."""
    positions = 2 * frames - 1
    attention = 4 * frames * d_model**2 + positions * d_model**2 + frames * (2 * frames + positions) * d_model
    return attention + frames * (4 * d_model * d_ffn + _convolution(d_model, kernel_size))


def _convolution(d_model: int, kernel_size: int) -> int:
    """Of one frame: pointwise to twice the width, depthwise, pointwise."""
    return 3 * d_model**2 + kernel_size * d_model


def _decoder_layer(tokens: int, states: int, d_model: int, d_ffn: int) -> int:
    self_attention = 4 * tokens * d_model**2 + 2 * tokens**2 * d_model
    cross_attention = 2 * (tokens + states) * d_model**2 + 2 * tokens * states * d_model
    return self_attention + cross_attention + 2 * tokens * d_model * d_ffn
