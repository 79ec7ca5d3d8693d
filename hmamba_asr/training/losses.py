"""Training losses of each utterance, as named parts that sum to the total.

How to add a part to the loss of a recogniser:

1. Compute it in :func:`hybrid_loss` for each utterance, (B,), and put it with its weight into ``parts``. The
   journal then logs it as loss_<name>.
2. Let it be a sum over the utterance's tokens that does not depend on the rest of the batch.
3. Let one key of the YAML set it: a weight, or an object such as :class:`RatioLoss` if there is more to set.
4. Give the key a default in ``ASRBrain.defaults`` that leaves the part out, because older YAMLs lack the key.
   Pass its value on in ``ASRBrain.compute_objectives``.
5. Refuse impossible values in ``hybrid_loss`` or in the object's constructor. Refuse values that do not fit
   the model in :mod:`hmamba_asr.training.chunking_checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.hnet.ratio_loss import ratio_loss
from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.asr import ASROutput, min_ctc_steps
from hmamba_asr.models.outputs import StageOutput


@dataclass
class Losses:
    """Losses of a batch.

    Attributes
    ----------
    total : Tensor
        Loss of each utterance (or sentence), (B,).
    parts : dict of str to Tensor
        Its weighted parts, (B,) each, which sum to the total. Empty if there is only one.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class HybridLosses(Losses):
    """Losses of a recogniser.

    Attributes
    ----------
    infeasible : Tensor
        Bool, (B,): there are fewer encoder states than the CTC needs for the labels. The CTC part of such an
        utterance is zero.
    stage_ratios : tuple of Tensor
        Ratio loss of each chunking stage without its weight, (B,); empty without a ratio loss.
    """

    infeasible: Tensor = field(kw_only=True)
    stage_ratios: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RatioLoss:
    """Schedules of the ratio loss, which holds the chunks of every stage with a router at their target.

    Weight and target are functions of the optimizer step alone.

    Parameters
    ----------
    weight : float
        Final weight.
    warmup_steps : int
        Optimizer steps over which the weight rises from 0; with 0 it is final from the start.
    ramp_steps : int
        Optimizer steps over which the target rises from 1 frame per chunk to the chunker's ``target_ratio``;
        with 0 it is final from the start.

    Raises
    ------
    ValueError
        For a negative weight or number of steps.
    """

    weight: float
    warmup_steps: int = 0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("weight", "warmup_steps", "ramp_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"the ratio loss's {name} must be 0 or more, not {getattr(self, name)}.")

    def weight_at(self, step: int) -> float:
        """Return the weight after ``step`` optimizer steps."""
        return self.weight * _ramp(step, self.warmup_steps)

    def target_at(self, step: int, target_ratio: float) -> float:
        """Return the target after ``step`` optimizer steps, for a chunker with this final target."""
        return 1 + (target_ratio - 1) * _ramp(step, self.ramp_steps)

    def stage_losses(self, stages: Sequence[StageOutput], step: int) -> tuple[Tensor, ...]:
        """Return the loss of each stage without the weight, (B,); zero for a stage without a router."""
        return tuple(self._stage_loss(stage, step) for stage in stages)

    def _stage_loss(self, stage: StageOutput, step: int) -> Tensor:
        if not stage.has_router:
            return torch.zeros_like(stage.mean_prob)
        assert stage.target_ratio is not None
        return ratio_loss(
            stage.chosen_fraction,
            stage.mean_prob,
            target_ratio=stage.target_ratio,
            current_ratio=self.target_at(step, stage.target_ratio),
        )


def _ramp(step: int, steps: int) -> float:
    return 1.0 if steps == 0 else min(1.0, step / steps)


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
) -> HybridLosses:
    """Compute ctc_weight x CTC + (1 - ctc_weight) x label-smoothed cross-entropy for each utterance.

    Watanabe et al., "Hybrid CTC/Attention Architecture", https://doi.org/10.1109/JSTSP.2017.2763455. Each
    part is a sum over an utterance's tokens, and an utterance's loss does not depend on its batch mates. So
    the mean over utterances is the same for every division into batches, ranks and accumulation steps.

    The validation loss differs from the training loss in two ways. It has no label smoothing, so that it
    compares across settings. It has no intermediate CTC, because the model then returns no intermediate
    logits; the CTC on the output has the whole weight. The ratio loss is a part of both.

    Parameters
    ----------
    output : ASROutput
        The model's output.
    targets : Tensor
        Labels without begin or end of sentence, (B, U).
    target_lengths : Tensor
        Number of labels, (B,).
    ctc_weight : float
        Share of the CTC, in [0, 1].
    label_smoothing : float
        Share of the uniform distribution in the cross-entropy's targets.
    blank, eos : int
        Tokens of the CTC's blank and of the end of sentence.
    intermediate_ctc_weight : float, optional
        Share of the CTC part that the intermediate logits have, in [0, 1]. Lee and Watanabe, "Intermediate
        Loss Regularization for CTC-based Speech Recognition", https://arxiv.org/abs/2102.03216, eq. 13.
    ratio : RatioLoss, optional
        If given, the ratio losses of the chunking stages are added, times the number of tokens.
    step : int, optional
        Optimizer steps done, for the schedules of ``ratio``.

    Raises
    ------
    ValueError
        If a weight is not in [0, 1], if the attention loss has weight but the model was given no targets, or
        if there is a ratio loss and no chunking stage.
    """
    for name, weight in (("ctc_weight", ctc_weight), ("intermediate_ctc_weight", intermediate_ctc_weight)):
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], not {weight}.")
    needed = min_ctc_steps(targets, target_lengths)
    infeasible = needed > output.encoded.lengths

    def ctc(logits: Tensor, lengths: Tensor) -> Tensor:
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        loss = F.ctc_loss(
            log_probs, targets, lengths, target_lengths, blank=blank, reduction="none", zero_infinity=True
        )
        # zero_infinity alone would not do: it looks at the value, and a NaN passes.
        return torch.where((needed > lengths) & ~loss.isnan(), torch.zeros_like(loss), loss)

    parts = {}
    if ctc_weight > 0:
        intermediate = 0.0 if output.intermediate_logits is None else intermediate_ctc_weight
        parts["ctc"] = (1 - intermediate) * ctc_weight * ctc(output.ctc_logits, output.encoded.lengths)
        if intermediate > 0:
            assert output.intermediate_logits is not None and output.encoded.intermediate is not None
            lengths = output.encoded.intermediate.lengths
            parts["intermediate_ctc"] = intermediate * ctc_weight * ctc(output.intermediate_logits, lengths)
    if ctc_weight < 1:
        if output.attention_logits is None:
            raise ValueError("the attention loss has weight but the model was called without targets.")
        labels, lengths = append_end_of_sentence(targets, target_lengths, eos)
        losses = cross_entropy(output.attention_logits, labels, lengths, label_smoothing=label_smoothing)
        parts["attention"] = (1 - ctc_weight) * losses
    stage_ratios: tuple[Tensor, ...] = ()
    if ratio is not None:
        if not output.encoded.stages:
            raise ValueError("there is a ratio loss, but the encoder has no chunking stage.")
        stage_ratios = ratio.stage_losses(output.encoded.stages, step)
        # Times the number of tokens, as the other parts: a long utterance has the same share in all of them.
        parts["ratio"] = ratio.weight_at(step) * (target_lengths + 1) * sum(stage_ratios)
    total = torch.as_tensor(sum(parts.values()))
    return HybridLosses(total, parts, infeasible=infeasible, stage_ratios=stage_ratios)


def append_end_of_sentence(tokens: Tensor, lengths: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, U + 1) with ``eos`` after the last one of each row, and their lengths (B,)."""
    return F.pad(tokens, (0, 1)).scatter(1, lengths.unsqueeze(1), eos), lengths + 1


def cross_entropy(logits: Tensor, labels: Tensor, lengths: Tensor, *, label_smoothing: float) -> Tensor:
    """Sum the label-smoothed cross-entropy over the tokens of each row, in single precision.

    Parameters
    ----------
    logits : Tensor
        (B, U, vocab).
    labels : Tensor
        (B, U); those past a row's length do not count.
    lengths : Tensor
        Number of labels, (B,).
    label_smoothing : float
        Share of the uniform distribution in the targets.

    Returns
    -------
    Tensor
        (B,).
    """
    labels = labels.masked_fill(~valid_mask(lengths, labels.shape[1]), -100)
    losses = F.cross_entropy(
        logits.float().transpose(1, 2),
        labels,
        reduction="none",
        ignore_index=-100,
        label_smoothing=label_smoothing,
    )
    return losses.sum(1)
