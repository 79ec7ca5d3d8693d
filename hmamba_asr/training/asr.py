"""ASRBrain: trains the hybrid CTC/attention model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from torch import Tensor

from hmamba_asr.decoding.search import Search
from hmamba_asr.evaluation.chunk_statistics import flatten_figures, stage_figures, stage_sums
from hmamba_asr.evaluation.results import TrainingRecord
from hmamba_asr.evaluation.run import TrainedSystem
from hmamba_asr.evaluation.wer import score_split
from hmamba_asr.lengths import to_absolute
from hmamba_asr.models.asr import ASROutput
from hmamba_asr.training.chunking_checks import CollapseDetector, check_chunkers
from hmamba_asr.training.losses import HybridLosses, hybrid_loss
from hmamba_asr.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass
class Predictions:
    """The model's output and the targets that it was given.

    Attributes
    ----------
    output : ASROutput
        What the model returned.
    targets : Tensor
        Labels without begin or end of sentence, (B, U).
    target_lengths : Tensor
        Number of labels, (B,).
    audio_seconds : float
        Duration of the batch's recordings without padding.
    """

    output: ASROutput
    targets: Tensor
    target_lengths: Tensor
    audio_seconds: float


class ASRBrain(Trainer):
    """Trains and validates an :class:`~hmamba_asr.models.asr.ASRModel`.

    Raises
    ------
    ValueError
        If a chunker reads a CTC that no loss trains, a ratio loss has no router to train, or a search is no
        :class:`~hmamba_asr.decoding.search.Search`; besides, what :class:`Trainer` raises.
    """

    measure = "audio_seconds"
    valid_loss_per = "utterances"
    best_key = "WER"
    speed_unit = "audio-s/s"
    items = "utterances"
    leaves = "results.json"
    defaults = {"intermediate_ctc_weight": 0.0, "ratio_loss": None}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_chunkers(self.raw_model, self.hparams)
        for name, search in {**self.hparams.test_searches, "valid_search": self.hparams.valid_search}.items():
            if not isinstance(search, Search):  # evaluation would fail only after training
                raise ValueError(
                    f"the search {name} is of the class {type(search).__name__}; derive it from "
                    "hmamba_asr.decoding.search.Search, which says what a search must do."
                )
        self.tokenizer = self.hparams.tokenizer
        self.collapse_detector = CollapseDetector()
        self._measures_wer = False
        self._hypotheses: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._warned_of_infeasible = False

    # ---- model and loss ------------------------------------------------------------------------------------

    def compute_forward(self, batch: PaddedBatch, stage: Stage) -> Predictions:
        """Compute the features and the model's output, with augmentation in training only."""
        batch = batch.to(self.device)
        wavs, relative = batch.sig
        audio_seconds = float(sum(batch.duration))
        if stage == Stage.TRAIN and self.hparams.speed_perturb is not None:
            wavs = self.hparams.speed_perturb(wavs)
        features, lengths = self.modules.features(wavs, to_absolute(relative, wavs.shape[1]))
        if stage == Stage.TRAIN and self.hparams.spec_augment is not None:
            features = self.hparams.spec_augment(features)
        tokens, relative = batch.tokens
        token_lengths = to_absolute(relative, tokens.shape[1])
        tokens_bos = F.pad(tokens, (1, 0), value=self.hparams.bos_index)
        intermediate = stage == Stage.TRAIN and self.hparams.intermediate_ctc_weight > 0
        output = self.modules.model(features, lengths, tokens_bos, token_lengths + 1, intermediate)
        return Predictions(output, tokens, token_lengths, audio_seconds)

    def compute_objectives(self, predictions: Predictions, batch: PaddedBatch, stage: Stage) -> HybridLosses:
        """Compute the loss of each utterance; :func:`hybrid_loss` says what validation leaves out."""
        return hybrid_loss(
            predictions.output,
            predictions.targets,
            predictions.target_lengths,
            ctc_weight=self.hparams.ctc_weight,
            label_smoothing=self.hparams.label_smoothing if stage == Stage.TRAIN else 0.0,
            intermediate_ctc_weight=self.hparams.intermediate_ctc_weight,
            ratio=self.hparams.ratio_loss,
            step=self.optimizer_step,
            blank=self.hparams.blank_index,
            eos=self.hparams.eos_index,
        )

    # ---- figures for the journal ---------------------------------------------------------------------------

    def batch_sums(
        self, predictions: Predictions, losses: HybridLosses, stage: Stage
    ) -> dict[str, float | Tensor]:
        """Return the number of infeasible utterances and the sums of the chunking stages.

        In training, also return the seconds of audio and stage<i>_floored, the number of utterances in which
        a floor added chunks to those that the chunker chose.
        """
        chunking_stages = predictions.output.encoded.stages
        frame_ms = 1000 * self.modules.features.hop_seconds * self.raw_model.frontend.stride
        sums: dict[str, float | Tensor] = {
            "infeasible": losses.infeasible.sum(),
            **stage_sums(chunking_stages, frame_ms=frame_ms, ratios=losses.stage_ratios),
        }
        if stage == Stage.TRAIN:
            sums["audio_seconds"] = predictions.audio_seconds
            for i, chunking_stage in enumerate(chunking_stages):
                sums[f"stage{i}_floored"] = (chunking_stage.num_chunks > chunking_stage.num_chosen).sum()
        return sums

    def on_optimizer_step(self, predictions: Predictions, sums: Mapping[str, float]) -> None:
        """Warn when a chunker collapses."""
        ratio_loss, step = self.hparams.ratio_loss, self.optimizer_step
        targets = []
        for chunking_stage in predictions.output.encoded.stages:
            target = chunking_stage.target_ratio
            if ratio_loss is not None and chunking_stage.has_router and target is not None:
                target = ratio_loss.target_at(step, target)
            targets.append(target)
        if targets and self.ranks.rank == 0:
            self.collapse_detector.update(sums, sums["utterances"], step=step, targets=targets)

    def step_figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the figures of the chunking stages."""
        return flatten_figures(sums, sums["utterances"])

    def epoch_figures(
        self, sums: Mapping[str, float], valid: Mapping[str, float], metrics: Mapping[str, float]
    ) -> dict[str, float | None]:
        """Return the validation WER, infeasible utterances, and the figures of the chunking stages."""
        return {
            "valid_wer": metrics.get("WER"),
            "infeasible": sums["infeasible"],
            "valid_infeasible": valid["infeasible"],
            **flatten_figures(sums, sums["utterances"]),
            **flatten_figures(valid, valid["utterances"], "valid_"),
        }

    def epoch_remarks(
        self, sums: Mapping[str, float], valid: Mapping[str, float], metrics: Mapping[str, float]
    ) -> list[str]:
        """Return the validation WER and kept fractions. The first infeasible utterances cause a warning."""
        if sums["infeasible"] and not self._warned_of_infeasible:
            self._warned_of_infeasible = True
            logger.warning(
                "%d utterances of this epoch have fewer encoder states than the CTC needs for their labels. "
                "They count without the CTC loss. train_log.jsonl has their number for each epoch.",
                sums["infeasible"],
            )
        wer = f"{metrics['WER']:6.2f}%" if "WER" in metrics else f"{'-':>7}"
        kept = [f"kept {figures['kept']:.2f}" for figures in stage_figures(valid, valid["utterances"])]
        return [f"valid WER {wer}", *kept]

    # ---- validation ----------------------------------------------------------------------------------------

    def on_validation_start(self, epoch: int) -> None:
        """Measure the WER every ``valid_wer_every`` epochs, and after the last one."""
        self._hypotheses, self._references = {}, {}
        self._measures_wer = (
            epoch % self.hparams.valid_wer_every == 0 or epoch == self.hparams.epoch_counter.limit
        )

    def on_validation_batch(self, batch: PaddedBatch, predictions: Predictions) -> None:
        """Decode the batch if this epoch measures the WER."""
        if self._measures_wer:
            tokens = self.hparams.valid_search(predictions.output)
            self._hypotheses.update(zip(batch.id, self.tokenizer.decode(tokens), strict=True))
            self._references.update(zip(batch.id, batch.wrd, strict=True))

    def validation_metrics(self) -> dict[str, float]:
        """Return the WER in percent, or nothing if this epoch does not measure it."""
        if not self._measures_wer:
            return {}
        references: dict[str, str] = {}
        hypotheses: dict[str, str] = {}
        for rank_references, rank_hypotheses in self.gather((self._references, self._hypotheses)):
            references |= rank_references
            hypotheses |= rank_hypotheses
        return {"WER": score_split(references, hypotheses).wer.rate}

    # ---- evaluation ----------------------------------------------------------------------------------------

    def trained_system(
        self, *, name: str, hparams_text: str, overrides: Mapping[str, str] | None = None
    ) -> TrainedSystem:
        """Load the average of the best checkpoints, and return what the evaluation needs.

        Parameters
        ----------
        name : str
            The run's name.
        hparams_text : str
            The resolved YAML.
        overrides : mapping of str to str, optional
            Keys of the YAML that the command line changed, with their text.
        """
        checkpoints = self.load_best()
        run, hparams = self.totals.run, self.hparams
        seconds = run["seconds"]
        training = TrainingRecord(
            train_splits=list(hparams.train_splits),
            epochs=hparams.epoch_counter.current,
            optimizer_steps=self.optimizer_step,
            audio_seconds=run["audio_seconds"],
            seconds=seconds,
            audio_seconds_per_second=run["audio_seconds"] / seconds if seconds else None,
            peak_memory_mib=run["peak_memory_mib"],
            precision=self.precision,
            world_size=int(run["world_size"]),
        )
        return TrainedSystem(
            name=name,
            overrides=dict(overrides or {}),
            hparams_text=hparams_text,
            seed=hparams.seed,
            output_folder=Path(hparams.output_folder),
            features=self.modules.features,
            model=self.raw_model,
            tokenizer=self.tokenizer,
            searches=hparams.test_searches,
            loader=hparams.eval_loader,
            device=torch.device(self.device),
            ranks=self.ranks,
            precision=self.eval_precision,
            checkpoints=checkpoints,
            training=training,
            progress=not self.noprogressbar,
        )
