"""Evaluation of a trained model: every split with every search, all into one results.json."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from torch import nn

from hmamba_asr.decoding.search import Search
from hmamba_asr.evaluation.chunk_statistics import segmentations, stage_figures, stage_sums
from hmamba_asr.evaluation.operations import COUNTED_SECONDS, COUNTED_TOKENS, count_operations
from hmamba_asr.evaluation.results import (
    SCHEMA_VERSION,
    Chunking,
    ChunkingFigures,
    Entry,
    Environment,
    Operations,
    Parameters,
    Results,
    TrainingRecord,
    write_results,
)
from hmamba_asr.evaluation.resume import FILE_NAME, BatchCache, CachedBatch, CacheKeys, clear_cache
from hmamba_asr.evaluation.segmentation import Segmentation, write_segmentations
from hmamba_asr.evaluation.timing import Efficiency, PhaseTimer, merge
from hmamba_asr.evaluation.wer import score_split, write_alignments, write_trn
from hmamba_asr.lengths import to_absolute
from hmamba_asr.models.asr import ASRModel, ASROutput
from hmamba_asr.modules.frontend import LogMelFeatures
from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.environment import collect_environment
from hmamba_asr.system.hardware import hardware
from hmamba_asr.system.ranks import Ranks
from hmamba_asr.system.run_layout import RunLayout
from hmamba_asr.system.screen import Progress, say, say_fact
from hmamba_asr.system.sums import merge_sums

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedSystem:
    """A trained model with all that its evaluation needs.

    Attributes
    ----------
    name
        The run's name: the YAML's, without its ending.
    overrides
        Keys of the YAML that the command line changed, with their text.
    hparams_text
        The resolved YAML.
    seed
        The seed of the run.
    output_folder
        Where results.json and the folder ``test`` are written.
    features
        Samples (B, S) and lengths (B,) to features (B, T, n_mels) and lengths (B,); has ``hop_seconds``.
    model
        The model itself, not wrapped for several ranks, with the weights to evaluate.
    tokenizer
        SentencePiece's processor.
    searches
        Searches by name; each maps the model's output to the token ids of every utterance.
    loader
        ``loader(dataset, ranks, skip=n)`` gives this rank's batches without the first n; see
        :func:`~hmamba_asr.data.loaders.eval_loader`.
    device, ranks
        Where this process computes, and its place among those that share the work.
    precision
        "fp32", "fp16" or "bf16".
    checkpoints
        Names of the checkpoints whose weights were averaged.
    training
        What training took; None if nothing was trained.
    progress
        Whether a terminal may have a progress bar.
    """

    name: str
    overrides: Mapping[str, str]
    hparams_text: str
    seed: int
    output_folder: Path
    features: LogMelFeatures
    model: ASRModel
    tokenizer: Any
    searches: Mapping[str, Search]
    loader: Callable[..., Any]
    device: torch.device
    ranks: Ranks
    precision: str
    checkpoints: Sequence[str]
    training: TrainingRecord | None
    progress: bool = True


def evaluate(system: TrainedSystem, datasets: Mapping[str, DynamicItemDataset]) -> Results | None:
    """Decode every split with every search, and write ``results.json`` into the output folder.

    Each split and search gets a folder ``test/<split>/<search>/`` with SpeechBrain's alignments (wer.txt) and
    with ref.trn and hyp.trn for sclite. Where the encoder chunks, ``test/<split>/chunks.jsonl`` says where
    chunks begin.

    Finished batches stay on disk until the results are written (see :mod:`~hmamba_asr.evaluation.resume`).
    After a kill, the same command decodes the rest.

    Parameters
    ----------
    system
        The model and its surroundings.
    datasets
        The splits by name.

    Returns
    -------
    Results or None
        Under torchrun each rank decodes its share. The main process writes and returns the results, the
        others return None.
    """
    keys = CacheKeys(
        checkpoints=system.checkpoints,
        modules=[system.features, system.model],
        tokenizer=system.tokenizer,
        hparams_text=system.hparams_text,
        precision=system.precision,
        device=system.device,
        ranks=system.ranks,
    )
    layout = RunLayout(system.output_folder)
    screen = _Screen(system, datasets)
    evaluation: dict[str, dict[str, Entry]] = {}
    for split, dataset in datasets.items():
        evaluation[split] = {}
        for search_name, search in system.searches.items():
            folder = layout.transcripts(split, search_name)
            key = keys.key_of(dataset, search_name, search)
            cache = BatchCache(folder / FILE_NAME.format(rank=system.ranks.rank), key)
            decoded = _decode_split(system, dataset, search, f"{split}, {search_name}", cache)
            if if_main_process():
                entry = _score(folder, dataset, decoded)
                if decoded.segmentations:  # the same for every search
                    write_segmentations(layout.chunks(split), decoded.segmentations)
                evaluation[split][search_name] = entry
                screen.say_score(split, search_name, entry)
    results = None
    if if_main_process():
        results = Results(
            schema=SCHEMA_VERSION,
            name=system.name,
            overrides=dict(system.overrides),
            seed=system.seed,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            environment=msgspec.convert(collect_environment(system.device), Environment),
            parameters=_count_parameters(system.model),
            hparams=system.hparams_text,
            training=system.training,
            checkpoints=list(system.checkpoints),
            evaluation=evaluation,
            operations=_operations(system, evaluation),
            chunking=msgspec.convert(system.model.chunking, list[Chunking]),
        )
        write_results(layout.results, results)
    ddp_barrier()
    clear_cache(layout.tests)  # on every rank, for machines that share no disk
    return results


def batch_description(loader: Callable[..., Any]) -> int | str:
    """Say how large a loader's batches are, from the arguments that it was given.

    Parameters
    ----------
    loader
        A `functools.partial` with ``max_batch_seconds`` and ``max_batch_size``, as the YAML's ``eval_loader``
        is.

    Returns
    -------
    int or str
        For example "at most 200 s of audio and 16 utterances". Of another loader ``batch_size``, where it has
        one, and else the text "unknown".
    """
    arguments = loader.keywords if isinstance(loader, partial) else {}
    limits = []
    if (seconds := arguments.get("max_batch_seconds")) is not None:
        limits.append(f"{seconds:g} s of audio")
    if (size := arguments.get("max_batch_size")) is not None:
        limits.append(f"{size} utterances")
    if limits:
        return f"at most {' and '.join(limits)}"
    return arguments.get("batch_size", "unknown")


@dataclass(frozen=True)
class _DecodedSplit:
    """What all ranks found in a split: hypotheses by ID, and how long decoding them took."""

    texts: dict[str, str]
    efficiency: Efficiency
    stages: list[ChunkingFigures]
    segmentations: list[Segmentation]


@torch.no_grad()
def _decode_split(
    system: TrainedSystem, dataset: DynamicItemDataset, search: Search, title: str, cache: BatchCache
) -> _DecodedSplit:
    """Decode this rank's share of a split, and gather the shares of all ranks.

    The rank starts behind the batches in ``cache``. Times are sums over batches, after one utterance to warm
    up. Those of an earlier run count as they were measured there. The time between runs, and a batch that a
    kill cut short, do not count, nor does its audio.
    """
    loader = system.loader(dataset, system.ranks, skip=len(cache.batches))
    if cache.batches:
        done = len(cache.batches)
        say(f"{title}: {done} of {done + len(loader)} batches were decoded before.")
    if len(loader):
        system.features.eval()
        system.model.eval()
        search.to(system.device)
        shortest = min(dataset.data_ids, key=lambda i: dataset.data[i]["duration"])
        warm_up = PaddedBatch([dataset[dataset.data_ids.index(shortest)]])
        _decode_batch(system, warm_up, search, PhaseTimer(system.device))
    batches = iter(loader)
    progress = Progress(title, len(loader), "batches", bar=system.progress and if_main_process())
    for _ in range(len(loader)):
        timer, started = PhaseTimer(system.device), time.perf_counter()
        with timer.phase("read"):
            batch = next(batches)
        texts, output = _decode_batch(system, batch, search, timer)
        hop: float = system.features.hop_seconds
        frontend: Any = system.model.frontend
        sums = stage_sums(output.encoded.stages, frame_ms=1000 * hop * frontend.stride)
        where = segmentations(output.encoded, batch.id, hop_seconds=hop)
        cache.append(
            CachedBatch(
                texts=texts,
                audio_seconds=float(sum(batch.duration)),
                wall_seconds=time.perf_counter() - started,
                phase_seconds=dict(timer.seconds),
                sums={name: float(value) for name, value in sums.items()},
                segmentations=where,
            )
        )
        progress.advance()
    progress.close()
    shares: list[list[CachedBatch]] = [cache.batches]
    if system.ranks.world_size > 1:
        shares = [[] for _ in range(system.ranks.world_size)]
        dist.all_gather_object(shares, cache.batches)
    everything = [batch for share in shares for batch in share]
    texts = {i: text for batch in everything for i, text in batch.texts.items()}
    totals: Counter = Counter()
    for batch in everything:
        merge_sums(totals, batch.sums)
    return _DecodedSplit(
        texts=texts,
        efficiency=merge([_efficiency(system, share) for share in shares]),
        stages=msgspec.convert(stage_figures(totals, len(texts)), list[ChunkingFigures]),
        segmentations=[item for batch in everything for item in batch.segmentations],
    )


def _decode_batch(
    system: TrainedSystem, batch: PaddedBatch, search: Search, timer: PhaseTimer
) -> tuple[dict[str, str], ASROutput]:
    with _autocast(system):
        with timer.phase("features"):
            batch = batch.to(system.device)
            wavs, relative = batch.sig
            features, lengths = system.features(wavs, to_absolute(relative, wavs.shape[1]))
        with timer.phase("encoder"):
            output = system.model(features, lengths)
        with timer.phase("decoding"):
            texts = system.tokenizer.decode(search(output))
    return dict(zip(batch.id, texts, strict=True)), output


def _autocast(system: TrainedSystem) -> AbstractContextManager:
    """Return the context that SpeechBrain's Brain evaluates in."""
    return TorchAutocast(device_type=system.device.type, dtype=AMPConfig.from_name(system.precision).dtype)


def _efficiency(system: TrainedSystem, share: Sequence[CachedBatch]) -> Efficiency:
    """Sum the times of one rank. All ranks have the same hardware, or their cache keys would differ."""
    phases: Counter = Counter()
    for batch in share:
        phases.update(batch.phase_seconds)
    return Efficiency(
        audio_seconds=sum(batch.audio_seconds for batch in share),
        phase_seconds=dict(phases),
        wall_seconds=sum(batch.wall_seconds for batch in share),
        batch=batch_description(system.loader),
        hardware=hardware(system.device),
    )


def _score(folder: Path, dataset: DynamicItemDataset, decoded: _DecodedSplit) -> Entry:
    """Count the errors, and write the transcripts."""
    references = {i: dataset.data[i]["wrd"] for i in dataset.data_ids}
    score = score_split(references, decoded.texts)
    write_alignments(folder / "wer.txt", references, decoded.texts)
    write_trn(folder, references, decoded.texts)
    return Entry(
        wer=score.wer_record(),
        cer=score.cer.record(),
        efficiency=decoded.efficiency.record(),
        stages=decoded.stages,
    )


class _Screen:
    """Says what is evaluated, the score of each split and search, and how long the rest will take."""

    def __init__(self, system: TrainedSystem, datasets: Mapping[str, DynamicItemDataset]) -> None:
        self._audio = {
            split: sum(dataset.data[i]["duration"] for i in dataset.data_ids)
            for split, dataset in datasets.items()
        }
        self._left = [(split, search) for split in datasets for search in system.searches]
        self._widths = [max(map(len, names), default=0) for names in (datasets, system.searches)]
        self._started = self._last = time.perf_counter()
        self._pace: dict[str, float] = {}  # seconds for a second of audio, of each search
        weights = f"; average of {len(system.checkpoints)} checkpoints" if len(system.checkpoints) > 1 else ""
        say_fact(
            "evaluation",
            f"{', '.join(datasets)} ({sum(self._audio.values()) / 3600:.2f} h), each with "
            f"{' and '.join(system.searches)} search{weights}",
        )

    def say_score(self, split: str, search: str, entry: Entry) -> None:
        """Say the score in short on the screen, and in full in the log."""
        wer, efficiency = entry.wer, entry.efficiency
        assert wer.interval_95 is not None and efficiency is not None
        now = time.perf_counter()
        self._pace[search] = (now - self._last) / self._audio[split]
        self._last = now
        self._left.remove((split, search))
        wide, high = self._widths
        scores = f"WER {wer.rate:6.2f}%   CER {entry.cer.rate:6.2f}%   RTF {efficiency.rtf:.4f}"
        say(f"  {split:<{wide}}   {search:<{high}}   {scores}   {self._time()}".rstrip())
        logger.info(
            "%s, %s: WER 95%% interval %.2f to %.2f; %d ins, %d del, %d sub; sentences wrong %.1f%%",
            split,
            search,
            *wer.interval_95,
            wer.insertions,
            wer.deletions,
            wer.substitutions,
            wer.sentence_error_rate,
        )

    def _time(self) -> str:
        """Say how long the rest takes at the pace so far; nothing while a search has not begun."""
        if not self._left:
            return f"done in {format_duration(self._last - self._started)}"
        if any(search not in self._pace for _, search in self._left):
            return ""
        seconds = sum(self._pace[search] * self._audio[split] for split, search in self._left)
        return f"{format_duration(seconds)} left"


def _count_parameters(model: nn.Module) -> Parameters:
    counted = list(model.parameters())
    return Parameters(
        total=sum(p.numel() for p in counted),
        trainable=sum(p.numel() for p in counted if p.requires_grad),
        by_module={
            name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
        },
    )


def _operations(system: TrainedSystem, evaluation: Mapping[str, Mapping[str, Entry]]) -> Operations | None:
    """Count the model's operations, with as many chunks for each state as were measured on the first
    split."""
    entries = [entry for searches in evaluation.values() for entry in searches.values()]
    kept = [float(stage.kept or 0.0) for stage in entries[0].stages] if entries else []
    length: dict[str, Any] = {"seconds": COUNTED_SECONDS, "tokens": COUNTED_TOKENS}
    try:
        macs = count_operations(system.model, system.features, kept=kept, **length)
    except (ValueError, RuntimeError, TypeError) as error:  # a model of the user's may not be countable
        logger.warning("The model's operations were not counted (%s).", error)
        return None
    return Operations(**length, macs=macs)
