"""Evaluation of a trained model: averaged checkpoints, every split with every search, all into one
results.json."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from tqdm import tqdm

from hmamba_asr.evaluation.results import write_results
from hmamba_asr.evaluation.resume import NAME, DecodedBatch, DecodedBatches, Fingerprints, forget
from hmamba_asr.evaluation.segmentation import Chunks, write_chunks
from hmamba_asr.evaluation.timing import Efficiency, StageTimer, merge
from hmamba_asr.evaluation.wer import score_split, write_alignments, write_trn
from hmamba_asr.lengths import to_absolute
from hmamba_asr.models.asr import ASROutput
from hmamba_asr.models.weights import best_average
from hmamba_asr.system.environment import collect_environment
from hmamba_asr.system.hardware import hardware
from hmamba_asr.training.asr import ASRBrain
from hmamba_asr.training.chunk_statistics import chunk_records, stage_figures
from hmamba_asr.training.journal import merge_sums

logger = logging.getLogger(__name__)


def load_best(brain: ASRBrain) -> list[str]:
    """Put :func:`best_average` into the model, the newest checkpoint's totals and counters into the rest;
    returns the names."""
    weights, names = best_average(brain.checkpointer, brain.hparams.avg_checkpoints, key=brain.best_key)
    brain.checkpointer.recover_if_possible()
    brain.checkpointer.recoverables["model"].load_state_dict(weights)
    return names


def evaluate(
    brain: ASRBrain,
    datasets: Mapping[str, DynamicItemDataset],
    *,
    name: str,
    hparams_text: str,
    overrides: Mapping[str, str] | None = None,
) -> dict | None:
    """Decode every split with every search of the YAML and write ``results.json`` under the output folder.
    ``overrides`` is what the command line changed in the YAML ``name``.

    Also writes ``test/<split>/<search>/`` with SpeechBrain's alignments (wer.txt) and ref.trn, hyp.trn for
    sclite, and, of an encoder that chunks, where chunks begin into ``test/<split>/chunks.jsonl``. Under
    torchrun each rank decodes its share and the main process writes; returns the results there and None
    elsewhere.

    What is decoded is kept until the results are written (:mod:`~hmamba_asr.evaluation.resume`): after a kill
    the same command decodes the rest.
    """
    checkpoints = load_best(brain)
    fingerprints = Fingerprints(brain, checkpoints=checkpoints, hparams_text=hparams_text)
    test_folder = Path(brain.hparams.output_folder) / "test"
    evaluation: dict[str, dict] = {}
    for split, dataset in datasets.items():
        evaluation[split] = {}
        for search_name, search in brain.hparams.test_searches.items():
            folder = test_folder / split / search_name
            fingerprint = fingerprints.of(dataset, search_name, search)
            decoded = DecodedBatches(folder / NAME.format(rank=brain.ranks.rank), fingerprint)
            texts, efficiency, stages, chunks = _decode(
                brain, dataset, search, f"{split}, {search_name}", decoded
            )
            if not if_main_process():
                continue
            references = {i: dataset.data[i]["wrd"] for i in dataset.data_ids}
            score = score_split(references, texts)
            wer = score.wer_entry()
            write_alignments(folder / "wer.txt", references, texts)
            write_trn(folder, references, texts)
            if chunks:
                write_chunks(folder.parent / "chunks.jsonl", chunks)  # the same for every search
            evaluation[split][search_name] = {
                "wer": wer,
                "cer": score.cer.to_dict(),
                "efficiency": efficiency.to_dict(),
                "stages": stages,
            }
            logger.info(
                "%s, %s: WER %.2f%% (%.2f to %.2f; %d ins, %d del, %d sub), CER %.2f%%, sentences wrong %.1f%%, RTF %.4f",
                split,
                search_name,
                score.wer.rate,
                *wer["interval_95"],
                score.wer.insertions,
                score.wer.deletions,
                score.wer.substitutions,
                score.cer.rate,
                score.wer.sentence_error_rate,
                efficiency.rtf,
            )
    results = None
    if if_main_process():
        results = {
            "schema": 1,
            "name": name,
            "overrides": dict(overrides or {}),
            "seed": brain.hparams.seed,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "environment": collect_environment(brain.device),
            "parameters": _parameters(brain),
            "hparams": hparams_text,
            "training": _training(brain),
            "checkpoints": checkpoints,
            "evaluation": evaluation,
        }
        write_results(Path(brain.hparams.output_folder) / "results.json", results)
    ddp_barrier()
    forget(test_folder)  # on every rank, for machines that share no disk
    return results


@torch.no_grad()
def _decode(
    brain: ASRBrain, dataset: DynamicItemDataset, search, title: str, decoded: DecodedBatches
) -> tuple[dict[str, str], Efficiency, list[dict[str, float]], list[Chunks]]:
    """Hypotheses of all ranks by utterance ID, the time they took, warm, what each chunking stage did, and
    where chunks begin.

    This rank goes on behind the batches in ``decoded``. Times are sums over batches, those of earlier runs as
    they were measured there: what lies between the runs, and a batch that a kill cut short, counts nowhere,
    audio and all.
    """
    loader = brain.hparams.eval_loader(dataset, brain.ranks, skip=len(decoded.batches))
    if decoded.batches:
        done = len(decoded.batches)
        logger.info("%s: %d of %d batches were decoded before.", title, done, done + len(loader))
    if len(loader):
        brain.modules.eval()
        search.to(brain.device)
        shortest = min(dataset.data_ids, key=lambda i: dataset.data[i]["duration"])
        _decode_batch(
            brain, PaddedBatch([dataset[dataset.data_ids.index(shortest)]]), search, StageTimer(brain.device)
        )
    batches = iter(loader)
    for _ in tqdm(range(len(loader)), desc=title, disable=not if_main_process() or brain.noprogressbar):
        timer, started = StageTimer(brain.device), time.perf_counter()
        with timer.stage("read"):
            batch = next(batches)
        texts, output = _decode_batch(brain, batch, search, timer)
        sums = {name: float(value) for name, value in brain.stage_sums(output).items()}
        centres, hop = brain.raw_model.frontend.centres, brain.modules.features.hop_seconds
        chunks = chunk_records(output.encoded.stages, batch.id, centres=centres, hop_seconds=hop)
        seconds, wall = dict(timer.seconds), time.perf_counter() - started
        decoded.append(DecodedBatch(texts, float(sum(batch.duration)), wall, seconds, sums, chunks))
    parts: list = [decoded.batches]
    if brain.ranks.world_size > 1:
        parts = [None] * brain.ranks.world_size
        dist.all_gather_object(parts, decoded.batches)
    everything = [batch for part in parts for batch in part]
    texts = {i: text for batch in everything for i, text in batch.texts.items()}
    sums = Counter()
    for batch in everything:
        merge_sums(sums, batch.sums)
    efficiency = merge([_efficiency(brain, part) for part in parts])
    return (
        texts,
        efficiency,
        stage_figures(sums, len(texts)),
        [item for batch in everything for item in batch.chunks],
    )


def _efficiency(brain: ASRBrain, batches: list[DecodedBatch]) -> Efficiency:
    """Of one rank; all have the same hardware, or their fingerprints would not let them share."""
    stages: Counter = Counter()
    for batch in batches:
        stages.update(batch.stage_seconds)
    return Efficiency(
        audio_seconds=sum(batch.audio_seconds for batch in batches),
        stage_seconds=dict(stages),
        wall_seconds=sum(batch.wall_seconds for batch in batches),
        batch=brain.hparams.eval_batching,
        hardware=hardware(brain.device),
    )


def _decode_batch(
    brain: ASRBrain, batch: PaddedBatch, search, timer: StageTimer
) -> tuple[dict[str, str], ASROutput]:
    with brain.evaluation_ctx:
        with timer.stage("features"):
            batch = batch.to(brain.device)
            wavs, relative = batch.sig
            features, lengths = brain.modules.features(wavs, to_absolute(relative, wavs.shape[1]))
        with timer.stage("encoder"):
            output = brain.raw_model(features, lengths)
        with timer.stage("decoding"):
            texts = brain.tokenizer.decode(search(output))
    return dict(zip(batch.id, texts, strict=True)), output


def _parameters(brain: ASRBrain) -> dict:
    model = brain.raw_model
    counted = list(model.parameters())
    return {
        "total": sum(p.numel() for p in counted),
        "trainable": sum(p.numel() for p in counted if p.requires_grad),
        "by_module": {
            name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
        },
    }


def _training(brain: ASRBrain) -> dict:
    run = brain.totals.run
    seconds = run["seconds"]
    return {
        "train_splits": list(brain.hparams.train_splits),
        "epochs": brain.hparams.epoch_counter.current,
        "optimizer_steps": brain.optimizer_step,
        "audio_seconds": run["audio_seconds"],
        "seconds": seconds,
        "audio_seconds_per_second": run["audio_seconds"] / seconds if seconds else None,
        "peak_memory_mib": run["peak_memory_mib"],
        "precision": brain.precision,
        "world_size": int(run["world_size"]),
    }
