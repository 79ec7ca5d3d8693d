"""Weights of the CTC and of the language model in a trained run's beam search, chosen on a development split."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.evaluation.compare import load_run
from hmamba_asr.evaluation.efficiency import StageTimer, hardware, machine_name
from hmamba_asr.evaluation.recordings import split_recordings
from hmamba_asr.evaluation.speed import Subject
from hmamba_asr.evaluation.wer import score_split
from hmamba_asr.inference import Recogniser
from hmamba_asr.models.asr import ASROutput


def tune_weights(
    folder: str | Path, *, split: str, ctc: Sequence[float] = (), lm: Sequence[float] = (), search: str | None = None,
    batch: int = 16, device: str | None = None, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """WER of a run on a split with each of the weights ``ctc`` of the CTC and ``lm`` of the language models, and with each pair
    of them where both are given. The encoder hears every batch once.

    What JSON can hold: `split`, `search`, `utterances`, `hardware`, and `weights`, in the order asked for, each {"ctc", "lm"
    (None: the YAML's), "wer": error counts, "interval_95"}.

    Raises
    ------
    FileNotFoundError
        If the folder is no evaluated run, or the recordings are gone.
    ValueError
        If there are no weights, or some that the search cannot have, no such search, or one that is no joint beam search; if a
        recording cannot be read, or ``batch`` is below 1.
    """
    if not (ctc or lm) or batch < 1:
        raise ValueError("there is nothing to tune; give weights of the CTC or of the language model, and a batch of 1 or more.")
    run = load_run(folder)
    recordings = sorted(split_recordings(run.folder, split, hparams=run.results["hparams"]), key=lambda item: -item.seconds)
    recogniser = Recogniser(folder, search=search, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    searcher = getattr(recogniser.search, "searcher", None)
    if not isinstance(searcher, JointBeamSearcher):
        raise ValueError(f"the search {search or 'of this run'} is no joint beam search, which alone has weights to tune.")
    weights = [{"ctc": c, "lm": w} for c, w in itertools.product(ctc or [None], lm or [None])]
    for chosen in weights:
        searcher.weigh(**chosen)  # before any work is done

    def every_search(output: ASROutput) -> list[list[list[int]]]:
        found = []
        for chosen in weights:
            searcher.weigh(**chosen)
            found.append(recogniser.search(output))
        return found

    subject = Subject(recogniser.features, recogniser.model, every_search, recogniser.device)
    texts: list[dict[str, str]] = [{} for _ in weights]
    starts = range(0, len(recordings), batch)
    for start in tqdm(starts, desc=f"{split}, {len(weights)} weights", disable=not progress):
        items = recordings[start : start + batch]
        samples = [recogniser.read(item.path)[0].cpu() for item in items]
        for of_weights, tokens in zip(texts, subject.recognise(samples, StageTimer(recogniser.device)), strict=True):
            of_weights.update(zip([item.id for item in items], recogniser.tokenizer.decode(tokens), strict=True))
    references = {item.id: item.text for item in recordings}
    scores = [score_split(references, of_weights) for of_weights in texts]
    return {
        "split": split, "search": recogniser.name, "utterances": len(recordings), "hardware": hardware(recogniser.device),
        "weights": [
            {**chosen, "wer": score.wer.to_dict(), "interval_95": list(score.wer_interval())}
            for chosen, score in zip(weights, scores, strict=True)
        ],
    }  # fmt: skip


def render_weights(found: Mapping[str, Any]) -> str:
    """What `tune_weights` found, for people."""
    lowest = min(entry["wer"]["rate"] for entry in found["weights"])
    named = [key for key in ("ctc", "lm") if found["weights"][0][key] is not None]
    lines = [
        f"{found['split']}, {found['utterances']} utterances, {found['search']}, {machine_name(found['hardware'])}", "",
        "".join(f"{key.upper():<8}" for key in named) + "WER (95% interval)",
    ]  # fmt: skip
    for entry in found["weights"]:
        rate, (low, high) = entry["wer"]["rate"], entry["interval_95"]
        mark = "  lowest" if rate == lowest else ""
        lines.append("".join(f"{entry[key]:<8g}" for key in named) + f"{rate:.2f} ({low:.2f} to {high:.2f}){mark}")
    return "\n".join(lines)
