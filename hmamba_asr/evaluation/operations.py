"""Multiply-accumulate operations (MACs) of a recogniser on one utterance, by torch's flop counter.

Counted, one MAC for each multiplication with its addition:

- matrix products and convolutions;
- both products of attention, as whole squares, also where a mask hides half of them;
- the selective scan, with three for each frame, channel, state and direction: decay times state, input times
  B, state times C.

Not counted: features, embeddings, norms, activations, gates, softmax, exponentials, the moving average over
chunks, and the search around the decoder. The decoder reads each token of one hypothesis once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hmamba_asr.config.hparams import build_error_reason, load_parts
from hmamba_asr.models.asr import ASRModel
from hmamba_asr.modules.chunkers import FixedStrideChunker
from hmamba_asr.modules.frontend import LogMelFeatures

COUNTED_SECONDS, COUNTED_TOKENS = 10.0, 40  # of the utterance whose operations results.json states
TRUSTED = (
    "hmamba_asr.models.",
    "hmamba_asr.modules.",
    "hmamba_asr.hnet.",
    "speechbrain.nnet.",
    "speechbrain.lobes.models.",
)


@torch.no_grad()
def count_operations(
    model: ASRModel,
    features: LogMelFeatures,
    *,
    kept: Sequence[float] = (),
    seconds: float = COUNTED_SECONDS,
    tokens: int = COUNTED_TOKENS,
) -> dict[str, int]:
    """Count the multiply-accumulates of a model for one utterance.

    A copy of the model reads noise on the CPU while the counter looks on. Where the model chunks, the
    chunkers run and are counted, but boundaries at even distances take the place of theirs: the count depends
    on ``kept``, not on the noise.

    Parameters
    ----------
    model, features
        The recogniser, and the features that it reads.
    kept : sequence of float
        Chunks for each state, one number for each chunking stage, in the order of ``EncoderOutput.stages``.
    seconds, tokens : float, int
        Length of the utterance, and number of tokens that the decoder reads.

    Returns
    -------
    dict of str to int
        MACs by part: ``frontend``, ``encoder``, ``ctc_head``, ``decoder`` and ``output_head``. An encoder
        that chunks has ``encoder.outer``, ``encoder.chunker`` (with the projections into the chunks and back
        to the frames) and ``encoder.inner``. The sum over the parts is that of the whole model.

    Raises
    ------
    ValueError
        If ``kept`` does not have one number for each chunking stage.
    """
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    features = copy.deepcopy(features).to("cpu", torch.float32).eval()
    chunkers = model.encoder.chunkers
    if len(kept) != len(chunkers):
        raise ValueError(
            f"the encoder has {len(chunkers)} chunking stages, but there are {len(kept)} kept fractions; "
            "give one for each stage."
        )
    for module in model.modules():
        if hasattr(module, "scan_backend"):
            # The counter sees this backend as one operation.
            module.scan_backend = "chunked"  # type: ignore[assignment]
    for chunker, fraction in zip(chunkers, kept, strict=True):
        chunker.register_forward_hook(_evenly(fraction))
    size = round(seconds / features.hop_seconds) * features.hop_samples
    samples = torch.randn(1, size, generator=torch.Generator().manual_seed(0))
    inputs, lengths = features(samples, torch.tensor([size]))
    with FlopCounterMode(display=False) as counter:
        model(inputs, lengths, torch.ones(1, tokens, dtype=torch.long), torch.tensor([tokens]))
    macs = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    return _by_part(macs, type(model).__name__)


def recount(hparams: str, *, kept: Sequence[float] = ()) -> dict[str, int]:
    """Build a model from its resolved YAML and count its operations: for results files without a count.

    Parameters and result are those of `count_operations`. A results file may come from anywhere, so that only
    modules of this package and of SpeechBrain are built.

    Raises
    ------
    ValueError
        If the model cannot be built, names anything else, or ``kept`` does not have one number for each
        chunking stage.
    """
    try:
        parts = load_parts(hparams, ("model", "features"), trusted=TRUSTED)
    except (AttributeError, ImportError, TypeError) as error:  # HyperPyYAML cannot find or call something
        raise ValueError(f"the model cannot be built from its YAML: {build_error_reason(error)}") from error
    return count_operations(parts["model"], parts["features"], kept=kept)


def _evenly(fraction: float) -> Callable[..., Any]:
    """Make a forward hook that replaces a chunker's output by even chunks, ``fraction`` for each state."""

    def hook(chunker: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        x, lengths = inputs[:2]
        chunks = max(1, round(fraction * x.shape[1]))
        return FixedStrideChunker(stride=x.shape[1] / chunks)(x, lengths)

    return hook


def _by_part(macs: Mapping[str, int], model: str) -> dict[str, int]:
    """Sort the counts of modules, by their path from the class name ``model``, into parts without overlap."""
    parts = {name: macs.get(f"{model}.{name}", 0) for name in ("frontend", "decoder", "output_head")}
    parts |= _encoder_parts(
        {path.removeprefix(f"{model}."): count for path, count in macs.items()}, "encoder"
    )
    # A chunker may read the CTC head too. What remains of the whole is what the head does on the states.
    parts["ctc_head"] = macs["Global"] - sum(parts.values())
    order = [*(name for name in parts if name.startswith("encoder")), "ctc_head", "decoder", "output_head"]
    return {name: parts[name] for name in ("frontend", *order)}


def _encoder_parts(macs: Mapping[str, int], name: str) -> dict[str, int]:
    if f"{name}.inner" not in macs:
        return {name: macs[name]}
    outer, inner = (_encoder_parts(macs, f"{name}.{part}") for part in ("outer", "inner"))
    between = macs[name] - sum(outer.values()) - sum(inner.values())
    return {**outer, f"{name}.chunker": between, **inner}
