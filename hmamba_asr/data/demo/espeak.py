"""espeak-ng through its C interface (speak_lib.h), from the package espeakng-loader."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from typing import Any

import numpy as np


def require_espeak() -> None:
    """Refuse to go on without espeak-ng."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ModuleNotFoundError(
            'the demo corpus needs espeakng-loader; run `pip install "hmamba_asr[demo]"`.'
        )


class Espeak:
    """The synthesizer, text in, samples out.

    It keeps state from one utterance to the next (flutter, resonators, noise) that no call resets. So what it
    says depends on all that it said before, in the whole process.

    Parameters
    ----------
    seed
        Of the noise in its voices.

    Attributes
    ----------
    sample_rate
        Of the speech, in Hz.

    Raises
    ------
    RuntimeError
        If espeak-ng cannot read its data.
    """

    _RETRIEVAL_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
    _RATE, _PITCH, _RANGE = 1, 3, 4

    def __init__(self, *, seed: int) -> None:
        import espeakng_loader

        data = espeakng_loader.get_data_path()
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        # It returns -1, or ends the process if we let it, when it cannot read its data.
        self.sample_rate: int = self._library.espeak_Initialize(
            self._RETRIEVAL_SYNCHRONOUS, 0, os.fsencode(data), self._DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise RuntimeError(
                f"espeak-ng cannot read its data in {data}; reinstall espeakng-loader, in a folder of a "
                "shorter name if this one has more than 150 characters."
            )
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._blocks: list[np.ndarray] = []
        samples_type = ctypes.POINTER(ctypes.c_short)
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, samples_type, ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._receive)  # kept here: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        """Take a block of samples from espeak-ng. (0: go on.)"""
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, *, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Say a text.

        Parameters
        ----------
        text
            Lower-case words.
        voice
            An accent and a voice variant, such as "en-us+m1".
        rate
            Words per minute.
        pitch, pitch_range
            From 0 to 99.

        Returns
        -------
        np.ndarray
            The speech without espeak-ng's silence at its ends, (S,) at ``sample_rate``, full scale 1.

        Raises
        ------
        RuntimeError
            If espeak-ng refuses the voice or says nothing.
        """
        encoded = text.encode()
        self._blocks.clear()
        status = [self._library.espeak_SetVoiceByName(voice.encode())]
        for parameter, value in ((self._RATE, rate), (self._PITCH, pitch), (self._RANGE, pitch_range)):
            status.append(self._library.espeak_SetParameter(parameter, value, 0))
        status.append(self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self._UTF8, None, None))
        status.append(self._library.espeak_Synchronize())
        speech = np.concatenate([np.zeros(1), *self._blocks]) / 2**15
        loud = np.flatnonzero(np.abs(speech) > 1e-3)
        if any(status) or loud.size == 0:
            raise RuntimeError(f"espeak-ng did not say {text!r} with the voice {voice} (status {status}).")
        return speech[loud[0] : loud[-1] + 1]
