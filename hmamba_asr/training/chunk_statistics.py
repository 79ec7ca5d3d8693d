"""The chunking stages in training: settings that leave a chunker untrained, and chunkers that collapse."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from hmamba_asr.evaluation.chunk_statistics import stage_figures
from hmamba_asr.models.asr import ASRModel

logger = logging.getLogger(__name__)


def flatten_figures(sums: Mapping[str, float], utterances: float, prefix: str = "") -> dict[str, float]:
    """Return the figures of all stages in one dictionary for the log: stage0_kept, stage0_prob, ..."""
    figures = stage_figures(sums, utterances)
    return {
        f"{prefix}stage{i}_{name}": value for i, stage in enumerate(figures) for name, value in stage.items()
    }


def check_chunkers(model: ASRModel, hparams: SimpleNamespace) -> None:
    """Check that the losses train what the chunkers read.

    Raises
    ------
    ValueError
        If a CTCChunker reads a CTC that no loss trains, or a ratio loss has no router to teach.
    """
    chunkers = model.encoder.chunkers
    for chunker in (chunker for chunker in chunkers if chunker.reads_ctc):
        if not (hparams.ctc_weight > 0 and hparams.intermediate_ctc_weight > 0):
            raise ValueError(
                "a CTCChunker reads the CTC on the frames, which nothing trains; set ctc_weight and "
                "intermediate_ctc_weight above 0."
            )
        if chunker.blank_index != hparams.blank_index:
            raise ValueError(
                f"the CTCChunker's blank_index is {chunker.blank_index} and the recogniser's "
                f"{hparams.blank_index}."
            )
    if getattr(hparams, "ratio_loss", None) and not any(chunker.has_router for chunker in chunkers):
        raise ValueError("ratio_loss teaches a router, and no chunker has one; leave it out.")


class CollapseDetector:
    """Warns when a chunker chooses nearly no frame, or nearly every frame, of all utterances.

    It looks at the chunker's own choices, which a floor may hide, and warns once for each collapse.

    Parameters
    ----------
    patience : int
        Optimizer steps in a row that make a collapse.
    margin : float
        What counts as "nearly": this fraction of the distance from the target to the extreme. With a target
        of 2 frames in a chunk and 0.2, a collapse is below 10% or above 90% of the frames.
    """

    def __init__(self, *, patience: int = 100, margin: float = 0.2):
        self.patience, self.margin = patience, margin
        self._collapsed_steps: dict[int, int] = {}

    def update(
        self, sums: Mapping[str, float], utterances: float, *, step: int, targets: Sequence[float | None]
    ) -> None:
        """Look at one optimizer step.

        Parameters
        ----------
        sums : mapping of str to float
            ``stage_sums`` of the step, merged over all ranks.
        utterances : float
            Number of utterances in the sums.
        step : int
            Number of the optimizer step.
        targets : sequence of float or None
            Target ratio of each stage at this step, None for a stage that learns nothing.
        """
        figures = stage_figures(sums, utterances)
        for i, (target, stage) in enumerate(zip(targets, figures, strict=True)):
            if target is None:
                continue
            low, high = sums[f"stage{i}_rate_min"], sums[f"stage{i}_rate_max"]
            none_chosen = high <= self.margin / target
            all_chosen = target > 1 and low >= 1 - self.margin * (1 - 1 / target)
            # Without an utterance of two frames or more, low is infinite and high minus infinity.
            collapsed = (none_chosen or all_chosen) and low <= high
            self._collapsed_steps[i] = self._collapsed_steps.get(i, 0) + 1 if collapsed else 0
            if self._collapsed_steps[i] == self.patience:
                logger.warning(
                    "Chunking stage %d has collapsed: for %d optimizer steps (up to step %d) its chunker "
                    "chose "
                    "nearly %s frame of every utterance. Kept fraction now: mean %.3f, min %.3f, max %.3f; "
                    "the "
                    "chunker's own choice, without first frames and the floor: %.3f to %.3f; mean p %.3f; "
                    "target "
                    "%.3f. Take another target_ratio, or for a router a lower lr_multiplier and more weight "
                    "for "
                    "the ratio loss, for the CTC's chunks other chunks_per_label.",
                    i,
                    self.patience,
                    step,
                    "no" if none_chosen else "each",
                    stage["kept"],
                    stage["kept_min"],
                    stage["kept_max"],
                    low,
                    high,
                    stage["prob"],
                    1 / target,
                )
