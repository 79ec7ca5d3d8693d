"""hmamba_asr: Mamba speech recognition on SpeechBrain."""

__version__ = "0.1.0"
