"""From synthetic speech to a recording: sampling rate, level, room and noise."""

from __future__ import annotations

import math

import numpy as np

SAMPLE_RATE = 16_000  # Hz


def resample(x: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Downsample in the frequency domain, (S,) -> (S',), with a smooth edge below the new Nyquist
    frequency."""
    divisor = math.gcd(rate_in, rate_out)
    down, up = rate_in // divisor, rate_out // divisor
    x = np.pad(x, (0, -len(x) % down + down))  # whole periods, and zeros for the filter's wrapped-around ends
    size = len(x) // down * up
    spectrum = np.fft.rfft(x)[: size // 2 + 1]
    edge = np.clip((np.linspace(0, 1, len(spectrum)) - 0.95) / 0.05, 0, 1)  # 7.6 to 8 kHz at 16 kHz
    return np.fft.irfft(spectrum * np.cos(edge * np.pi / 2) ** 2, n=size) * (up / down)


def make_room(rng: np.random.Generator) -> np.ndarray:
    """Make the impulse response of a speaker's room, (R,): the direct sound, then noise that decays.

    The noise falls by 60 dB in RT60, which is 0.2 to 0.4 s. The direct-to-reverberant ratio is 5 to 10 dB.
    """
    rt60 = rng.uniform(0.2, 0.4)  # s
    direct_to_reverberant = rng.uniform(5, 10)  # dB
    t = np.arange(round(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60)
    tail[: round(0.003 * SAMPLE_RATE)] = 0  # the first reflection comes 3 ms after the direct sound
    tail *= 10 ** (-direct_to_reverberant / 20) / np.linalg.norm(tail)
    tail[0] = 1
    return tail


def record(speech: np.ndarray, room: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Record speech in a room: set its level, add pauses at its ends, reverberation and noise.

    Parameters
    ----------
    speech
        The samples, (S,) of full scale 1.
    room
        The impulse response of the room. With it comes pink noise at 12 to 22 dB signal-to-noise ratio. None:
        neither.
    rng
        Draws level, pauses and noise.

    Returns
    -------
    np.ndarray
        The recording, int16 (S',).
    """
    speech = speech * (10 ** (rng.uniform(-26, -20) / 20) / _rms(speech))
    ends = [round(seconds * SAMPLE_RATE) for seconds in rng.uniform(0.1, 0.25, size=2)]
    signal = np.pad(speech, ends)
    n = len(signal)
    if room is not None:
        size = n + len(room)
        signal = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(room, size), size)[:n]
        bins = np.arange(n // 2 + 1)
        pink = 1 / np.sqrt(np.maximum(bins, 50 * n / SAMPLE_RATE))  # power as 1/f above 50 Hz
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * pink, n)
        signal += noise * (_rms(speech) / _rms(noise) * 10 ** (-rng.uniform(12, 22) / 20))
    signal += rng.standard_normal(n) * 10 ** (-60 / 20)
    signal *= min(1.0, 0.99 / np.abs(signal).max())
    return np.round(signal * (2**15 - 1)).astype(np.int16)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))
