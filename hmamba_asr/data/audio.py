"""Recordings as samples: the one place that reads audio."""

from __future__ import annotations

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
            "it "
            f"(sox {path} -r {wanted} -c 1 OUT.flac)."
        )
    return samples, rate
