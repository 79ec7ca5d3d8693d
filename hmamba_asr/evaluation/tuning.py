"""Tuning of a trained run's beam search: the WER of a development split with each weight of CTC and language
model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hmamba_asr.config.hparams import load_parts
from hmamba_asr.data.loaders import load_dataset
from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.evaluation.finished_run import split_recordings
from hmamba_asr.evaluation.results import plain
from hmamba_asr.evaluation.wer import score_split
from hmamba_asr.inference.recogniser import Recogniser
from hmamba_asr.lengths import to_absolute
from hmamba_asr.system.hardware import default_device, hardware, machine_name
from hmamba_asr.system.ranks import Ranks
from hmamba_asr.system.run_layout import RunLayout
from hmamba_asr.system.tables import text_table


def tune_weights(
    folder: str | Path,
    *,
    split: str,
    ctc: Sequence[float] = (),
    lm: Sequence[float] = (),
    search: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a run's WER on a split with several weights of the CTC and of the language model.

    Every pair of weights is tried if both are given. The encoder reads the split once, in float32 and in the
    batches of the YAML's ``eval_loader``.

    Parameters
    ----------
    folder
        Output folder of a trained run.
    split
        One of its splits, not one for training.
    ctc, lm
        Weights of the CTC and of the language models.
    search
        Name of one of the YAML's searches. By default the last.
    device
        "cpu" or "cuda". By default a GPU if there is one.
    progress
        Whether to show a progress bar.

    Returns
    -------
    dict
        Only types of JSON: `split`, `search`, `utterances`, `hardware`, `precision`, and `results` in the
        order asked for. Each result has `weights` {"attention" or scorer: the weight in the search} and `wer`
        as in results.json.

    Raises
    ------
    FileNotFoundError
        If the folder is no output folder, it has no such split, or the recordings do not exist.
    ValueError
        If there are no weights, or the search cannot have them; there is no checkpoint, no such search, or
        the search is no JointBeamSearcher; the split is for training or has no words; a recording cannot be
        read.
    """
    if not (ctc or lm):
        raise ValueError("there is nothing to tune; give weights of the CTC or of the language model.")
    layout = RunLayout(folder)
    recogniser = Recogniser(folder, search=search, device=device or default_device())
    searcher = recogniser.search.searcher
    if not isinstance(searcher, JointBeamSearcher):
        raise ValueError(
            f"the search {recogniser.search_name} is no JointBeamSearcher, whose weights alone can be tuned."
        )
    ctc_weights: Sequence[float | None] = ctc or [None]
    lm_weights: Sequence[float | None] = lm or [None]
    grid = [{"ctc": one, "lm": other} for one, other in itertools.product(ctc_weights, lm_weights)]
    weights = []
    for chosen in grid:  # refuse impossible weights before any work is done
        searcher.set_weights(**chosen)
        weights.append(searcher.weights())
    if split in recogniser.settings["train_splits"]:
        raise ValueError(
            f"{split} is a training split of this run; weights chosen there suit what the model knows by "
            "heart."
        )
    hparams = layout.hyperparams.read_text(encoding="utf-8")
    recordings = split_recordings(layout.folder, split, hparams=hparams)
    references = {item.id: item.text for item in recordings}
    score_split(references, references)  # refuse a split without words before the searches
    texts: list[dict[str, str]] = [{} for _ in grid]
    dataset = load_dataset(
        [layout.manifest(split)],
        data_folder=recogniser.settings["data_folder"],
        tokenizer=recogniser.tokenizer,
    )
    loader = load_parts(hparams, ["eval_loader"])["eval_loader"](dataset, Ranks())
    for batch in tqdm(loader, desc=f"{split}, {len(grid)} weights", disable=not progress):
        wavs, relative = batch.to(recogniser.device).sig
        _, output = recogniser.encode(wavs, to_absolute(relative, wavs.shape[1]))
        for chosen, of_weights in zip(grid, texts, strict=True):
            searcher.set_weights(**chosen)
            of_weights.update(
                zip(batch.id, recogniser.tokenizer.decode(recogniser.search(output)), strict=True)
            )
    return {
        "split": split,
        "search": recogniser.search_name,
        "utterances": len(recordings),
        "hardware": hardware(recogniser.device),
        "precision": "fp32",
        "results": [
            {"weights": used, "wer": plain(score_split(references, of_weights).wer_record(), "wer")}
            for used, of_weights in zip(weights, texts, strict=True)
        ],
    }


def render_weights(found: Mapping[str, Any]) -> str:
    """Return what `tune_weights` found as text."""
    results = found["results"]
    lowest = min(entry["wer"]["rate"] for entry in results)
    rows = []
    for entry in results:
        rate, (low, high) = entry["wer"]["rate"], entry["wer"]["interval_95"]
        rows.append(
            [
                *(f"{weight:g}" for weight in entry["weights"].values()),
                f"{rate:.2f} ({low:.2f} to {high:.2f})",
                "lowest" if rate == lowest else "",
            ]
        )
    table = text_table(rows, [*results[0]["weights"], "WER (95% interval)", ""])
    return (
        f"{found['split']}, {found['utterances']} utterances, {found['search']}, "
        f"{machine_name(found['hardware'])}, {found['precision']}\n\n{table}"
    )
