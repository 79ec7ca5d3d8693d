"""Pictures of what an encoder with chunking stages made of one utterance. Need matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hmamba_asr.evaluation.segmentation import Alignment, Segmentation

Seconds = float


@dataclass(frozen=True)
class Stage:
    """One chunking stage: the time of each state it was given (T,) in seconds, its boundary probability (T,)
    and whether a chunk begins there (T,)."""

    times: np.ndarray
    prob: np.ndarray
    mask: np.ndarray


def draw_boundaries(
    path: str | Path,
    *,
    spectrogram: np.ndarray,
    hop: Seconds,
    stages: Sequence[Stage],
    transcript: str,
    title: str,
) -> None:
    """Write a PNG: the spectrogram (frames, bands), ``hop`` seconds from frame to frame, with the outermost
    stage's boundaries in it, and below it each stage's probabilities over the same seconds. Needs matplotlib.

    Raises
    ------
    ValueError
        If there is no stage.
    """
    if not stages:
        raise ValueError(f"nothing to draw for {title}: the encoder of this run has no chunking stage.")
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    seconds = len(spectrogram) * hop
    width = min(40.0, max(8.0, 3.0 * seconds))  # inches: 40 ms frames stay apart, up to 13 s of them
    figure, axes = plt.subplots(
        1 + len(stages),
        1,
        figsize=(width, 3.0 + 1.6 * len(stages)),
        sharex=True,
        layout="constrained",
        height_ratios=[2.0] + [1.0] * len(stages),
    )
    # A frame stands in the middle of its hop.
    axes[0].imshow(
        spectrogram.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(-hop / 2, seconds - hop / 2, -0.5, spectrogram.shape[1] - 0.5),
    )
    axes[0].vlines(
        stages[0].times[stages[0].mask],
        -0.5,
        spectrogram.shape[1] - 0.5,
        color="cyan",
        linewidth=0.7,
        alpha=0.8,
    )
    axes[0].set(ylabel="Mel band")
    words = textwrap.fill(transcript or "(empty)", int(12 * width))
    axes[0].set_title(f"{title}\n{words}", fontsize=10, loc="left")
    for number, (axis, stage) in enumerate(zip(axes[1:], stages, strict=True)):
        axis.plot(stage.times, stage.prob, color="C0", linewidth=0.9, marker=".", markersize=3)
        axis.axhline(0.5, color="gray", linewidth=0.6, linestyle="--")
        axis.vlines(stage.times[stage.mask], 0, 1, color="C1", linewidth=0.8, alpha=0.7)
        kept = f"{stage.mask.sum()} of {len(stage.mask)} kept ({stage.mask.mean():.2f})"
        axis.set(ylim=(0, 1.02), ylabel="p" if len(stages) == 1 else f"p, stage {number}")
        axis.set_title(kept, fontsize=8, loc="right", pad=2)
    axes[-1].set(xlabel="seconds", xlim=(-hop / 2, seconds - hop / 2))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_chunks(
    samples: np.ndarray, sample_rate: int, chunks: Segmentation, *, alignment: Alignment | None = None
) -> Figure:
    """The spectrogram of mono samples (S,), below it each stage's chunks, and words and phones where they are
    known."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    rows = [f"chunks, stage {n}" if len(chunks.starts) > 1 else "chunks" for n in range(len(chunks.starts))]
    tiers = ("phones", "words") if alignment else ()
    seconds = len(samples) / sample_rate
    figure, axes = plt.subplots(
        1 + len(rows) + len(tiers),
        1,
        figsize=(min(16.0, max(7.0, 3.4 * seconds)), 2.2 + 0.45 * (len(rows) + len(tiers))),
        sharex=True,
        layout="constrained",
        height_ratios=[5.0] + [1.0] * (len(rows) + len(tiers)),
    )
    window = int(0.025 * sample_rate)
    # The floor keeps digital silence from being minus infinity.
    axes[0].specgram(
        samples + 1e-7,
        NFFT=window,
        noverlap=window - int(0.01 * sample_rate),
        Fs=sample_rate,
        cmap="magma",
        vmin=-140,
    )
    axes[0].vlines(chunks.boundaries(), 0, sample_rate / 2, color="cyan", linewidth=0.6, alpha=0.8)
    axes[0].set(ylabel="Hz", ylim=(0, sample_rate / 2))
    for stage, (axis, row) in enumerate(zip(axes[1:], rows, strict=False)):
        edges = chunks.seconds([*chunks.starts[stage], chunks.frames])
        axis.barh(
            [0] * (len(edges) - 1),
            np.diff(edges),
            left=edges[:-1],
            height=1,
            color=["#9ecae1", "#4292c6"] * len(edges),
        )
        _label(axis, row)
    for axis, tier in zip(axes[1 + len(rows) :], tiers, strict=True):
        for start, end, label in alignment.tiers[tier]:
            axis.axvline(start, color="black", linewidth=0.6)
            axis.text((start + end) / 2, 0, label, ha="center", va="center", fontsize=6.5, clip_on=True)
        _label(axis, tier)
    axes[-1].set(xlabel="seconds", xlim=(0, seconds))
    return figure


def _label(axis, name: str) -> None:
    axis.set(yticks=[], ylim=(-0.5, 0.5))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
