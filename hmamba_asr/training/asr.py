"""ASRBrain: SpeechBrain's training loop around the hybrid model.

What it adds to ``sb.Brain``: every utterance weighs the same however batches, ranks and accumulation cut the
data; the random numbers of a step are a function of (seed, epoch, step, rank), so a resumed run draws what an
uninterrupted one would; all ranks decide together about non-finite losses and preemption.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import speechbrain as sb
import torch
import torch.distributed as dist
import torch.nn.functional as F
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from hmamba_asr.data.loaders import Ranks
from hmamba_asr.evaluation.wer import score_split
from hmamba_asr.lengths import to_absolute
from hmamba_asr.models.asr import ASROutput
from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.memory import peak_memory_mib
from hmamba_asr.training.chunk_statistics import (
    CollapseDetector,
    check_chunkers,
    named_figures,
    stage_figures,
    stage_sums,
)
from hmamba_asr.training.journal import TrainingJournal, TrainingTotals, merge_sums
from hmamba_asr.training.losses import HybridLoss, hybrid_loss

logger = logging.getLogger(__name__)
NONFINITE_POLICIES = ("stop", "skip")


class Preempted(Exception):
    """SIGTERM arrived and training stands saved."""


@dataclass
class Forward:
    """Model output with the targets it was computed for: targets (B, U) without begin or end of sentence."""

    output: ASROutput
    targets: Tensor
    target_lengths: Tensor
    audio_seconds: float


@dataclass
class _Window:
    """What one accumulation window has gathered: good batches, this rank's utterance IDs, sums over all
    ranks; and the target ratios of the encoder's chunking stages."""

    batches: int = 0
    ids: list[str] = field(default_factory=list)
    sums: Counter = field(default_factory=Counter)
    target_ratios: list[float | None] = field(default_factory=list)


class ASRBrain(sb.Brain):
    """Trains and validates an :class:`~hmamba_asr.models.asr.ASRModel`; everything it needs stands in the
    YAML.

    Raises
    ------
    ValueError
        For a wrong ``nonfinite`` policy, and in training when a loss or gradient is not finite and the policy
        is "stop".
    Preempted
        Out of ``fit`` after SIGTERM, once the state is saved.
    """

    measure = "audio_seconds"  # what training speed is counted in
    valid_loss_per = "utterances"
    best_key = "WER"  # lowest in the checkpoints that are kept and averaged

    def __init__(self, *args, tokenizer, **kwargs):
        super().__init__(*args, **kwargs)
        if self.hparams.nonfinite not in NONFINITE_POLICIES:
            raise ValueError(
                f"nonfinite is '{self.hparams.nonfinite}'; choose one of {', '.join(NONFINITE_POLICIES)}."
            )
        check_chunkers(self.modules.model, self.hparams)
        self.tokenizer = tokenizer
        distributed = dist.is_initialized()
        self.ranks = Ranks(dist.get_rank(), dist.get_world_size()) if distributed else Ranks()
        self.totals = TrainingTotals()
        self.journal = TrainingJournal(self.hparams.output_folder)
        self.checkpointer.add_recoverable("totals", self.totals)
        self.ratio_loss = self.hparams.ratio_loss if hasattr(self.hparams, "ratio_loss") else None
        self.collapse_detector = CollapseDetector()
        self._window = _Window()
        self._sigterm = False
        self._preempted = False

    # ---- data -------------------------------------------------------------------------------------------------------

    def make_dataloader(self, dataset, stage, ckpt_prefix="dataloader-", **kwargs):
        """The loader that the YAML describes for ``stage``, this rank's share of it."""
        if stage != Stage.TRAIN:  # only in testing is reading part of what is timed
            return self.hparams.eval_loader(dataset, self.ranks, num_workers=self.hparams.num_workers)
        loader = self.hparams.train_loader(dataset, self.ranks)
        self.train_sampler = loader.batch_sampler
        self.checkpointer.add_recoverable(f"{ckpt_prefix}{stage.name}", loader)
        self._batches_per_epoch = len(loader)
        return loader

    @property
    def raw_model(self):
        """The model itself, without what DDP wraps around it."""
        return getattr(self.modules.model, "module", self.modules.model)

    def stage_sums(self, output: ASROutput, losses: HybridLoss | None = None) -> dict[str, Tensor]:
        """Sums over a batch of what its chunking stages did; empty for an encoder without any."""
        if not output.encoded.stages:
            return {}
        frame_ms = 1000 * self.modules.features.hop_seconds * self.raw_model.frontend.stride
        return stage_sums(
            output.encoded.stages, frame_ms=frame_ms, ratios=losses.stage_ratios if losses else ()
        )

    # ---- model and loss ---------------------------------------------------------------------------------------------

    def compute_forward(self, batch, stage) -> Forward:
        """wavs -> (speed perturbation) -> features -> (SpecAugment) -> model."""
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
        return Forward(output, tokens, token_lengths, audio_seconds)

    def compute_objectives(self, predictions: Forward, batch, stage) -> HybridLoss:
        """Per-utterance losses; label smoothing in training only, so that validation losses compare across
        settings."""
        return hybrid_loss(
            predictions.output,
            predictions.targets,
            predictions.target_lengths,
            ctc_weight=self.hparams.ctc_weight,
            label_smoothing=self.hparams.label_smoothing if stage == Stage.TRAIN else 0.0,
            intermediate_ctc_weight=self.hparams.intermediate_ctc_weight,
            ratio=self.ratio_loss,
            step=self.optimizer_step,
            blank=self.hparams.blank_index,
            eos=self.hparams.eos_index,
        )

    # ---- one training step ------------------------------------------------------------------------------------------

    def fit_batch(self, batch) -> Tensor:
        """Forward and backward of one batch; an optimizer step when it closes the accumulation window."""
        self._seed_step()
        window = self._window
        # A skipped batch leaves the window open, and the next good one closes it: gradients reach the other
        # ranks only in the backward pass of the closing batch.
        closes = window.batches + 1 >= self.grad_accumulation_factor or self.step == self._batches_per_epoch
        with self.no_sync(not closes):
            with self.training_ctx:
                forward = self.compute_forward(batch, Stage.TRAIN)
                losses = self.compute_objectives(forward, batch, Stage.TRAIN)
            seen = self._sum_over_ranks(batch, forward, losses)
            window.ids.extend(batch.id)
            if seen["nonfinite"]:
                self._nonfinite("loss", batch.id, [not ok for ok in losses.total.isfinite().tolist()])
                self.totals.add(skipped=seen["utterances"])
            else:
                # DDP averages gradients over ranks; the sum over all utterances is what the window collects.
                self.scaler.scale(losses.total.sum() * self.ranks.world_size).backward()
                window.batches += 1
                merge_sums(window.sums, seen)
                window.target_ratios = self._target_ratios(forward)
        loss = seen["loss"] / seen["utterances"]
        if closes and not seen["nonfinite"]:
            self.optimizers_step()
        return torch.tensor(loss)

    def optimizers_step(self) -> None:
        """Average the window's gradients over its utterances, clip, step, and record."""
        window, utterances = self._window, self._window.sums["utterances"]
        self.hparams.lr_schedule(self.optimizer)
        rate = self.optimizer.param_groups[0]["lr"]
        for group, multiplier in zip(self.optimizer.param_groups, self._lr_multipliers, strict=True):
            group["lr"] = rate * multiplier  # a schedule gives all groups the same
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.modules.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, utterances)
        norm = float(torch.nn.utils.clip_grad_norm_(self.modules.parameters(), self.max_grad_norm))
        if np.isfinite(norm) or self.scaler.is_enabled():  # the scaler skips overflowing fp16 steps itself
            self.scaler.step(self.optimizer)
        else:
            self._nonfinite("gradient", window.ids, [True] * len(window.ids))
            self.totals.add(skipped=utterances)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        if self.device_type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        sums = {name: value for name, value in window.sums.items() if name not in ("nonfinite", "sigterm")}
        self.totals.add(**sums, seconds=seconds)
        if window.target_ratios and if_main_process():
            step, ratio = self.optimizer_step, self.ratio_loss
            targets = [
                n if ratio is None or n is None else ratio.target_at(step, n) for n in window.target_ratios
            ]
            self.collapse_detector.update(sums, utterances, step=step, targets=targets)
        self._window = _Window()
        if if_main_process() and self.optimizer_step % self.hparams.log_every_steps == 0:
            self.journal.write(
                "step",
                epoch=self.hparams.epoch_counter.current,
                optimizer_step=self.optimizer_step,
                **{name: sums[name] / utterances for name in sums if name.startswith("loss")},
                **named_figures(sums, utterances),
                learning_rate=self.optimizer.param_groups[0]["lr"],
                grad_norm=norm if np.isfinite(norm) else None,
                **{f"{self.measure}_per_second": sums[self.measure] / seconds},
                memory_mib=peak_memory_mib(self.device),
            )

    def _seed_step(self) -> None:
        place = [self.hparams.seed, self.hparams.epoch_counter.current, self.step, self.ranks.rank]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def _sum_over_ranks(self, batch, forward: Forward, losses: HybridLoss) -> dict[str, float]:
        """One exchange a batch: what all ranks must know, and what the log says about all of them."""
        total = losses.total.detach()
        named = {
            "utterances": len(batch.id),
            "infeasible": losses.infeasible.sum(),
            "nonfinite": (~total.isfinite()).any(),
            "sigterm": self._sigterm,
            "loss": total.sum(),
            **{f"loss_{name}": part.detach().sum() for name, part in losses.parts.items()},
            **self._amounts(forward, losses),
        }
        values = torch.stack(
            [torch.as_tensor(v, device=self.device, dtype=torch.float64) for v in named.values()]
        )
        everywhere = [values]
        if self.ranks.world_size > 1:
            everywhere = [torch.empty_like(values) for _ in range(self.ranks.world_size)]
            dist.all_gather(everywhere, values)
        seen: Counter = Counter()
        for part in everywhere:
            merge_sums(seen, dict(zip(named, part.tolist(), strict=True)))
        self._preempted = self._preempted or seen["sigterm"] > 0
        return seen

    def _amounts(self, forward: Forward, losses: HybridLoss) -> dict[str, float | Tensor]:
        """What else of this rank's batch the log gives: the ``measure``, and sums over utterances of what has
        a mean."""
        stages = forward.output.encoded.stages
        floored = {
            f"stage{i}_floored": (stage.chunk_lengths > stage.chosen).sum() for i, stage in enumerate(stages)
        }
        return {"audio_seconds": forward.audio_seconds, **self.stage_sums(forward.output, losses), **floored}

    def _target_ratios(self, forward: Forward) -> list[float | None]:
        """The target of each chunking stage."""
        return [stage.target_ratio for stage in forward.output.encoded.stages]

    def _nonfinite(self, what: str, ids: list[str], bad: list[bool]) -> None:
        """Name the utterances behind a non-finite ``what`` on every rank; raise if the YAML says stop.
        Collective."""
        named = [i for i, flag in zip(ids, bad, strict=True) if flag]
        if self.ranks.world_size > 1:
            everywhere: list = [None] * self.ranks.world_size
            dist.all_gather_object(everywhere, named)
            named = [i for part in everywhere for i in part]
        self.nonfinite_count += 1
        message = (
            f"the {what} is not finite at optimizer step {self.optimizer_step + 1} "
            f"(epoch {self.hparams.epoch_counter.current}); utterances: {', '.join(named)}"
        )
        if self.hparams.nonfinite == "stop":
            raise ValueError(
                f"{message}. Check these recordings, lower the learning rate, or set nonfinite: skip."
            )
        if self.nonfinite_count > self.nonfinite_patience:
            raise ValueError(
                f"{message}. That is more than nonfinite_patience ({self.nonfinite_patience}) in one epoch, so training "
                "stops; lower the learning rate or use fp32 precision."
            )
        if if_main_process():
            logger.warning("Skipped: %s.", message)

    def init_optimizers(self) -> None:
        """Weight decay for matrices only, not for biases, norms, or the scan's A, D and dt bias. Parameters
        with an ``lr_multiplier`` (routers) have a group of their own."""
        groups: dict[tuple[float, bool], dict] = {
            (1.0, False): {"params": []},
            (1.0, True): {"params": [], "weight_decay": 0.0},
        }
        for parameter in self.modules.parameters():
            if parameter.requires_grad:
                plain = parameter.dim() < 2 or getattr(parameter, "no_weight_decay", False)
                key = getattr(parameter, "lr_multiplier", 1.0), plain
                group = groups.setdefault(key, {"params": [], **({"weight_decay": 0.0} if plain else {})})
                group["params"].append(parameter)
        self.optimizer = self.opt_class(list(groups.values()))
        self._lr_multipliers = [multiplier for multiplier, _ in groups]
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverable("optimizer", self.optimizer)

    # ---- stages -----------------------------------------------------------------------------------------------------

    def fit(self, epoch_counter, *args, **kwargs) -> None:
        """SpeechBrain's ``fit``, with SIGTERM meaning: save at the next step and leave."""
        previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            super().fit(self._epochs(epoch_counter), *args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _epochs(self, epoch_counter):
        """The counter's epochs; none once ``optimizer_step_limit`` is reached, be it by an earlier run."""
        epochs = iter(epoch_counter)
        while not self._optimizer_step_limit_exceeded and (epoch := next(epochs, None)) is not None:
            yield epoch

    def _on_sigterm(self, signum, frame) -> None:
        self._sigterm = True

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if if_main_process():
            self.journal.rewind(self.optimizer_step, epochs_done=self.hparams.epoch_counter.current)
            if self.optimizer_step:
                logger.info("Resuming after optimizer step %d.", self.optimizer_step)
        self._fit_started, self._epochs_done = time.perf_counter(), 0

    def on_stage_start(self, stage, epoch=None) -> None:
        if stage == Stage.TRAIN:
            self._clock = (
                time.perf_counter()
            )  # training speed counts reading the data and saving, not validation
        elif stage == Stage.VALID:
            self._valid_sums, self._hypotheses, self._references = Counter(), {}, {}
            self._measure_wer = (
                epoch % self.hparams.valid_wer_every == 0 or epoch == self.hparams.epoch_counter.limit
            )

    def evaluate_batch(self, batch, stage) -> Tensor:
        """Validation loss and, in the epochs that measure it, hypotheses of this rank's share."""
        with self.evaluation_ctx:
            forward = self.compute_forward(batch, stage)
            losses = self.compute_objectives(forward, batch, stage)
        named = {
            "loss": losses.total.sum(),
            "infeasible": losses.infeasible.sum(),
            **self.stage_sums(forward.output, losses),
        }
        merge_sums(
            self._valid_sums,
            {"utterances": len(batch.id), **{name: float(value) for name, value in named.items()}},
        )
        if self._measure_wer:
            tokens = self.hparams.valid_search(forward.output)
            self._hypotheses.update(zip(batch.id, self.tokenizer.decode(tokens), strict=True))
            self._references.update(zip(batch.id, batch.wrd, strict=True))
        if self._sigterm and self.ranks.world_size == 1:
            raise Preempted  # the end of the epoch's training is saved
        return losses.total.mean().cpu()

    def on_stage_end(self, stage, stage_loss, epoch=None) -> None:
        if stage == Stage.TRAIN:
            # Good batches in front of a skipped last one never saw an optimizer step.
            self.totals.add(skipped=self._window.sums["utterances"])
            self._window = _Window()
            # Validation can be long: what was trained must not wait for it.
            self.checkpointer.save_within_epoch()
        elif stage == Stage.VALID:
            self._end_of_epoch(epoch)

    def _end_of_epoch(self, epoch: int) -> None:
        valid, wer = self._gather_validation()
        valid_loss = valid["loss"] / valid[self.valid_loss_per]
        totals, counter = self.totals, self.hparams.epoch_counter
        self._epochs_done += 1
        per_epoch = (time.perf_counter() - self._fit_started) / self._epochs_done
        if if_main_process():
            names = [n for n in totals.epoch if n.startswith("loss")]
            speed = totals.epoch[self.measure] / max(totals.epoch["seconds"], 1e-9)
            self.journal.write(
                "epoch",
                epoch=epoch,
                optimizer_step=self.optimizer_step,
                **{n: totals.epoch_mean(n) for n in names},
                valid_loss=valid_loss,
                valid_wer=wer,
                **{f"{self.measure}_per_second": speed},
                seconds=totals.epoch["seconds"],
                infeasible=totals.epoch["infeasible"],
                skipped=totals.epoch["skipped"],
                valid_infeasible=valid["infeasible"],
                **named_figures(totals.epoch, totals.epoch["utterances"]),
                **named_figures(valid, valid["utterances"], "valid_"),
            )
            logger.info(
                "epoch %d/%d | loss %.3f | valid loss %.3f%s | lr %.2e | %.0f %s/s | %s left%s%s",
                epoch,
                counter.limit,
                totals.epoch_mean("loss"),
                valid_loss,
                "" if wer is None else f" | valid WER {wer:.2f}%",
                self.optimizer.param_groups[0]["lr"],
                speed,
                self.measure.replace("_", " "),
                format_duration(per_epoch * (counter.limit - epoch)),
                "".join(
                    f" | kept {stage['kept']:.2f}" for stage in stage_figures(valid, valid["utterances"])
                ),
                f" | {totals.epoch['infeasible']:.0f} utterances too short for the CTC"
                if totals.epoch["infeasible"]
                else "",
            )
        self.totals.epoch.clear()
        self.totals.run["peak_memory_mib"] = max(
            self.totals.run["peak_memory_mib"], peak_memory_mib(self.device)
        )
        self.totals.run["world_size"] = self.ranks.world_size
        meta = {"epoch": epoch, "valid_loss": valid_loss}
        if wer is not None:
            meta["WER"] = wer
            if hasattr(counter, "update_metric"):
                counter.update_metric(wer)
        self.checkpointer.save_checkpoint(meta=meta)
        self.checkpointer.keep_only(num_to_keep=self.hparams.avg_checkpoints, min_key=self.best_key)
        if self._preempted:
            raise Preempted

    def _gather_validation(self) -> tuple[Counter, float | None]:
        sums, hypotheses, references = self._valid_sums, self._hypotheses, self._references
        self._preempted = self._sigterm
        if self.ranks.world_size > 1:
            parts: list = [None] * self.ranks.world_size
            dist.all_gather_object(parts, (sums, hypotheses, references, self._sigterm))
            self._preempted = any(part[3] for part in parts)
            sums = Counter()
            for part in parts:
                merge_sums(sums, part[0])
            hypotheses = {i: text for part in parts for i, text in part[1].items()}
            references = {i: text for part in parts for i, text in part[2].items()}
        wer = score_split(references, hypotheses).wer.rate if self._measure_wer else None
        return sums, wer

    # ---- checkpoints within an epoch --------------------------------------------------------------------------------

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt) -> bool:
        if self._window.batches:
            return False  # accumulated gradients are not part of a checkpoint
        return self._preempted or super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self) -> None:
        self.checkpointer.save_within_epoch()
        if self._preempted:
            raise Preempted
