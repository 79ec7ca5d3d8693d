"""Checks of the chunking stages: of their settings before training, and for a collapse during it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from hmamba_asr.evaluation.chunk_statistics import stage_figures
from hmamba_asr.models.asr import ASRModel

logger = logging.getLogger(__name__)


def check_chunkers(model: ASRModel, hparams: SimpleNamespace) -> None:
    """Check that the losses train what the chunkers read.

    Parameters
    ----------
    model : ASRModel
        The model that is to be trained.
    hparams : SimpleNamespace
        The YAML's values. The function reads ctc_weight, intermediate_ctc_weight, blank_index and ratio_loss.

    Raises
    ------
    ValueError
        If a CTCChunker reads a CTC that no loss trains or that has another blank, or a ratio loss has no
        router to train.
    """
    chunkers = model.encoder.chunkers
    for chunker in (chunker for chunker in chunkers if chunker.reads_ctc):
        if not (hparams.ctc_weight > 0 and hparams.intermediate_ctc_weight > 0):
            raise ValueError(
                "a CTCChunker reads the CTC on the frames, which no loss trains; set ctc_weight and "
                "intermediate_ctc_weight above 0."
            )
        if chunker.blank_index != hparams.blank_index:
            raise ValueError(
                f"the CTCChunker's blank_index is {chunker.blank_index} and the recogniser's "
                f"{hparams.blank_index}; make them equal."
            )
    if hparams.ratio_loss is not None and not any(chunker.kind == "router" for chunker in chunkers):
        raise ValueError("ratio_loss trains a router, and no chunker has one; leave it out.")


class CollapseDetector:
    """Warns when a chunker chooses nearly no frame, or nearly every frame, of all utterances.

    The detector looks at the frames that the chunker itself chose. It does not count the frames that a floor
    added, since these would hide a collapse. It warns once per collapse.

    Parameters
    ----------
    patience : int
        Number of consecutive optimizer steps after which a collapse is reported.
    margin : float
        What counts as "nearly": this fraction of the distance from the target to the extreme. With a target
        of 2 frames per chunk and a margin of 0.2, a chunker has collapsed if it chooses less than 10% or more
        than 90% of the frames.
    """

    def __init__(self, *, patience: int = 100, margin: float = 0.2):
        self.patience, self.margin = patience, margin
        self._collapsed_steps: dict[int, int] = {}

    def update(
        self, sums: Mapping[str, float], utterances: float, *, step: int, targets: Sequence[float | None]
    ) -> None:
        """Check one optimizer step.

        Parameters
        ----------
        sums : mapping of str to float
            ``stage_sums`` of the step, merged over all ranks.
        utterances : float
            Number of utterances in the sums.
        step : int
            Number of the optimizer step.
        targets : sequence of float or None
            Target ratio of each stage at this step, None for a stage without one.
        """
        for i, (target, stage) in enumerate(zip(targets, stage_figures(sums, utterances), strict=True)):
            if target is None:
                continue
            low, high = sums[f"stage{i}_rate_min"], sums[f"stage{i}_rate_max"]
            none_chosen = high <= self.margin / target
            all_chosen = target > 1 and low >= 1 - self.margin * (1 - 1 / target)
            # If no utterance has two frames or more, low is infinite and high minus infinity.
            collapsed = (none_chosen or all_chosen) and low <= high
            self._collapsed_steps[i] = self._collapsed_steps.get(i, 0) + 1 if collapsed else 0
            if self._collapsed_steps[i] == self.patience:
                logger.warning(
                    "Chunking stage %d has collapsed: for %d optimizer steps (up to step %d) its chunker"
                    " chose nearly %s frame of every utterance. Kept fraction now: mean %.3f, min %.3f,"
                    " max %.3f; the chunker's own choice, without first frames and the floor: %.3f to %.3f;"
                    " mean p %.3f; target %.3f. Try another target_ratio. For a router, also try a lower"
                    " lr_multiplier and more weight for the ratio loss; for CTCChunker, other"
                    " chunks_per_label.",
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
