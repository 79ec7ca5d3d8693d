"""Trainer: the training loop that recognisers and language models share, on SpeechBrain's Brain.

It adds to ``sb.Brain``:

- Every item (utterance or sentence) has the same weight, whatever batch, rank and accumulation step it is
  in.
- The random numbers of a step are a function of (seed, epoch, step, rank), so a resumed run draws what an
  uninterrupted one draws.
- All ranks decide together about non-finite losses and preemption.
- A checkpoint is complete or absent. A resumed run goes on after the last saved optimizer step.
- A journal records every ``log_every_steps``-th step and every epoch.

Overridden hooks of ``sb.Brain`` (1.1), so that an upgrade knows where to look:

- ``fit``: handles SIGTERM, stops before the first epoch once ``optimizer_step_limit`` is reached, and shows
  progress bars of its own.
- ``make_dataloader``: builds the YAML's loaders, with this rank's share of the batches.
- ``on_fit_start``: also rewinds the journal, and says how much there is to train.
- ``init_optimizers``: parameter groups without weight decay and with an ``lr_multiplier``.
- ``fit_batch``, ``optimizers_step``: weight every item equally, while SpeechBrain divides the loss by the
  accumulation factor. They also keep the accumulation window open after a skipped batch, and clip the
  gradients of all groups together.
- ``evaluate_batch``, ``on_stage_start``, ``on_stage_end``: validation sums over all ranks, and checkpoints.
- ``evaluate``: refuses, because ``hmamba_asr.evaluation`` makes the results.
- ``_should_save_intra_epoch_ckpt`` (private): never saves inside an accumulation window; when preempted,
  saves at once after it.
- ``_save_intra_epoch_ckpt`` (private): saves through :class:`AtomicCheckpointer`, and ends a preempted run.

It also reads ``_optimizer_step_limit_exceeded`` (private) and relies on ``_fit_train`` to count ``step``
within the epoch, to reset ``nonfinite_count``, and to call the two private hooks after each batch.
"""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import speechbrain as sb
import torch
import torch.distributed as dist
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.utils.distributed import if_main_process
from torch import Tensor
from torch.utils.data import Dataset

from hmamba_asr.evaluation.run import batch_description
from hmamba_asr.models.weights import best_average
from hmamba_asr.system.hardware import hardware
from hmamba_asr.system.memory import peak_memory_mib
from hmamba_asr.system.ranks import Ranks
from hmamba_asr.system.screen import say, say_fact
from hmamba_asr.system.sums import merge_sums
from hmamba_asr.training.first_screen import device_fact, model_fact, resume_fact, training_fact
from hmamba_asr.training.journal import TrainingJournal, TrainingTotals
from hmamba_asr.training.launch import Preempted
from hmamba_asr.training.losses import Losses
from hmamba_asr.training.progress import TrainingProgress

if TYPE_CHECKING:
    from typing_extensions import Self

    from hmamba_asr.training.experiment import Experiment

logger = logging.getLogger(__name__)
NONFINITE_POLICIES = ("stop", "skip")


@dataclass
class AccumulationWindow:
    """The batches since the last optimizer step.

    Attributes
    ----------
    batches : int
        Number of batches whose gradients were accumulated.
    ids : list of str
        IDs of this rank's items, those of skipped batches included.
    sums : Counter
        Sums over the accumulated batches of all ranks.
    """

    batches: int = 0
    ids: list[str] = field(default_factory=list)
    sums: Counter = field(default_factory=Counter)


class Trainer(sb.Brain):
    """Trains and validates ``modules.model`` as the YAML says.

    A subclass defines ``compute_forward``, ``compute_objectives`` (which returns :class:`Losses`) and the
    class attributes below. It may override ``batch_sums`` and the other methods under "for subclasses".

    Attributes
    ----------
    measure : str
        Name of the sum by which training speed is measured.
    valid_loss_per : str
        Name of the sum that the validation loss is divided by.
    best_key : str
        Figure in the checkpoints' meta data. The checkpoints with the lowest are kept and averaged.
    speed_unit : str
        What the lines of the epochs call ``measure`` per second.
    items : str
        What a batch holds, in the plural.
    leaves : str
        What the script writes into the output folder at its end.
    defaults : mapping of str to object
        Values of the keys that a YAML may leave out. Every key that a later version reads has its default
        here. So the YAMLs of older run folders still train.

    Raises
    ------
    ValueError
        If the ``nonfinite`` policy is unknown. ``fit`` raises it if the optimizer's learning rate is not the
        schedule's peak, if a loss or gradient is not finite and the policy is "stop", or if too many batches
        were skipped.
    Preempted
        ``fit`` raises it after SIGTERM, once the state is saved.
    """

    measure: str
    valid_loss_per: str
    best_key: str
    speed_unit: str
    items: str
    leaves: str
    defaults: Mapping[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for key, value in self.defaults.items():
            if not hasattr(self.hparams, key):
                setattr(self.hparams, key, value)
        if self.hparams.nonfinite not in NONFINITE_POLICIES:
            raise ValueError(
                f"nonfinite is '{self.hparams.nonfinite}'; choose one of {', '.join(NONFINITE_POLICIES)}."
            )
        distributed = dist.is_initialized()
        self.ranks = Ranks(dist.get_rank(), dist.get_world_size()) if distributed else Ranks()
        self.totals = TrainingTotals()
        self.journal = TrainingJournal(self.hparams.output_folder)
        self.checkpointer.add_recoverable("totals", self.totals)
        self._window = AccumulationWindow()
        self._valid_sums: Counter = Counter()
        self._clock = 0.0  # of time.perf_counter, in seconds
        self._shows_bar = False
        self._progress = TrainingProgress(0.0, self.hparams.epoch_counter.limit, bar=False)
        self._sigterm = False  # this rank has the signal
        self._preempted = False  # all ranks know that one of them has it

    @classmethod
    def from_experiment(cls, experiment: Experiment) -> Self:
        """Build the brain of a parsed command line, and say what it trains, on what, and where it goes."""
        hparams = experiment.hparams
        brain = cls(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=experiment.run_opts,
            checkpointer=hparams["checkpointer"],
        )
        machines = brain.gather(hardware(brain.device))
        backend = dist.get_backend() if dist.is_initialized() else None
        say_fact("model", model_fact(experiment.name, brain.raw_model))
        say_fact("device", device_fact(machines, backend=backend, precision=brain.precision))
        folder = hparams["output_folder"]
        save = os.path.relpath(brain.checkpointer.checkpoints_dir, folder)
        during = "" if brain.test_only else f" train_log.jsonl, {save}/,"
        say_fact("output", f"{folder}: log.txt,{during} {brain.leaves} (at the end)")
        return brain

    @property
    def raw_model(self) -> Any:
        """The model without DDP's wrapper."""
        return getattr(self.modules.model, "module", self.modules.model)

    def load_best(self) -> list[str]:
        """Load the average of the best checkpoints into the model, and the newest one into all else.

        Returns
        -------
        list of str
            Names of the averaged checkpoints.

        Raises
        ------
        ValueError
            If there is no checkpoint.
        """
        weights, names = best_average(self.checkpointer, self.hparams.avg_checkpoints, key=self.best_key)
        self.checkpointer.recover_if_possible()
        self.checkpointer.recoverables["model"].load_state_dict(weights)
        return names

    # ---- for subclasses ------------------------------------------------------------------------------------

    def batch_sums(self, predictions: Any, losses: Any, stage: Stage) -> dict[str, float | Tensor]:
        """Return this rank's sums over a batch, by name. They are merged over batches and ranks."""
        return {}

    def on_optimizer_step(self, predictions: Any, sums: Mapping[str, float]) -> None:
        """Use the last batch's predictions and the window's sums over all ranks, after an optimizer step."""

    def step_figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return what the journal says about a step besides losses, speed and memory."""
        return {}

    def on_validation_start(self, epoch: int) -> None:
        """Get ready for the validation of an epoch."""

    def on_validation_batch(self, batch: PaddedBatch, predictions: Any) -> None:
        """Look at a validation batch of this rank."""

    def validation_metrics(self) -> dict[str, float]:
        """Return metrics over all ranks, for the checkpoint's meta data. Every rank calls it."""
        return {}

    def epoch_figures(
        self, sums: Mapping[str, float], valid: Mapping[str, float], metrics: Mapping[str, float]
    ) -> dict[str, float | None]:
        """Return what the journal says about an epoch besides losses and speed.

        Parameters
        ----------
        sums, valid : mapping of str to float
            Sums over the epoch's training and its validation, over all ranks.
        metrics : mapping of str to float
            What :meth:`validation_metrics` returned.
        """
        return {}

    def epoch_remarks(
        self, sums: Mapping[str, float], valid: Mapping[str, float], metrics: Mapping[str, float]
    ) -> list[str]:
        """Return what else the epoch's line says, each part as wide in every epoch.

        Parameters as in :meth:`epoch_figures`.
        """
        return []

    # ---- data and optimizer --------------------------------------------------------------------------------

    def make_dataloader(
        self, dataset: Dataset, stage: Stage, ckpt_prefix: str = "dataloader-", **kwargs: Any
    ) -> SaveableDataLoader:
        """Build the YAML's loader for ``stage`` over this rank's share of ``dataset``."""
        if stage != Stage.TRAIN:  # only tests time the reading of audio, so validation may use workers
            loader = self.hparams.eval_loader(dataset, self.ranks, num_workers=self.hparams.num_workers)
            self._validation_batches = len(loader)
            return loader
        loader = self.hparams.train_loader(dataset, self.ranks)
        self.train_sampler = loader.batch_sampler
        self.checkpointer.add_recoverable(f"{ckpt_prefix}{stage.name}", loader)
        self._batches_per_epoch = len(loader)
        return loader

    def init_optimizers(self) -> None:
        """Build the optimizer with groups of parameters.

        Only matrices have weight decay: biases, norms, and the scan's A, D and dt bias have none. Parameters
        with an ``lr_multiplier`` (routers) have a group of their own.

        Raises
        ------
        ValueError
            If the optimizer's learning rate is not the peak of the schedule. The schedule replaces it in
            every step, so another value would have no effect.
        """
        groups: dict[tuple[float, bool], dict[str, Any]] = {
            (1.0, False): {"params": []},
            (1.0, True): {"params": [], "weight_decay": 0.0},
        }
        for parameter in self.modules.parameters():
            if parameter.requires_grad:
                undecayed = parameter.dim() < 2 or getattr(parameter, "no_weight_decay", False)
                key = getattr(parameter, "lr_multiplier", 1.0), undecayed
                options = {"weight_decay": 0.0} if undecayed else {}
                groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
        self.optimizer = self.opt_class(list(groups.values()))
        self._lr_multipliers = [multiplier for multiplier, _ in groups]
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverable("optimizer", self.optimizer)
        given, peak = self.optimizer.param_groups[0]["lr"], peak_learning_rate(self.hparams.lr_schedule)
        if peak is not None and not math.isclose(given, peak, rel_tol=1e-6):
            raise ValueError(
                f"opt_class.lr is {given:g} and lr_schedule's peak is {peak:g}, which alone counts; "
                "set the YAML's lr, to which both refer (--lr), or give both the same value."
            )

    # ---- one training step ---------------------------------------------------------------------------------

    def fit_batch(self, batch: PaddedBatch) -> Tensor:
        """Run forward and backward, and an optimizer step if the batch closes the accumulation window.

        Returns
        -------
        Tensor
            Mean loss over the batch's items on all ranks.
        """
        self._seed_step()
        window = self._window
        # A skipped batch leaves the window open, and the next good batch closes it: gradients reach the other
        # ranks only in the backward pass of the closing batch.
        closes = window.batches + 1 >= self.grad_accumulation_factor or self.step == self._batches_per_epoch
        with self.no_sync(not closes):
            with self.training_ctx:
                predictions = self.compute_forward(batch, Stage.TRAIN)
                losses = self.compute_objectives(predictions, batch, Stage.TRAIN)
            sums = self._exchange_sums(batch, predictions, losses)
            window.ids.extend(batch.id)
            good = not sums["nonfinite"]
            if good:
                # DDP averages gradients over ranks, but the window collects the sum over all items.
                self.scaler.scale(losses.total.sum() * self.ranks.world_size).backward()
                window.batches += 1
                merge_sums(window.sums, sums)
            else:
                finite = losses.total.isfinite().tolist()
                self._handle_nonfinite("loss", [i for i, ok in zip(batch.id, finite, strict=True) if not ok])
                self.totals.add(skipped=sums["utterances"])
        if good and closes:
            self.optimizers_step()
            self.on_optimizer_step(predictions, window.sums)
        self._progress.advance(self._place, self.totals.epoch_mean("loss"))
        return torch.tensor(sums["loss"] / sums["utterances"])

    def optimizers_step(self) -> None:
        """Average the window's gradients over its items, clip them, step, and record the step."""
        window, items = self._window, self._window.sums["utterances"]
        self.hparams.lr_schedule(self.optimizer)
        rate = self.optimizer.param_groups[0]["lr"]
        for group, multiplier in zip(self.optimizer.param_groups, self._lr_multipliers, strict=True):
            group["lr"] = rate * multiplier  # the schedule gave all groups the same
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.modules.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, items)
        norm = float(torch.nn.utils.clip_grad_norm_(self.modules.parameters(), self.max_grad_norm))
        if math.isfinite(norm) or self.scaler.is_enabled():  # the scaler skips overflowing fp16 steps itself
            self.scaler.step(self.optimizer)
        else:
            self._handle_nonfinite("gradient", window.ids)
            self.totals.add(skipped=items)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        if self.device_type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        sums = {name: value for name, value in window.sums.items() if name not in ("nonfinite", "sigterm")}
        self.totals.add(**sums, seconds=seconds)
        self._window = AccumulationWindow()
        if if_main_process() and self.optimizer_step % self.hparams.log_every_steps == 0:
            self.journal.write(
                "step",
                epoch=self.hparams.epoch_counter.current,
                optimizer_step=self.optimizer_step,
                **{name: sums[name] / items for name in sums if name.startswith("loss")},
                **self.step_figures(sums),
                learning_rate=self.optimizer.param_groups[0]["lr"],
                grad_norm=norm if math.isfinite(norm) else None,
                **{f"{self.measure}_per_second": sums[self.measure] / seconds},
                memory_mib=peak_memory_mib(self.device),
            )

    def _seed_step(self) -> None:
        place = [self.hparams.seed, self.hparams.epoch_counter.current, self.step, self.ranks.rank]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def _exchange_sums(self, batch: PaddedBatch, predictions: Any, losses: Losses) -> Mapping[str, float]:
        """Sum over all ranks' batches. The same exchange reports non-finite losses and SIGTERM to all."""
        total = losses.total.detach()
        named = {
            "utterances": len(batch.id),
            "nonfinite": (~total.isfinite()).any(),
            "sigterm": self._sigterm,
            "loss": total.sum(),
            **{f"loss_{name}": part.detach().sum() for name, part in losses.parts.items()},
            **self.batch_sums(predictions, losses, Stage.TRAIN),
        }
        values = torch.stack(
            [torch.as_tensor(v, device=self.device, dtype=torch.float64) for v in named.values()]
        )
        gathered = [values]
        if self.ranks.world_size > 1:
            gathered = [torch.empty_like(values) for _ in range(self.ranks.world_size)]
            dist.all_gather(gathered, values)
        sums: Counter = Counter()
        for rank_values in gathered:
            merge_sums(sums, dict(zip(named, rank_values.tolist(), strict=True)))
        self._preempted = self._preempted or sums["sigterm"] > 0
        return sums

    def _handle_nonfinite(self, what: str, ids: list[str]) -> None:
        """Log the items with a non-finite ``what``, or raise if training must stop. Every rank calls it."""
        everywhere = [i for part in self.gather(ids) for i in part]
        self.nonfinite_count += 1
        message = (
            f"the {what} is not finite at optimizer step {self.optimizer_step + 1} "
            f"(epoch {self.hparams.epoch_counter.current}); utterances: {', '.join(everywhere)}"
        )
        if self.hparams.nonfinite == "stop":
            raise ValueError(
                f"{message}. Check these recordings, lower the learning rate, or set nonfinite: skip."
            )
        if self.nonfinite_count > self.nonfinite_patience:
            raise ValueError(
                f"{message}. That is more than nonfinite_patience ({self.nonfinite_patience}) in one epoch; "
                "lower the learning rate or use fp32 precision."
            )
        if if_main_process():
            logger.warning("Skipped: %s.", message)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value``, in the order of ranks. Every rank calls it."""
        if self.ranks.world_size == 1:
            return [value]
        everywhere: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(everywhere, value)
        return everywhere

    # ---- epochs --------------------------------------------------------------------------------------------

    def fit(
        self,
        epoch_counter: Iterable[int],
        train_set: Dataset,
        valid_set: Dataset | None = None,
        progressbar: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Train as SpeechBrain does. After SIGTERM, save at the next step and raise :class:`Preempted`."""

        def note_sigterm(signum: int, frame: Any) -> None:
            self._sigterm = True

        wanted = not self.noprogressbar if progressbar is None else progressbar
        self._shows_bar = wanted and if_main_process()
        previous = signal.signal(signal.SIGTERM, note_sigterm)
        try:
            # SpeechBrain's own bars would fill a log file, and stay on a terminal.
            super().fit(self._epochs(epoch_counter), train_set, valid_set, progressbar=False, **kwargs)
        finally:
            self._progress.end()
            signal.signal(signal.SIGTERM, previous)

    def _epochs(self, epoch_counter: Iterable[int]) -> Iterator[int]:
        """Yield the counter's epochs; none if an earlier run has reached ``optimizer_step_limit``."""
        epochs = iter(epoch_counter)
        while not self._optimizer_step_limit_exceeded and (epoch := next(epochs, None)) is not None:
            yield epoch

    def on_fit_start(self) -> None:
        """Wrap the model, build the optimizer, resume from the newest checkpoint, and rewind the journal."""
        super().on_fit_start()
        finished = self.hparams.epoch_counter.current
        if if_main_process():
            self.journal.rewind(self.optimizer_step, epochs_done=finished)
            if self.optimizer_step:
                logger.info("Resuming after optimizer step %d.", self.optimizer_step)
            self._say_what_is_left()
        place = finished + self.step / self._batches_per_epoch
        self._progress = TrainingProgress(place, self.hparams.epoch_counter.limit, bar=self._shows_bar)

    @property
    def _place(self) -> float:
        """How many epochs are trained; 2.5 in the middle of the third."""
        return self.hparams.epoch_counter.current - 1 + self.step / self._batches_per_epoch

    def _say_what_is_left(self) -> None:
        counter, batches = self.hparams.epoch_counter, self._batches_per_epoch
        text = training_fact(
            epochs=counter.limit,
            batches=batches,
            batch=batch_description(self.hparams.train_loader),
            items=self.items,
            processes=self.ranks.world_size,
            accumulated=self.grad_accumulation_factor,
            step_limit=self.optimizer_step_limit,
        )
        if self.optimizer_step:
            done = counter.limit if self._optimizer_step_limit_exceeded else counter.current
            text += "; " + resume_fact(epoch=done, epochs=counter.limit, batch=self.step, batches=batches)
        say_fact("training", text)

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Start the clock of training, or the sums of validation.

        The clock counts reading and saving, but not validation.
        """
        if stage == Stage.TRAIN:
            self._progress.begin(f"epoch {epoch}", self._batches_per_epoch, done=self.step)
            self._clock = time.perf_counter()
        elif stage == Stage.VALID:
            assert epoch is not None
            self._valid_sums = Counter()
            self._progress.begin(f"validation of epoch {epoch}", self._validation_batches)
            self.on_validation_start(epoch)

    def evaluate_batch(self, batch: PaddedBatch, stage: Stage) -> Tensor:
        """Add a validation batch to this rank's sums; return its mean loss."""
        predictions, losses = self.add_validation_batch(batch, self._valid_sums)
        self.on_validation_batch(batch, predictions)
        self._progress.advance(self.hparams.epoch_counter.current)
        if self._sigterm and self.ranks.world_size == 1:
            raise Preempted(self.hparams.output_folder)  # the end of the epoch's training is saved
        return losses.total.mean().cpu()

    def add_validation_batch(self, batch: PaddedBatch, sums: Counter) -> tuple[Any, Losses]:
        """Compute a batch's losses without training, and add its sums to ``sums``."""
        with self.evaluation_ctx:
            predictions = self.compute_forward(batch, Stage.VALID)
            losses = self.compute_objectives(predictions, batch, Stage.VALID)
        named = {"loss": losses.total.sum(), **self.batch_sums(predictions, losses, Stage.VALID)}
        merge_sums(sums, {"utterances": len(batch.id), **{name: float(v) for name, v in named.items()}})
        return predictions, losses

    def merge_over_ranks(self, sums: Counter) -> Counter:
        """Return the sums of all ranks. Every rank calls it."""
        merged: Counter = Counter()
        for part in self.gather(sums):
            merge_sums(merged, part)
        return merged

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Save at the end of an epoch's training, and again after its validation."""
        self._progress.end()
        if stage == Stage.TRAIN:
            # Good batches before a skipped last one never had an optimizer step.
            self.totals.add(skipped=self._window.sums["utterances"])
            self._window = AccumulationWindow()
            # Validation can be long: what was trained must not wait for it.
            self.checkpointer.save_within_epoch()
        elif stage == Stage.VALID:
            assert epoch is not None
            self._end_epoch(epoch)

    def _end_epoch(self, epoch: int) -> None:
        valid = self.merge_over_ranks(self._valid_sums)
        metrics = self.validation_metrics()
        self._preempted = any(self.gather(self._sigterm))
        valid_loss = valid["loss"] / valid[self.valid_loss_per]
        totals, counter = self.totals, self.hparams.epoch_counter
        if if_main_process():
            self._log_epoch(epoch, valid, valid_loss, metrics)
        totals.epoch.clear()
        totals.run["peak_memory_mib"] = max(totals.run["peak_memory_mib"], peak_memory_mib(self.device))  # type: ignore[assignment]
        totals.run["world_size"] = self.ranks.world_size
        meta = {"epoch": epoch, "valid_loss": valid_loss, **metrics}
        if self.best_key in meta and hasattr(counter, "update_metric"):
            counter.update_metric(meta[self.best_key])
        self.checkpointer.save_checkpoint(meta=meta)
        self.checkpointer.keep_only(num_to_keep=self.hparams.avg_checkpoints, min_key=self.best_key)
        if self._preempted:
            raise Preempted(self.hparams.output_folder)

    def _log_epoch(self, epoch: int, valid: Counter, valid_loss: float, metrics: Mapping[str, float]) -> None:
        totals, limit = self.totals, self.hparams.epoch_counter.limit
        speed = totals.epoch[self.measure] / max(totals.epoch["seconds"], 1e-9)
        self.journal.write(
            "epoch",
            epoch=epoch,
            optimizer_step=self.optimizer_step,
            **{name: totals.epoch_mean(name) for name in totals.epoch if name.startswith("loss")},
            valid_loss=valid_loss,
            **{f"{self.measure}_per_second": speed},
            seconds=totals.epoch["seconds"],
            skipped=totals.epoch["skipped"],
            **self.epoch_figures(totals.epoch, valid, metrics),
        )
        line = [
            f"epoch {epoch:{len(str(limit))}}/{limit}",
            f"loss {totals.epoch_mean('loss'):7.3f}",
            f"valid loss {valid_loss:7.3f}",
            *self.epoch_remarks(totals.epoch, valid, metrics),
            f"lr {self.optimizer.param_groups[0]['lr']:.1e}",
            f"{speed:5.0f} {self.speed_unit}",
            self._progress.time_left(epoch),
        ]
        say("   ".join(line).rstrip())

    def evaluate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "a brain of hmamba_asr only trains and validates; to evaluate, call "
            "hmamba_asr.evaluation.run.evaluate with ASRBrain.trained_system(...), or, for a language model, "
            "LMBrain.perplexity(...)."
        )

    # ---- checkpoints within an epoch -----------------------------------------------------------------------

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        if self._window.batches:
            return False  # accumulated gradients are not part of a checkpoint
        return self._preempted or super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self) -> None:
        self.checkpointer.save_within_epoch()
        if self._preempted:
            raise Preempted(self.hparams.output_folder)


def peak_learning_rate(schedule: Any) -> float | None:
    """Return the highest learning rate of a schedule of SpeechBrain, None if it does not say."""
    if isinstance(schedule, NoamScheduler):
        return schedule.lr_initial * schedule.normalize / schedule.n_warmup_steps**0.5
    return getattr(schedule, "lr_initial", getattr(schedule, "base_lr", None))
