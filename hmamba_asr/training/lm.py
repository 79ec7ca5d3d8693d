"""LMBrain: a Transformer language model trained by the loop that trains recognisers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process
from torch import Tensor
from torch.utils.data import Dataset

from hmamba_asr.lengths import to_absolute, valid_mask
from hmamba_asr.training.asr import ASRBrain, Preempted
from hmamba_asr.training.losses import HybridLoss

logger = logging.getLogger(__name__)


@dataclass
class LMForward:
    """Logits (B, U + 1, vocab) after begin of sentence and each token, with what they should predict, -100
    past the end."""

    logits: Tensor
    targets: Tensor
    lengths: Tensor


class LMBrain(ASRBrain):
    """Trains SpeechBrain's ``TransformerLM`` on sentences: begin of sentence, tokens, end of sentence.

    All of the loop is :class:`ASRBrain`'s: resuming, SIGTERM, ranks, accumulation, the journal. A sentence
    stands for an utterance; its loss is the sum over its tokens, so that with batches of equally many
    sentences every token weighs the same.
    """

    measure = valid_loss_per = "tokens"
    best_key = "valid_loss"

    def compute_forward(self, batch, stage) -> LMForward:
        tokens, relative = batch.to(self.device).tokens
        lengths = to_absolute(relative, tokens.shape[1]) + 1
        targets = F.pad(tokens, (0, 1)).scatter(1, lengths.unsqueeze(1) - 1, self.hparams.eos_index)
        targets = targets.masked_fill(~valid_mask(lengths, targets.shape[1]), -100)
        # SpeechBrain's LM takes token 0, with which batches are padded, for padding.
        return LMForward(
            self.modules.model(F.pad(tokens, (1, 0), value=self.hparams.bos_index)), targets, lengths
        )

    def compute_objectives(self, predictions: LMForward, batch, stage) -> HybridLoss:
        """Negative log-likelihood of each sentence; label smoothing in training only."""
        smoothing = self.hparams.label_smoothing if stage == Stage.TRAIN else 0.0
        losses = F.cross_entropy(
            predictions.logits.float().transpose(1, 2),
            predictions.targets,
            reduction="none",
            label_smoothing=smoothing,
        ).sum(1)
        return HybridLoss(losses, {}, torch.zeros_like(losses, dtype=torch.bool))

    def _amounts(self, forward: LMForward, losses: HybridLoss) -> dict[str, Tensor]:
        return {"tokens": forward.lengths.sum()}

    def _target_ratios(self, forward: LMForward) -> list:
        return []

    def on_stage_start(self, stage, epoch=None) -> None:
        if stage == Stage.TRAIN:
            super().on_stage_start(stage, epoch)
        else:
            self._valid_sums, self._hypotheses, self._references = Counter(), {}, {}
            self._measure_wer = False

    def evaluate_batch(self, batch, stage) -> Tensor:
        sums = self._sums(batch)
        self._valid_sums.update(sums)
        if self._sigterm and self.ranks.world_size == 1:
            raise Preempted  # the end of the epoch's training is saved
        return torch.tensor(sums["loss"] / sums["tokens"])

    def _sums(self, batch) -> dict[str, float]:
        """Negative log-likelihood of a batch in nats, and its tokens with the ends of sentences."""
        with torch.no_grad(), self.evaluation_ctx:
            forward = self.compute_forward(batch, Stage.VALID)
            losses = self.compute_objectives(forward, batch, Stage.VALID)
        return {
            "loss": float(losses.total.double().sum()),
            "tokens": int(forward.lengths.sum()),
            "utterances": len(batch.id),
        }

    def _gather_validation(self) -> tuple[Counter, None]:
        sums, _ = super()._gather_validation()
        if if_main_process():
            logger.info("validation perplexity %.2f", math.exp(sums["loss"] / sums["tokens"]))
        return sums, None

    def perplexity(self, dataset: Dataset) -> dict[str, float]:
        """Perplexity of a text for each token, ends of sentences among them, and the number of these
        tokens."""
        self.modules.eval()
        self.on_stage_start(Stage.VALID)
        for batch in self.hparams.eval_loader(dataset, self.ranks):
            self._valid_sums.update(self._sums(batch))
        sums, _ = super()._gather_validation()
        return {"perplexity": math.exp(sums["loss"] / sums["tokens"]), "tokens": int(sums["tokens"])}
