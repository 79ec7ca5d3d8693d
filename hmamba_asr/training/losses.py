"""The hybrid CTC / attention loss as named parts that sum to the total."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.asr import ASROutput, ctc_frames_needed


@dataclass
class HybridLoss:
    """Per-utterance losses (B,). ``parts`` are weighted and sum to ``total``; ``infeasible`` (B,) marks utterances whose
    labels the CTC cannot emit in the frames they have, and whose CTC part is therefore zero."""

    total: Tensor
    parts: dict[str, Tensor]
    infeasible: Tensor


def hybrid_loss(
    output: ASROutput,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    ctc_weight: float,
    label_smoothing: float,
    blank: int,
    eos: int,
    ratio_loss_weight: float = 0.0,
) -> HybridLoss:
    """ctc_weight x CTC + (1 - ctc_weight) x label-smoothed cross-entropy, each summed over an utterance's tokens, and
    with ``ratio_loss_weight`` the chunking stages' ratio losses, for each token.

    Watanabe et al., "Hybrid CTC/Attention Architecture", https://doi.org/10.1109/JSTSP.2017.2763455. targets (B, U) without
    begin or end of sentence, target_lengths (B,). An utterance's loss does not depend on its batch mates; sums, not means,
    so that averaging over utterances is exact however they are cut into batches, ranks and accumulation steps.
    """
    if not 0.0 <= ctc_weight <= 1.0:
        raise ValueError(f"ctc_weight must lie in [0, 1], not {ctc_weight}.")
    lengths = output.encoded.lengths
    infeasible = ctc_frames_needed(targets, target_lengths) > lengths
    parts = {}
    if ctc_weight > 0:
        log_probs = output.ctc_logits.float().log_softmax(-1).transpose(0, 1)
        ctc = F.ctc_loss(log_probs, targets, lengths, target_lengths, blank=blank, reduction="none", zero_infinity=True)
        # Not zero_infinity alone: its test is on the value, which a NaN passes.
        parts["ctc"] = ctc_weight * torch.where(infeasible & ~ctc.isnan(), torch.zeros_like(ctc), ctc)
    if ctc_weight < 1:
        if output.attention_logits is None:
            raise ValueError("the attention loss has weight but the model was called without targets.")
        logits = output.attention_logits.float()
        labels = F.pad(targets, (0, 1)).scatter(1, target_lengths.unsqueeze(1), eos)
        labels = labels.masked_fill(~valid_mask(target_lengths + 1, labels.shape[1]), -100)
        token_losses = F.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=-100, label_smoothing=label_smoothing
        )
        parts["attention"] = (1 - ctc_weight) * token_losses.sum(1)
    if ratio_loss_weight > 0:
        if not output.encoded.stages:
            raise ValueError("the ratio loss has weight but the encoder has no chunking stage.")
        # Scaled with the label count, as the other parts are: a long utterance weighs more in all of them alike.
        ratio = sum(stage.ratio_loss for stage in output.encoded.stages)
        parts["ratio"] = ratio_loss_weight * (target_lengths + 1) * ratio
    return HybridLoss(sum(parts.values()), parts, infeasible)
