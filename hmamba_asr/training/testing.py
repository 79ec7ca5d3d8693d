"""Evaluation of a trained model: averaged checkpoints, every split with every search, all into one results.json."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

from hmamba_asr.evaluation.efficiency import Efficiency, StageTimer, hardware, merge
from hmamba_asr.evaluation.results import collect_environment, write_results
from hmamba_asr.evaluation.wer import score_split, write_alignments, write_trn
from hmamba_asr.lengths import to_absolute
from hmamba_asr.training.brain import ASRBrain
from hmamba_asr.training.checkpoints import average_of_best

logger = logging.getLogger(__name__)


def load_best(brain: ASRBrain) -> list[str]:
    """Put the average of the best checkpoints (lowest validation WER; an LM's: loss) into the model; returns their names.

    Raises
    ------
    ValueError
        If there is no checkpoint.
    """
    brain.checkpointer.recover_if_possible()  # totals and counters of the whole run
    names, parameters = average_of_best(brain.checkpointer, key=brain.best_key, count=brain.hparams.avg_checkpoints)
    brain.checkpointer.recoverables["model"].load_state_dict(parameters)
    return names


def evaluate(brain: ASRBrain, datasets: Mapping[str, DynamicItemDataset], *, name: str, hparams_text: str) -> dict | None:
    """Decode every split with every search of the YAML and write ``results.json`` under the output folder.

    Also writes ``test/<split>/<search>/`` with SpeechBrain's alignments (wer.txt) and ref.trn, hyp.trn for sclite. Under
    torchrun each rank decodes its share and the main process writes; returns the results there and None elsewhere.
    """
    checkpoints = load_best(brain)
    evaluation: dict[str, dict] = {}
    for split, dataset in datasets.items():
        evaluation[split] = {}
        for search_name, search in brain.hparams.test_searches.items():
            texts, efficiency = _decode(brain, dataset, search, f"{split}, {search_name}")
            if not if_main_process():
                continue
            references = {i: dataset.data[i]["wrd"] for i in dataset.data_ids}
            score = score_split(references, texts)
            folder = Path(brain.hparams.output_folder) / "test" / split / search_name
            write_alignments(folder / "wer.txt", references, texts)
            write_trn(folder, references, texts)
            evaluation[split][search_name] = {
                "wer": score.wer.to_dict(), "cer": score.cer.to_dict(), "efficiency": efficiency.to_dict()
            }  # fmt: skip
            logger.info(
                "%s, %s: WER %.2f%% (%d ins, %d del, %d sub), CER %.2f%%, sentences wrong %.1f%%, RTF %.4f",
                split, search_name, score.wer.rate, score.wer.insertions, score.wer.deletions, score.wer.substitutions,
                score.cer.rate, score.wer.sentence_error_rate, efficiency.rtf,
            )  # fmt: skip
    if not if_main_process():
        return None
    results = {
        "schema": 1,
        "name": name,
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
    return results


@torch.no_grad()
def _decode(brain: ASRBrain, dataset: DynamicItemDataset, search, title: str) -> tuple[dict[str, str], Efficiency]:
    """Hypotheses of all ranks by utterance ID, and the time they took, warm."""
    brain.modules.eval()
    search.to(brain.device)
    shortest = min(dataset.data_ids, key=lambda i: dataset.data[i]["duration"])
    _decode_batch(brain, PaddedBatch([dataset[dataset.data_ids.index(shortest)]]), search, StageTimer(brain.device))

    loader = brain.hparams.eval_loader(dataset, brain.ranks)
    timer = StageTimer(brain.device)
    texts: dict[str, str] = {}
    audio_seconds, started = 0.0, time.perf_counter()
    batches = iter(loader)
    for _ in tqdm(range(len(loader)), desc=title, disable=not if_main_process() or brain.noprogressbar):
        with timer.stage("read"):
            batch = next(batches)
        texts.update(_decode_batch(brain, batch, search, timer))
        audio_seconds += float(sum(batch.duration))
    efficiency = Efficiency(
        audio_seconds=audio_seconds, stage_seconds=dict(timer.seconds), wall_seconds=time.perf_counter() - started,
        batch=brain.hparams.eval_batching, hardware=hardware(brain.device),
    )  # fmt: skip
    if brain.ranks.world_size == 1:
        return texts, efficiency
    parts: list = [None] * brain.ranks.world_size
    dist.all_gather_object(parts, (texts, efficiency))
    return {i: text for part, _ in parts for i, text in part.items()}, merge([part for _, part in parts])


def _decode_batch(brain: ASRBrain, batch: PaddedBatch, search, timer: StageTimer) -> dict[str, str]:
    with brain.evaluation_ctx:
        with timer.stage("features"):
            batch = batch.to(brain.device)
            wavs, relative = batch.sig
            features, lengths = brain.modules.features(wavs, to_absolute(relative, wavs.shape[1]))
        with timer.stage("encoder"):
            output = brain.raw_model(features, lengths)
        with timer.stage("decoding"):
            texts = brain.tokenizer.decode(search(output))
    return dict(zip(batch.id, texts, strict=True))


def _parameters(brain: ASRBrain) -> dict:
    model = brain.raw_model
    counted = list(model.parameters())
    return {
        "total": sum(p.numel() for p in counted),
        "trainable": sum(p.numel() for p in counted if p.requires_grad),
        "by_module": {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()},
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
