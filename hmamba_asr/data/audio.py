"""Recordings as samples: the one place that reads and writes audio."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile


def read_audio(path: str | Path, *, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Read a mono recording.

    Parameters
    ----------
    path
        The recording, in any format that libsndfile knows (FLAC, WAV, OGG, MP3, ...).
    sample_rate
        The rate in Hz that the recording must have. None accepts every rate.

    Returns
    -------
    tuple
        The samples, float32 (S,) in [-1, 1], and their rate in Hz.

    Raises
    ------
    ValueError
        If the file cannot be read, has several channels, or has another rate.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.SoundFileError) as error:
        raise ValueError(f"{path} cannot be read as audio: {error}") from error
    wanted = rate if sample_rate is None else sample_rate
    if rate != wanted or samples.ndim != 1:
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        raise ValueError(
            f"{path} has {rate} Hz and {channels} channel(s), the model takes {wanted} Hz and one; convert "
            f"it (sox {path} -r {wanted} -c 1 OUT.flac)."
        )
    return samples, rate


def decode_audio(content: bytes) -> tuple[np.ndarray, int]:
    """Decode the content of an audio file.

    Returns
    -------
    tuple
        The samples, int16 (S,), or (S, channels) of several channels, and their rate in Hz.

    Raises
    ------
    soundfile.SoundFileError
        If libsndfile does not know the format.
    """
    return soundfile.read(io.BytesIO(content), dtype="int16")


def write_flac(path: str | Path, samples: np.ndarray, sample_rate: int) -> None:
    """Write samples, int16 (S,), as a FLAC file of 16 bits.

    Raises
    ------
    OSError
        If the disk is full or refuses the file. (libsndfile itself would name no reason.)
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, format="FLAC", subtype="PCM_16")
    Path(path).write_bytes(encoded.getvalue())
