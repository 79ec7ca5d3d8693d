"""Audio: samples are kept exactly, and what a model cannot take is named."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hmamba_asr.data.audio import decode_audio, read_audio, write_flac

SAMPLES = np.random.default_rng(0).integers(-(2**15), 2**15, 1001).astype(np.int16)


def test_every_sample_survives(tmp_path):
    path = tmp_path / "a.flac"
    write_flac(path, SAMPLES, 16000)
    assert soundfile.info(path).subtype == "PCM_16"
    found, rate = decode_audio(path.read_bytes())
    assert rate == 16000 and (found == SAMPLES).all()
    found, rate = read_audio(path, sample_rate=16000)
    assert rate == 16000 and found.dtype == np.float32 and (found * 2**15 == SAMPLES).all()


def test_what_a_model_cannot_take_is_named(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([SAMPLES, SAMPLES], axis=1), 8000)
    with pytest.raises(ValueError, match=r"a.wav has 8000 Hz and 2 channel\(s\), the model takes 16000 Hz"):
        read_audio(path, sample_rate=16000)
    with pytest.raises(ValueError, match=r"2 channel\(s\).*takes 8000 Hz and one; convert it"):
        read_audio(path)
    path.write_bytes(b"no audio")
    with pytest.raises(ValueError, match="a.wav cannot be read as audio: "):
        read_audio(path)
    with pytest.raises(ValueError, match="gone.wav cannot be read as audio: "):
        read_audio(tmp_path / "gone.wav")


def test_a_full_disk_is_an_error_of_the_disk(tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_flac(tmp_path / "a.flac", SAMPLES, 16000)
