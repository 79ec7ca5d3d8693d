"""Figures of the chunking stages: sums over a batch, merged over batches and ranks, then read as means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.evaluation.segmentation import Segmentation
from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.outputs import EncoderOutput, StageOutput


def chunk_durations(stage: StageOutput, frames: Tensor) -> Tensor:
    """Return the number of encoder frames in each chunk.

    Parameters
    ----------
    stage : StageOutput
        One chunking stage.
    frames : Tensor
        Encoder frames of each utterance, (B,).

    Returns
    -------
    Tensor
        (B, M), zero past the last chunk.
    """
    following = F.pad(stage.starts[:, 1:], (0, 1))
    following = following.scatter(1, (stage.num_chunks - 1).clamp(min=0).unsqueeze(1), frames.unsqueeze(1))
    inside = valid_mask(stage.num_chunks, stage.starts.shape[1])
    return (following - stage.starts).masked_fill(~inside, 0)


def segmentations(encoded: EncoderOutput, ids: Sequence[str], *, hop_seconds: float) -> list[Segmentation]:
    """Record where the chunks of each utterance begin, in all stages.

    Parameters
    ----------
    encoded : EncoderOutput
        The output of the model's encoder; without chunking stages there are no records.
    ids : sequence of str
        Utterance IDs, in the order of the batch.
    hop_seconds : float
        Distance of two feature frames in seconds.
    """
    first, step = encoded.time_axis.scale(hop_seconds)
    return [
        Segmentation(
            id=name,
            frames=int(encoded.time_axis.frames[row]),
            first=first,
            step=step,
            starts=tuple(
                tuple(stage.starts[row, : int(stage.num_chunks[row])].tolist()) for stage in encoded.stages
            ),
        )
        for row, name in enumerate(ids if encoded.stages else ())
    ]


def stage_sums(
    stages: Sequence[StageOutput], *, frame_ms: float, ratios: Sequence[Tensor] = ()
) -> dict[str, Tensor]:
    """Sum what each chunking stage did over the utterances of a batch.

    :func:`~hmamba_asr.system.sums.merge_sums` joins the sums of batches and ranks, and :func:`stage_figures`
    reads them. "rate" is the fraction of frames that the chunker itself chose. It leaves out the first frame,
    which every chunker must choose, and utterances of a single frame.

    Parameters
    ----------
    stages : sequence of StageOutput
        The encoder's chunking stages.
    frame_ms : float
        Duration of an encoder frame in milliseconds.
    ratios : sequence of Tensor, optional
        Ratio loss of each stage, (B,).

    Returns
    -------
    dict of str to Tensor
        Scalars named stage<i>_<quantity>; empty without stages.
    """
    sums: dict[str, Tensor] = {}
    for i, stage in enumerate(stages):
        kept = stage.kept_fraction.detach().double()  # the deviation is a difference of squares
        rate = (stage.num_chosen - 1) / (stage.lengths - 1)
        several = stage.lengths > 1
        durations = chunk_durations(stage, stages[0].lengths) * frame_ms
        named = {
            "kept": kept.sum(),
            "kept_squares": kept.square().sum(),
            "kept_min": kept.min(),
            "kept_max": kept.max(),
            "prob": stage.mean_prob.detach().sum(),
            "rate_min": rate.masked_fill(~several, math.inf).min(),
            "rate_max": rate.masked_fill(~several, -math.inf).max(),
            "chunks": stage.num_chunks.sum(),
            "chunk_ms": durations.sum(),
            "chunk_ms_max": durations.max(),
        }
        if ratios:
            named["ratio_loss"] = ratios[i].detach().sum()
        sums |= {f"stage{i}_{name}": value for name, value in named.items()}
    return sums


def stage_figures(sums: Mapping[str, float], utterances: float) -> list[dict[str, float]]:
    """Turn merged sums into figures, a dictionary for each chunking stage.

    Parameters
    ----------
    sums : mapping of str to float
        Merged :func:`stage_sums`; other names are ignored.
    utterances : float
        Number of utterances in the sums.

    Returns
    -------
    list of dict
        kept (fraction of states; mean, _std, _min and _max over utterances), prob (mean boundary
        probability), chunk_ms (mean) and chunk_ms_max. Where the sums have them: ratio_loss (mean), and
        floored (utterances that only a floor made long enough for the CTC).
    """
    figures: list[dict[str, float]] = []
    while f"stage{len(figures)}_kept" in sums:
        prefix = f"stage{len(figures)}_"
        part = {name.removeprefix(prefix): value for name, value in sums.items() if name.startswith(prefix)}
        kept = part["kept"] / utterances
        figures.append(
            {
                "kept": kept,
                "kept_std": math.sqrt(max(0.0, part["kept_squares"] / utterances - kept**2)),
                **{name: part[name] for name in ("kept_min", "kept_max", "chunk_ms_max")},
                "prob": part["prob"] / utterances,
                "chunk_ms": part["chunk_ms"] / max(1, part["chunks"]),
                **({"ratio_loss": part["ratio_loss"] / utterances} if "ratio_loss" in part else {}),
                **({"floored": part["floored"]} if "floored" in part else {}),
            }
        )
    return figures


def flatten_figures(sums: Mapping[str, float], utterances: float, prefix: str = "") -> dict[str, float]:
    """Return the :func:`stage_figures` of all stages in one dictionary: stage0_kept, stage0_prob, ..."""
    figures = stage_figures(sums, utterances)
    return {
        f"{prefix}stage{i}_{name}": value for i, stage in enumerate(figures) for name, value in stage.items()
    }
