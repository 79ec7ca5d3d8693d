"""Stability of chunk boundaries when a recording is changed by white noise or by speed, and its words stay
the same.

The boundaries of the clean recording count as true, and those of the changed recording as found, in the time
of the clean one. The random and evenly spaced baselines have as many boundaries as were found, on the frames
of the changed recording. A fixed stride, and the evenly spaced baseline with it, is stable under noise by
construction. So look at how far boundaries that follow the speech are above the baselines.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torchaudio.functional import resample

from hmamba_asr.evaluation.boundary_agreement import (
    TOLERANCES,
    agreements,
    candidates,
    render_agreement,
    summarise,
)
from hmamba_asr.evaluation.chunk_statistics import segmentations
from hmamba_asr.evaluation.finished_run import load_run, sample_recordings
from hmamba_asr.evaluation.segmentation import Segmentation, check_stage
from hmamba_asr.inference.recogniser import Recogniser


@dataclass(frozen=True)
class Noise:
    """White Gaussian noise, at a signal-to-noise ratio `snr` in dB over the whole recording."""

    snr: float
    stretch: ClassVar[float] = 1.0  # seconds of the clean recording for each second of the changed one

    @property
    def name(self) -> str:
        """The change in a few characters."""
        return f"noise {self.snr:g} dB"

    def apply(self, samples: np.ndarray, *, id: str, seed: int) -> np.ndarray:
        """Add noise that is drawn from the seed and the utterance's ID, (S,) -> (S,). Silence stays
        silence."""
        random = np.random.default_rng([seed, zlib.crc32(id.encode())])
        deviation = np.sqrt(np.mean(np.square(samples, dtype=float)) / 10 ** (self.snr / 10))
        return (samples + deviation * random.standard_normal(len(samples))).astype(np.float32)


@dataclass(frozen=True)
class Speed:
    """Resampling as in speed perturbation: faster with a factor above 1, slower below; the pitch changes too.

    Raises
    ------
    ValueError
        If the factor is not from 0.5 to 2.
    """

    factor: float

    def __post_init__(self) -> None:
        if not 0.5 <= self.factor <= 2:
            raise ValueError(
                f"a speed of {self.factor:g} is no speech; give a factor from 0.5 to 2, such as 0.9."
            )

    @property
    def name(self) -> str:
        """The change in a few characters."""
        return f"speed {float(self._ratio):g}"

    @property
    def stretch(self) -> float:
        """Seconds of the clean recording for each second of the changed one."""
        return float(self._ratio)

    @property
    def _ratio(self) -> Fraction:
        return Fraction(self.factor).limit_denominator(100)

    def apply(self, samples: np.ndarray, *, id: str, seed: int) -> np.ndarray:
        """Resample, (S,) -> (about S / factor,). ID and seed make no difference."""
        ratio = self._ratio
        return resample(torch.from_numpy(samples), ratio.numerator, ratio.denominator).numpy()


def compare_boundaries(
    clean: Sequence[Segmentation],
    changed: Sequence[Segmentation],
    *,
    stretch: float,
    stage: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare the boundaries of changed recordings with those of the clean ones.

    Parameters
    ----------
    clean, changed
        The same utterances in the same order.
    stretch
        Seconds of a clean recording for each second of the changed one.
    stage
        Which chunking stage to look at; 0 is the outermost.
    seed
        Seed of random boundaries and resampling.

    Returns
    -------
    dict
        For each tolerance in ms, what `boundary_agreement.summarise` returns.

    Raises
    ------
    ValueError
        If there is no such stage, or the utterances differ.
    """
    if [item.id for item in clean] != [item.id for item in changed] or not clean:
        raise ValueError(
            "the clean and the changed recordings do not hold the same utterances, or none; give both in the "
            "same "
            "order."
        )
    check_stage(clean, stage)
    random = np.random.default_rng(seed)
    found: dict[float, list] = {tolerance: [] for tolerance in TOLERANCES}
    for before, after in zip(clean, changed, strict=True):
        drawn = {
            kind: [stretch * times for times in draws]
            for kind, draws in candidates(after, stage, random).items()
        }
        for tolerance in TOLERANCES:
            found[tolerance].append(agreements(before.boundaries(stage), drawn, tolerance))
    return {f"{1000 * tolerance:.0f}": summarise(items, seed=seed) for tolerance, items in found.items()}


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
    """Measure how stable a trained run's boundaries are.

    Parameters
    ----------
    folder
        Output folder of an evaluated run whose encoder chunks.
    split
        One of its test splits. By default the first.
    noise, speed
        Signal-to-noise ratios in dB, and speed factors.
    utterances
        Number of recordings, evenly spaced over the durations of the split.
    stage
        Which chunking stage to look at; 0 is the outermost.
    seed
        Seed of noise and random boundaries.
    device
        "cpu" or "cuda".

    Returns
    -------
    dict
        Only types of JSON: `utterances`, `seed`, `kept` {"clean" or change: chunks of the stage for each
        encoder frame}, and `conditions` {change: what `compare_boundaries` returns}.

    Raises
    ------
    FileNotFoundError
        If the folder is no evaluated run, or the recordings do not exist.
    ValueError
        If the encoder does not chunk or has no such stage, a speed is out of range, or there is nothing to
        measure.
    """
    changes: list[Noise | Speed] = [*map(Noise, noise), *map(Speed, speed)]
    _, recordings = sample_recordings(load_run(folder), split, utterances)
    recogniser = Recogniser(folder, device=device)
    samples = {row.id: recogniser.read(row.audio)[0].cpu().numpy() for row in recordings}
    clean = [_segmentation(recogniser, key, torch.from_numpy(wav)) for key, wav in samples.items()]
    conditions, kept = {}, {"clean": _kept(clean, stage)}
    for change in changes:
        changed = [
            _segmentation(recogniser, key, torch.from_numpy(change.apply(wav, id=key, seed=seed)))
            for key, wav in samples.items()
        ]
        conditions[change.name] = compare_boundaries(
            clean, changed, stretch=change.stretch, stage=stage, seed=seed
        )
        kept[change.name] = _kept(changed, stage)
    return {"utterances": len(recordings), "seed": seed, "kept": kept, "conditions": conditions}


def _segmentation(recogniser: Recogniser, utterance: str, samples: torch.Tensor) -> Segmentation:
    """Return where the chunks of samples (S,) begin; refuse an encoder that does not chunk."""
    _, output = recogniser.encode(samples.unsqueeze(0).to(recogniser.device))
    found = segmentations(output.encoded, [utterance], hop_seconds=recogniser.features.hop_seconds)
    if not found:
        raise ValueError(
            "the encoder of this run has no chunking stage; give a run of H-Mamba or of its control."
        )
    return found[0]


def _kept(items: Sequence[Segmentation], stage: int) -> float:
    return sum(len(item.starts[stage]) for item in items) / sum(item.frames for item in items)


def render_stability(found: Mapping[str, Any]) -> str:
    """Return what `measure_stability` found as text."""
    kept = ", ".join(f"{name} {fraction:.3f}" for name, fraction in found["kept"].items())
    return "\n".join(
        [
            f"Stability: {found['utterances']} utterances, against the boundaries of the clean recordings, "
            f"seed {found['seed']}",
            f"Chunks for each frame: {kept}",
            "",
            render_agreement(found["conditions"], "change"),
        ]
    )
