"""Spectrograms of one utterance, with the boundaries and chunks that an encoder made of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hmamba_asr.report.media import add_tips, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hmamba_asr.evaluation.segmentation import Segmentation
    from hmamba_asr.evaluation.textgrid import Tiers

Seconds = float


@dataclass(frozen=True)
class BoundaryTrack:
    """What one chunking stage decided about each state that it was given.

    Attributes
    ----------
    times : array (T,)
        The middle of each state, in seconds.
    prob : array (T,)
        The boundary probability.
    mask : array (T,)
        Whether a chunk starts here.
    """

    times: np.ndarray
    prob: np.ndarray
    mask: np.ndarray


def draw_boundaries(
    path: str | Path,
    *,
    spectrogram: np.ndarray,
    hop: Seconds,
    tracks: Sequence[BoundaryTrack],
    transcript: str,
    title: str,
) -> None:
    """Write a PNG with a spectrogram and, below it, the boundary probabilities of each chunking stage.

    The outermost stage's boundaries are drawn into the spectrogram too.

    Parameters
    ----------
    path
        The PNG. Its folder is made if it is not there.
    spectrogram : array (frames, bands)
        Features of the utterance.
    hop
        Time from one frame of the spectrogram to the next, in seconds.
    tracks
        One for each chunking stage, the outermost first.
    transcript, title
        Text above the picture.

    Raises
    ------
    ValueError
        If there are no tracks.
    """
    if not tracks:
        raise ValueError(f"nothing to draw for {title}: the encoder of this run has no chunking stage.")
    import matplotlib.pyplot as plt

    seconds = len(spectrogram) * hop
    width = min(40.0, max(8.0, 3.0 * seconds))  # inches: 40 ms frames stay apart, up to 13 s of them
    figure, axes = new_figure(
        1 + len(tracks),
        figsize=(width, 3.0 + 1.6 * len(tracks)),
        sharex=True,
        height_ratios=[2.0] + [1.0] * len(tracks),
    )
    bands = (-0.5, spectrogram.shape[1] - 0.5)
    axes[0].imshow(
        spectrogram.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(-hop / 2, seconds - hop / 2, *bands),  # a frame stands in the middle of its hop
    )
    starts = tracks[0].times[tracks[0].mask]
    axes[0].vlines(starts, *bands, color="cyan", linewidth=0.7, alpha=0.8)
    axes[0].set(ylabel="Mel band")
    words = textwrap.fill(transcript or "(empty)", int(12 * width))
    axes[0].set_title(f"{title}\n{words}", fontsize=10, loc="left")
    for number, (axis, track) in enumerate(zip(axes[1:], tracks, strict=True)):
        axis.plot(track.times, track.prob, color="C0", linewidth=0.9, marker=".", markersize=3)
        axis.axhline(0.5, color="gray", linewidth=0.6, linestyle="--")
        axis.vlines(track.times[track.mask], 0, 1, color="C1", linewidth=0.8, alpha=0.7)
        kept = f"{track.mask.sum()} of {len(track.mask)} kept ({track.mask.mean():.2f})"
        axis.set(ylim=(0, 1.02), ylabel="p" if len(tracks) == 1 else f"p, stage {number}")
        axis.set_title(kept, fontsize=8, loc="right", pad=2)
    axes[-1].set(xlabel="seconds", xlim=(-hop / 2, seconds - hop / 2))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_chunks(
    samples: np.ndarray, sample_rate: int, chunks: Segmentation, *, alignment: Tiers | None = None
) -> Figure:
    """Draw a spectrogram and, below it, the chunks of each stage, and phones and words where they are known.

    Parameters
    ----------
    samples : array (S,)
        The recording, one channel.
    sample_rate
        In Hz.
    chunks
        Where the utterance's chunks start.
    alignment
        A forced alignment of the utterance.
    """
    import matplotlib

    stages = len(chunks.starts)
    tiers = ("phones", "words") if alignment else ()
    seconds = len(samples) / sample_rate
    ink = matplotlib.rcParams["text.color"]
    figure, axes = new_figure(
        1 + stages + len(tiers),
        figsize=(min(12.0, max(8.0, 2.2 * seconds)), 2.0 + 0.4 * (stages + len(tiers))),
        sharex=True,
        height_ratios=[5.0] + [1.0] * (stages + len(tiers)),
    )
    window = int(0.025 * sample_rate)
    axes[0].specgram(
        samples + 1e-7,  # the logarithm of digital silence would be minus infinity
        NFFT=window,
        noverlap=window - int(0.01 * sample_rate),
        Fs=sample_rate,
        cmap="magma",
        vmin=-140,
    )
    axes[0].vlines(chunks.boundaries(), 0, sample_rate / 2, color="cyan", linewidth=0.6, alpha=0.8)
    axes[0].set(ylabel="Hz", ylim=(0, sample_rate / 2))
    for stage, axis in enumerate(axes[1 : 1 + stages]):
        edges = chunks.seconds([*chunks.starts[stage], chunks.frames])
        colors = ["#9ecae1", "#4292c6"] * len(edges)
        bars = axis.barh([0] * (len(edges) - 1), np.diff(edges), left=edges[:-1], height=1, color=colors)
        for bar, start, end in zip(bars, edges[:-1], edges[1:], strict=True):
            add_tips(bar, [f"{start:.2f} to {end:.2f} s"])
        _label_row(axis, f"chunks, stage {stage}" if stages > 1 else "chunks")
    for axis, tier in zip(axes[1 + stages :], tiers, strict=True):
        for start, end, label in alignment.intervals[tier] if alignment else ():
            axis.axvline(start, color=ink, linewidth=0.6)
            axis.text((start + end) / 2, 0, label, ha="center", va="center", fontsize=6.5, clip_on=True)
        _label_row(axis, tier)
    axes[-1].set(xlabel="seconds", xlim=(0, seconds))
    return figure


def _label_row(axis: Any, name: str) -> None:
    axis.set(yticks=[], ylim=(-0.5, 0.5))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
