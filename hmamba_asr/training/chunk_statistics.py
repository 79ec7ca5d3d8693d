"""What the chunking stages did, in numbers for the log and places for the evaluation, and a warning when a
chunker collapses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor, nn

from hmamba_asr.evaluation.segmentation import Chunks
from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.outputs import StageOutput
from hmamba_asr.modules.chunkers import CTCChunker, DynamicChunker, HNetChunker

logger = logging.getLogger(__name__)


def chunk_durations(stage: StageOutput, frames: Tensor) -> Tensor:
    """Encoder frames in each chunk (B, M), zero past the last, for utterances of ``frames`` (B,) encoder
    frames."""
    following = F.pad(stage.chunk_starts[:, 1:], (0, 1))
    following = following.scatter(1, (stage.chunk_lengths - 1).clamp(min=0).unsqueeze(1), frames.unsqueeze(1))
    inside = valid_mask(stage.chunk_lengths, stage.chunk_starts.shape[1])
    return (following - stage.chunk_starts).masked_fill(~inside, 0)


def chunk_records(
    stages: Sequence[StageOutput],
    ids: Sequence[str],
    *,
    centres: Callable[[float], float],
    hop_seconds: float,
) -> list[Chunks]:
    """Where each utterance's chunks begin, of all stages; nothing if there are none.

    ``centres`` gives the feature frame in the middle of an encoder frame. A frame begins half-way between its
    centre and the one before it.
    """
    first = hop_seconds * centres(-0.5)
    step = hop_seconds * centres(0.5) - first
    return [
        Chunks(
            id=name,
            frames=int(stages[0].lengths[row]),
            first=first,
            step=step,
            starts=tuple(
                tuple(stage.chunk_starts[row, : int(stage.chunk_lengths[row])].tolist()) for stage in stages
            ),
        )
        for row, name in enumerate(ids if stages else ())
    ]


def stage_sums(
    stages: Sequence[StageOutput], *, frame_ms: float, ratios: Sequence[Tensor] = ()
) -> dict[str, Tensor]:
    """Sums over a batch's utterances; ``progress.merge_sums`` joins them over batches and ranks,
    ``stage_figures`` reads them.

    ``frame_ms`` is the duration of an encoder frame, ``ratios`` the stages' ratio losses (B,). ``rate`` is
    the fraction of frames that the chunker itself chose, the first one apart, which it must choose;
    utterances of one frame have none.
    """
    sums: dict[str, Tensor] = {}
    for i, stage in enumerate(stages):
        kept = stage.kept_fraction.detach().double()  # their deviation is a difference of squares
        rate = (stage.chosen - 1) / (stage.lengths - 1)
        free = stage.lengths > 1
        durations = chunk_durations(stage, stages[0].lengths) * frame_ms
        named = {
            "kept": kept.sum(),
            "kept_squares": kept.square().sum(),
            "kept_min": kept.min(),
            "kept_max": kept.max(),
            "prob": stage.mean_prob.detach().sum(),
            "rate_min": rate.masked_fill(~free, math.inf).min(),
            "rate_max": rate.masked_fill(~free, -math.inf).max(),
            "chunks": stage.chunk_lengths.sum(),
            "chunk_ms": durations.sum(),
            "chunk_ms_max": durations.max(),
        }
        if ratios:
            named["ratio_loss"] = ratios[i].detach().sum()
        sums |= {f"stage{i}_{name}": value for name, value in named.items()}
    return sums


def stage_figures(sums: Mapping[str, float], utterances: float) -> list[dict[str, float]]:
    """For each stage: kept fraction (mean, standard deviation, minimum and maximum over utterances), mean
    probability, mean and longest chunk in ms; and where they were summed, the mean ratio loss and the
    utterances that only a floor made long enough for the CTC (``floored``)."""
    figures = []
    while f"stage{len(figures)}_kept" in sums:
        part = {
            name.split("_", 1)[1]: value
            for name, value in sums.items()
            if name.startswith(f"stage{len(figures)}_")
        }
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


def named_figures(sums: Mapping[str, float], utterances: float, prefix: str = "") -> dict[str, float]:
    """The same in one dictionary for the log: ``stage0_kept``, ``stage0_prob``, ..."""
    figures = stage_figures(sums, utterances)
    return {
        f"{prefix}stage{i}_{name}": value for i, stage in enumerate(figures) for name, value in stage.items()
    }


def check_chunkers(model: nn.Module, hparams: SimpleNamespace) -> None:
    """A CTCChunker must read what the intermediate CTC loss trains, and a ratio loss must have something to
    teach.

    Raises
    ------
    ValueError
        If they do not.
    """
    for chunker in (m for m in model.modules() if isinstance(m, CTCChunker) and m.target_ratio > 1):
        if not (hparams.ctc_weight > 0 and hparams.intermediate_ctc_weight > 0):
            raise ValueError(
                "a CTCChunker reads the CTC on the frames, which nothing trains; set ctc_weight and intermediate_ctc_weight "
                "above 0."
            )
        if chunker is not getattr(model.encoder, "chunker", None) or chunker.ctc_head is not model.ctc_head:
            raise ValueError("a CTCChunker must be the outermost encoder's, and have the model's ctc_head.")
        if chunker.blank_index != hparams.blank_index:
            raise ValueError(
                f"the CTCChunker's blank_index is {chunker.blank_index} and the recogniser's {hparams.blank_index}."
            )
    if getattr(hparams, "ratio_loss", None) and not any(
        isinstance(m, DynamicChunker | HNetChunker) for m in model.modules()
    ):
        raise ValueError("ratio_loss teaches a router, and no chunker has one; leave it out.")


class CollapseDetector:
    """Warns once when a chunker has chosen nearly no frame, or nearly every frame, of all utterances for
    ``patience`` optimizer steps on end; again only after it has recovered in between.

    It looks at its own choices, which a floor may hide. "Nearly" is within ``margin`` of the distance from
    the target to that extreme: with a target of 2 frames and a margin of 0.2 below 10% or above 90%.
    """

    def __init__(self, *, patience: int = 100, margin: float = 0.2):
        self.patience, self.margin = patience, margin
        self._since: dict[int, int] = {}

    def update(
        self, sums: Mapping[str, float], utterances: float, *, step: int, targets: Sequence[float | None]
    ) -> None:
        """``sums`` of one optimizer step over all ranks; ``targets``: the stages' target ratios now, None if
        fixed."""
        figures = stage_figures(sums, utterances)
        for i, (target, stage) in enumerate(zip(targets, figures, strict=True)):
            low, high = sums[f"stage{i}_rate_min"], sums[f"stage{i}_rate_max"]
            nothing = target is not None and high <= self.margin / target
            everything = target is not None and target > 1 and low >= 1 - self.margin * (1 - 1 / target)
            self._since[i] = self._since.get(i, 0) + 1 if (nothing or everything) and low <= high else 0
            if self._since[i] == self.patience:
                logger.warning(
                    "Chunking stage %d has collapsed: for %d optimizer steps (up to step %d) its chunker chose nearly %s frame "
                    "of every utterance. Kept fraction now: mean %.3f, min %.3f, max %.3f; its own, without first frames "
                    "and the floor: %.3f to %.3f; mean p %.3f; target %.3f. Take another target_ratio, or for a router a lower "
                    "lr_multiplier and more weight for the ratio loss, for the CTC's chunks other chunks_per_label.",
                    i,
                    self.patience,
                    step,
                    "no" if nothing else "each",
                    stage["kept"],
                    stage["kept_min"],
                    stage["kept_max"],
                    low,
                    high,
                    stage["prob"],
                    1 / target,
                )
