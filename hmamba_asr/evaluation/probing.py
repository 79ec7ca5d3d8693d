"""What is measured on a trained run beside its evaluation: its speed, the stability of its boundaries, its
CTC's alignment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hmamba_asr.decoding.alignment import Span, merge_words
from hmamba_asr.evaluation.chunk_statistics import segmentations
from hmamba_asr.evaluation.compare import RunFolder, load_run
from hmamba_asr.evaluation.recordings import Recording, split_recordings, spread_over_durations
from hmamba_asr.evaluation.results import plain
from hmamba_asr.evaluation.segmentation import Alignment, Segmentation
from hmamba_asr.evaluation.speed import RUN_FILE, RUN_KIND, Subject, measure, render_speed
from hmamba_asr.evaluation.stability import Noise, Speed, compare_boundaries
from hmamba_asr.inference.recogniser import Recogniser
from hmamba_asr.models.asr import ASROutput
from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.hardware import default_device, hardware, machine_name


def _chosen(run: RunFolder, split: str | None, count: int) -> tuple[str, list[Recording]]:
    """The split (the run's first, where none is given) and recordings of it, evenly spaced over their
    durations."""
    if count < 1:
        raise ValueError(f"there is nothing to measure on {count} utterances; give 1 or more.")
    splits = list(run.results["evaluation"])
    if not splits:
        raise ValueError(
            f"{run.folder} was evaluated on no split; evaluate it (the same command with --test_only)."
        )
    split = split or splits[0]
    return split, spread_over_durations(
        split_recordings(run.folder, split, hparams=run.results["hparams"]), count
    )


def measure_run(
    folder: str | Path,
    *,
    split: str | None = None,
    searches: Sequence[str] | None = None,
    utterances: int = 16,
    batch: int = 8,
    passes: int = 3,
    device: str | None = None,
) -> dict[str, Any]:
    """Speed of a trained run on recordings of a test split, see `evaluation.speed`; also written to its
    `efficiency.json`.

    What JSON can hold: `split`, `hardware`, `torch`, `precision`, and what `speed.measure` returns, the
    searches being the subjects.

    Raises
    ------
    FileNotFoundError
        If the folder is no evaluated run, or the recordings are gone.
    ValueError
        If there is no checkpoint or search of that name, a recording cannot be read, or a size is below 1.
    """
    run = load_run(folder)
    split, chosen = _chosen(run, split, utterances)
    searches = searches or list(run.results["evaluation"].get(split, {})) or [None]
    device = device or default_device()
    subjects, samples, rate = {}, [], 0
    for name in searches:
        recogniser = Recogniser(folder, search=name, device=device)
        subjects[name or "default"] = Subject(
            recogniser.features, recogniser.model, recogniser.search, recogniser.device
        )
        rate = recogniser.sample_rate
        samples = samples or [recogniser.read(item.path)[0].cpu() for item in chosen]
    found = {
        "kind": RUN_KIND,
        "split": split,
        "hardware": hardware(device),
        "torch": torch.__version__,
        "precision": "fp32",
        **measure(subjects, samples, sample_rate=rate, batch_size=batch, passes=passes),
    }
    found = plain(found, "efficiency")
    with write_atomically(Path(folder) / RUN_FILE) as stream:
        json.dump(found, stream, indent=2)
        stream.write("\n")
    return found


def render_run(found: Mapping[str, Any]) -> str:
    """What `measure_run` found, for people."""
    where = machine_name(found["hardware"])
    return f"{found['split']}, {where}, torch {found['torch']}, {found['precision']}\n{render_speed(found)}"


# ---- Boundaries -------------------------------------------------------------------------------------------------------


def measure_stability(
    folder: str | Path,
    *,
    split: str | None = None,
    noise: Sequence[float] = (),
    speed: Sequence[float] = (),
    utterances: int = 50,
    stage: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """How a trained run's boundaries of changed recordings agree with those of the clean ones, see
    `evaluation.stability`.

    ``noise`` are signal-to-noise ratios in dB, ``speed`` factors. What JSON can hold: `utterances`, `seed`,
    `kept` {"clean" or change: chunks of the stage for each encoder frame}, `conditions` {change: what
    `compare_boundaries` returns}.

    Raises
    ------
    FileNotFoundError
        If the folder is no evaluated run, or the recordings are gone.
    ValueError
        If the encoder does not chunk, or has no such stage, for a speed that is none, or nothing to measure.
    """
    changes = [*map(Noise, noise), *map(Speed, speed)]
    run = load_run(folder)
    _, chosen = _chosen(run, split, utterances)
    recogniser = Recogniser(folder, device=device)
    samples = {item.id: recogniser.read(item.path)[0].cpu().numpy() for item in chosen}
    clean = [_chunks(recogniser, key, torch.from_numpy(wav)) for key, wav in samples.items()]
    conditions, kept = {}, {"clean": _kept(clean, stage)}
    for change in changes:
        changed = [
            _chunks(recogniser, key, torch.from_numpy(change.apply(wav, id=key, seed=seed)))
            for key, wav in samples.items()
        ]
        conditions[change.name] = compare_boundaries(
            clean, changed, stretch=change.stretch, stage=stage, seed=seed
        )
        kept[change.name] = _kept(changed, stage)
    return {"utterances": len(chosen), "seed": seed, "kept": kept, "conditions": conditions}


def _chunks(recogniser: Recogniser, utterance: str, samples: torch.Tensor) -> Segmentation:
    """Where the chunks of samples (S,) begin.

    Raises
    ------
    ValueError
        If the encoder does not chunk.
    """
    _, output = recogniser.listen(samples.unsqueeze(0).to(recogniser.device))
    found = segmentations(output.encoded, [utterance], hop_seconds=recogniser.features.hop_seconds)
    if not found:
        raise ValueError(
            "the encoder of this run has no chunking stage; give a run of H-Mamba or of its control."
        )
    return found[0]


def _kept(chunks: Sequence[Segmentation], stage: int) -> float:
    return sum(len(item.starts[stage]) for item in chunks) / sum(item.frames for item in chunks)


@dataclass(frozen=True)
class CTCAlignments:
    """``alignments`` by utterance ID, with tiers "tokens" and "words"; ``chunk_rate``: the CTC's steps are
    those of chunks."""

    alignments: dict[str, Alignment]
    chunk_rate: bool


def ctc_alignments(
    aligner: str | Path, folder: str | Path, *, split: str, utterances: int = 50, device: str = "cpu"
) -> CTCAlignments:
    """When the CTC of the run ``aligner`` has the reference's tokens and words, in test utterances of the run
    ``folder``.

    Utterances whose reference needs more steps than the CTC has are left out.

    Raises
    ------
    FileNotFoundError
        If one of the folders is no evaluated run, or the recordings are gone.
    ValueError
        If there is nothing to align, or no checkpoint.
    """
    _, chosen = _chosen(load_run(folder), split, utterances)
    recogniser = Recogniser(aligner, device=device)
    alignments = {}
    for item in chosen:
        _, output = recogniser.listen(recogniser.read(item.path))
        spans = recogniser.align(output, recogniser.tokenizer.encode(item.text))
        if spans:
            alignments[item.id] = _as_alignment(recogniser, output, spans)
    return CTCAlignments(alignments, recogniser.model.encoder.shortens)


def _as_alignment(recogniser: Recogniser, output: ASROutput, tokens: Sequence[Span]) -> Alignment:
    """A token or word lasts until the next one starts: where a CTC's labels end says little."""
    edges = output.encoded.time_axis.edges(0, recogniser.features.hop_seconds)
    first, end = float(edges[0]), float(edges[-1])

    def tier(spans: Sequence[Span]) -> tuple[tuple[float, float, str], ...]:
        starts = [span.start for span in spans]
        intervals = list(zip(starts, [*starts[1:], end], [span.text for span in spans], strict=True))
        return ((first, starts[0], ""), *intervals) if starts[0] > first else tuple(intervals)

    return Alignment({"tokens": tier(tokens), "words": tier(merge_words(tokens))})
