"""Weights of the CTC and of the language model in a trained run's beam search, chosen on a development
split."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from hmamba_asr.data.loaders import Ranks, load_dataset
from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.evaluation.recordings import split_recordings
from hmamba_asr.evaluation.results import plain
from hmamba_asr.evaluation.wer import score_split
from hmamba_asr.inference.recogniser import Recogniser
from hmamba_asr.lengths import to_absolute
from hmamba_asr.system.hardware import default_device, hardware, machine_name


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
    """WER of a run on a split with each of the weights ``ctc`` of the CTC and ``lm`` of the language models,
    and with each pair of them where both are given, in float32 and in the batches of the YAML's
    ``eval_loader``, which the encoder hears once.

    What JSON can hold: `split`, `search`, `utterances`, `hardware`, `precision`, and `results` in the order
    asked for, each with `weights` {"attention" or scorer: what was searched with} and `wer` as in
    results.json.

    Raises
    ------
    FileNotFoundError
        If the folder is no output folder, or has no such split, or the recordings are gone.
    ValueError
        If there are no weights, or some that the search cannot have, no checkpoint, no such search, or one
        that is no JointBeamSearcher; for a training split, one without words, and a recording that cannot be
        read.
    """
    if not (ctc or lm):
        raise ValueError("there is nothing to tune; give weights of the CTC or of the language model.")
    folder = Path(folder)
    recogniser = Recogniser(folder, search=search, device=device or default_device())
    searcher = getattr(recogniser.search, "searcher", None)
    if not isinstance(searcher, JointBeamSearcher):
        raise ValueError(
            f"the search {recogniser.search_name} is no JointBeamSearcher, whose weights alone can be tuned."
        )
    grid = [{"ctc": c, "lm": w} for c, w in itertools.product(ctc or [None], lm or [None])]
    weights = []
    for chosen in grid:  # all of them before any work is done
        searcher.set_weights(**chosen)
        weights.append(searcher.weights())
    if split in recogniser.hparams["train_splits"]:
        raise ValueError(
            f"{split} is a training split of this run; weights chosen there suit what the model knows by heart."
        )
    recordings = split_recordings(
        folder, split, hparams=(folder / "hyperparams.yaml").read_text(encoding="utf-8")
    )
    references = {item.id: item.text for item in recordings}
    score_split(references, references)  # refuses a split without words now, not after the searches
    texts: list[dict[str, str]] = [{} for _ in grid]
    manifest, data_folder = folder / "manifests" / f"{split}.csv", recogniser.hparams["data_folder"]
    dataset = load_dataset([manifest], data_folder=data_folder, tokenizer=recogniser.tokenizer)
    loader = recogniser.hparams["eval_loader"](dataset, Ranks())
    try:
        for batch in tqdm(loader, desc=f"{split}, {len(grid)} weights", disable=not progress):
            wavs, relative = batch.to(recogniser.device).sig
            _, output = recogniser.listen(wavs, to_absolute(relative, wavs.shape[1]))
            for chosen, of_weights in zip(grid, texts, strict=True):
                searcher.set_weights(**chosen)
                of_weights.update(
                    zip(batch.id, recogniser.tokenizer.decode(recogniser.search(output)), strict=True)
                )
    except soundfile.SoundFileError as error:
        raise ValueError(f"a recording of {split} cannot be read as audio: {error}") from error
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
    """What `tune_weights` found, for people."""
    results = found["results"]
    lowest = min(entry["wer"]["rate"] for entry in results)
    rows = [[f"{weight:g}" for weight in entry["weights"].values()] for entry in results]
    names = list(results[0]["weights"])
    widths = [2 + max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [
        f"{found['split']}, {found['utterances']} utterances, {found['search']}, {machine_name(found['hardware'])}, "
        f"{found['precision']}",
        "",
        "".join(f"{name:<{width}}" for name, width in zip(names, widths, strict=True)) + "WER (95% interval)",
    ]
    for row, entry in zip(rows, results, strict=True):
        rate, (low, high) = entry["wer"]["rate"], entry["wer"]["interval_95"]
        weights = "".join(f"{weight:<{width}}" for weight, width in zip(row, widths, strict=True))
        lines.append(
            f"{weights}{rate:.2f} ({low:.2f} to {high:.2f})" + ("  lowest" if rate == lowest else "")
        )
    return "\n".join(lines)
