"""Noise of a stated strength, speed by resampling, and boundaries compared in the time of the clean
recording."""

from __future__ import annotations

import numpy as np
import pytest

from hmamba_asr.evaluation.segmentation import Segmentation
from hmamba_asr.evaluation.stability import Noise, Speed, compare_boundaries

RATE = 16000


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE).astype(np.float32)


@pytest.mark.parametrize("snr", [20.0, 0.0, -5.0])
def test_noise_has_the_stated_strength(snr):
    clean = tone(300)
    added = Noise(snr).apply(clean, id="u", seed=0) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.2)
    spectrum = np.abs(np.fft.rfft(added)) ** 2
    assert spectrum[: len(spectrum) // 2].mean() == pytest.approx(
        spectrum[len(spectrum) // 2 :].mean(), rel=0.1
    )  # white


def test_noise_depends_on_seed_and_utterance_alone():
    clean = tone(300)
    first = Noise(10).apply(clean, id="u", seed=0)
    assert np.array_equal(Noise(10).apply(clean, id="u", seed=0), first)
    assert not np.array_equal(Noise(10).apply(clean, id="v", seed=0), first)
    assert not np.array_equal(Noise(10).apply(clean, id="u", seed=1), first)
    assert not Noise(10).apply(np.zeros(100, dtype=np.float32), id="u", seed=0).any()


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.25])
def test_speed_changes_duration_and_pitch(factor):
    change = Speed(factor)
    faster = change.apply(tone(400), id="u", seed=0)
    assert change.stretch == pytest.approx(factor) and change.name == f"speed {factor:g}"
    assert len(faster) == pytest.approx(RATE / factor, abs=1)
    peak = np.abs(np.fft.rfft(faster * np.hanning(len(faster)))).argmax() * RATE / len(faster)
    assert peak == pytest.approx(400 * factor, abs=1)
    with pytest.raises(ValueError, match="a speed of 0.1 is no speech"):
        Speed(0.1)


def test_boundaries_of_a_faster_recording_are_found_at_their_clean_times():
    """Chunks of the clean recording start 1.1 times later; frames last 10 ms, and rounding moves a start by
    0.5 frames at most."""
    places = np.array([11, 22, 47, 80, 130])
    changed = Segmentation("u", 200, 0.0, 0.01, ((0, *places.tolist()),))
    clean = Segmentation("u", 220, 0.0, 0.01, ((0, *np.round(1.1 * places).astype(int).tolist()),))
    found = compare_boundaries([clean], [changed], stretch=1.1)
    assert found["20"]["chunks"]["f1"] == 1.0 and found["20"]["chunks"]["true"] == 5
    assert (
        compare_boundaries([clean], [changed], stretch=1.0)["20"]["chunks"]["hits"] == 2
    )  # 11 and 22 are near
    assert found["20"]["random"]["f1"] < 0.5 > found["20"]["uniform"]["f1"]
    with pytest.raises(ValueError, match="the same utterances"):
        compare_boundaries([clean], [], stretch=1.0)
    with pytest.raises(ValueError, match="no chunking stage 1"):
        compare_boundaries([clean], [changed], stretch=1.1, stage=1)
