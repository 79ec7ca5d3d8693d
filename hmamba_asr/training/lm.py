"""LMBrain: trains a Transformer language model."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from torch import Tensor
from torch.utils.data import Dataset

from hmamba_asr.lengths import to_absolute
from hmamba_asr.training.losses import Losses, append_end_of_sentence, cross_entropy
from hmamba_asr.training.trainer import Trainer


@dataclass
class Predictions:
    """The logits after the begin of sentence and after each token, with their targets.

    Attributes
    ----------
    logits : Tensor
        (B, U + 1, vocab).
    targets : Tensor
        Tokens and end of sentence, (B, U + 1).
    lengths : Tensor
        Number of targets, (B,).
    """

    logits: Tensor
    targets: Tensor
    lengths: Tensor


class LMBrain(Trainer):
    """Trains SpeechBrain's ``TransformerLM`` on sentences: begin of sentence, tokens, end of sentence.

    A sentence's loss is the sum over its tokens. So with batches of equally many sentences every token has
    the same weight.
    """

    measure = valid_loss_per = "tokens"
    best_key = "valid_loss"
    speed_unit = "tokens/s"
    items = "sentences"
    leaves = "export/"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # SpeechBrain's model mixes two kinds of masks, which no user can change.
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")

    def compute_forward(self, batch: PaddedBatch, stage: Stage) -> Predictions:
        """Compute the logits of every next token."""
        tokens, relative = batch.to(self.device).tokens
        lengths = to_absolute(relative, tokens.shape[1])
        targets, target_lengths = append_end_of_sentence(tokens, lengths, self.hparams.eos_index)
        # Batches are padded with token 0, which SpeechBrain's language model takes for padding.
        logits = self.modules.model(F.pad(tokens, (1, 0), value=self.hparams.bos_index))
        return Predictions(logits, targets, target_lengths)

    def compute_objectives(self, predictions: Predictions, batch: PaddedBatch, stage: Stage) -> Losses:
        """Compute the negative log-likelihood of each sentence, with label smoothing in training only."""
        smoothing = self.hparams.label_smoothing if stage == Stage.TRAIN else 0.0
        losses = cross_entropy(
            predictions.logits, predictions.targets, predictions.lengths, label_smoothing=smoothing
        )
        # A validation text can be long: its sum is in double precision.
        return Losses(losses if stage == Stage.TRAIN else losses.double())

    def batch_sums(self, predictions: Predictions, losses: Losses, stage: Stage) -> dict[str, float | Tensor]:
        """Return the number of tokens, ends of sentences included."""
        return {"tokens": predictions.lengths.sum()}

    def epoch_remarks(
        self, sums: Mapping[str, float], valid: Mapping[str, float], metrics: Mapping[str, float]
    ) -> list[str]:
        """Return the validation perplexity."""
        return [f"valid perplexity {_perplexity(valid):8.2f}"]

    def perplexity(self, dataset: Dataset) -> dict[str, float]:
        """Measure the perplexity of a text over all ranks.

        Returns
        -------
        dict
            perplexity (per token, ends of sentences included) and tokens (their number).
        """
        self.modules.eval()
        sums: Counter = Counter()
        with torch.no_grad():
            for batch in self.hparams.eval_loader(dataset, self.ranks):
                self.add_validation_batch(batch, sums)
        merged = self.merge_over_ranks(sums)
        return {"perplexity": _perplexity(merged), "tokens": int(merged["tokens"])}


def _perplexity(sums: Mapping[str, float]) -> float:
    return math.exp(sums["loss"] / sums["tokens"])
