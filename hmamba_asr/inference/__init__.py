"""Use of trained models."""

from hmamba_asr.inference.recogniser import Recogniser, Transcription

__all__ = ["Recogniser", "Transcription"]
