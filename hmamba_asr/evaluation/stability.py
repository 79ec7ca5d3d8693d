"""Whether boundaries stay where they are when a recording is changed but what is said is not: by white noise,
and by speed.

Boundaries found in the clean recording are the true ones, those of the changed recording the found ones, in
the clean one's time. Random and evenly spaced ones are as many as the latter, on the changed recording's
frames. A fixed stride is stable under noise by construction, and so are its evenly spaced baselines: look at
what boundaries that follow the speech have beyond them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from hmamba_asr.evaluation.segmentation import (
    TOLERANCES,
    Segmentation,
    agreements,
    candidates,
    check_stage,
    render_agreement,
    summarise,
)


@dataclass(frozen=True)
class Noise:
    """White Gaussian noise at a signal-to-noise ratio in dB, over the whole recording; drawn from seed and
    utterance ID."""

    snr: float
    stretch = 1.0  # clean seconds for each changed one

    @property
    def name(self) -> str:
        return f"noise {self.snr:g} dB"

    def apply(self, samples: np.ndarray, *, id: str, seed: int) -> np.ndarray:
        """Samples (S,) -> (S,); silence stays silence."""
        random = np.random.default_rng([seed, zlib.crc32(id.encode())])
        deviation = np.sqrt(np.mean(np.square(samples, dtype=float)) / 10 ** (self.snr / 10))
        return (samples + deviation * random.standard_normal(len(samples))).astype(np.float32)


@dataclass(frozen=True)
class Speed:
    """Played faster (factor above 1) or slower, pitch included, as in speed perturbation; by resampling.

    Raises:
        ValueError: the factor is not from 0.5 to 2.
    """

    factor: float

    def __post_init__(self) -> None:
        if not 0.5 <= self.factor <= 2:
            raise ValueError(
                f"a speed of {self.factor:g} is no speech; give a factor from 0.5 to 2, such as 0.9."
            )

    @property
    def name(self) -> str:
        return f"speed {float(self._ratio):g}"

    @property
    def stretch(self) -> float:
        """Clean seconds for each changed one."""
        return float(self._ratio)

    @property
    def _ratio(self) -> Fraction:
        return Fraction(self.factor).limit_denominator(100)

    def apply(self, samples: np.ndarray, *, id: str, seed: int) -> np.ndarray:
        """Samples (S,) -> (about S / factor,)."""
        import torch
        from torchaudio.functional import resample

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
    """{tolerance in ms: what `boundaries.summarise` returns} of the same utterances in the same order; times
    of the changed ones times ``stretch`` are those of the clean ones.

    Raises:
        ValueError: there is no such stage, or the utterances are not the same.
    """
    if [item.id for item in clean] != [item.id for item in changed] or not clean:
        raise ValueError("stability needs the same utterances, clean and changed; there are others or none.")
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


def render_stability(found: Mapping[str, Any]) -> str:
    """`utterances`, `seed`, `kept` {condition: kept fraction} and `conditions` {name: what
    `compare_boundaries` returns}."""
    kept = ", ".join(f"{name} {fraction:.3f}" for name, fraction in found["kept"].items())
    return "\n".join(
        [
            f"Stability: {found['utterances']} utterances, against the boundaries of the clean recordings, seed {found['seed']}",
            f"Chunks for each frame: {kept}",
            "",
            *render_agreement(found["conditions"], "change"),
        ]
    )
