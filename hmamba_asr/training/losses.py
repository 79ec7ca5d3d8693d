"""The hybrid CTC / attention loss as named parts that sum to the total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.asr import ASROutput, ctc_frames_needed
from hmamba_asr.models.outputs import StageOutput
from hmamba_asr.modules.chunk_ops import ratio_loss


@dataclass(frozen=True, kw_only=True)
class RatioLoss:
    """Holds the chunks of every learned stage at their target; weight and target are functions of the
    optimizer step alone.

    The weight rises from 0 to ``weight`` over ``warmup_steps``; the targets rise from 1 state in a chunk to
    the chunkers' ``target_ratio`` over ``ramp_steps``. With 0 steps they are there from the start.

    Raises
    ------
    ValueError
        For a negative weight or number of steps.
    """

    weight: float
    warmup_steps: int = 0
    ramp_steps: int = 0

    def __post_init__(self):
        for name in ("weight", "warmup_steps", "ramp_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"the ratio loss's {name} must be 0 or more, not {getattr(self, name)}.")

    def weight_at(self, step: int) -> float:
        """Weight after ``step`` optimizer steps."""
        return self.weight * _ramp(step, self.warmup_steps)

    def target_at(self, step: int, target_ratio: float) -> float:
        """What ``target_ratio`` is after ``step`` optimizer steps."""
        return 1 + (target_ratio - 1) * _ramp(step, self.ramp_steps)

    def of_stages(self, stages: Sequence[StageOutput], step: int) -> tuple[Tensor, ...]:
        """Each stage's loss (B,), without the weight."""
        return tuple(
            torch.zeros_like(stage.mean_prob)
            if stage.target_ratio is None
            else ratio_loss(
                stage.chosen_fraction,
                stage.mean_prob,
                target_ratio=stage.target_ratio,
                current_ratio=self.target_at(step, stage.target_ratio),
            )
            for stage in stages
        )


def _ramp(step: int, steps: int) -> float:
    return 1.0 if steps == 0 else min(1.0, step / steps)


@dataclass
class HybridLoss:
    """Per-utterance losses (B,). ``parts`` are weighted and sum to ``total``; ``infeasible`` (B,) marks
    utterances whose labels the CTC cannot emit in the frames they have, and whose CTC part is therefore zero;
    ``stage_ratios`` are the chunking stages' ratio losses (B,) without their weight."""

    total: Tensor
    parts: dict[str, Tensor]
    infeasible: Tensor
    stage_ratios: tuple[Tensor, ...] = ()


def hybrid_loss(
    output: ASROutput,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    ctc_weight: float,
    label_smoothing: float,
    blank: int,
    eos: int,
    intermediate_ctc_weight: float = 0.0,
    ratio: RatioLoss | None = None,
    step: int = 0,
) -> HybridLoss:
    """ctc_weight x CTC + (1 - ctc_weight) x label-smoothed cross-entropy, each summed over an utterance's
    tokens, and with ``ratio`` the chunking stages' ratio losses, for each token, as they are after ``step``
    optimizer steps.

    Watanabe et al., "Hybrid CTC/Attention Architecture", https://doi.org/10.1109/JSTSP.2017.2763455. targets
    (B, U) without begin or end of sentence, target_lengths (B,). An utterance's loss does not depend on its
    batch mates; sums, not means, so that averaging over utterances is exact however they are cut into
    batches, ranks and accumulation steps.

    Of the CTC part, the share ``intermediate_ctc_weight`` is that of the intermediate logits (Lee and
    Watanabe, "Intermediate Loss Regularization for CTC-based Speech Recognition",
    https://arxiv.org/abs/2102.03216, eq. 13).
    """
    for name, weight in (("ctc_weight", ctc_weight), ("intermediate_ctc_weight", intermediate_ctc_weight)):
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], not {weight}.")
    needed = ctc_frames_needed(targets, target_lengths)
    infeasible = needed > output.encoded.lengths

    def ctc(logits: Tensor, lengths: Tensor) -> Tensor:
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        loss = F.ctc_loss(
            log_probs, targets, lengths, target_lengths, blank=blank, reduction="none", zero_infinity=True
        )
        # Not zero_infinity alone: its test is on the value, which a NaN passes.
        return torch.where((needed > lengths) & ~loss.isnan(), torch.zeros_like(loss), loss)

    parts = {}
    if ctc_weight > 0:
        intermediate = 0.0 if output.intermediate_logits is None else intermediate_ctc_weight
        parts["ctc"] = (1 - intermediate) * ctc_weight * ctc(output.ctc_logits, output.encoded.lengths)
        if intermediate > 0:
            lengths = output.encoded.intermediate.lengths
            parts["intermediate_ctc"] = intermediate * ctc_weight * ctc(output.intermediate_logits, lengths)
    if ctc_weight < 1:
        if output.attention_logits is None:
            raise ValueError("the attention loss has weight but the model was called without targets.")
        logits = output.attention_logits.float()
        labels = F.pad(targets, (0, 1)).scatter(1, target_lengths.unsqueeze(1), eos)
        labels = labels.masked_fill(~valid_mask(target_lengths + 1, labels.shape[1]), -100)
        token_losses = F.cross_entropy(
            logits.transpose(1, 2),
            labels,
            reduction="none",
            ignore_index=-100,
            label_smoothing=label_smoothing,
        )
        parts["attention"] = (1 - ctc_weight) * token_losses.sum(1)
    stage_ratios: tuple[Tensor, ...] = ()
    if ratio is not None:
        if not output.encoded.stages:
            raise ValueError("there is a ratio loss, but the encoder has no chunking stage.")
        stage_ratios = ratio.of_stages(output.encoded.stages, step)
        # Scaled with the label count, as the other parts are: a long utterance weighs more in all of them
        # alike.
        parts["ratio"] = ratio.weight_at(step) * (target_lengths + 1) * sum(stage_ratios)
    return HybridLoss(sum(parts.values()), parts, infeasible, stage_ratios)
