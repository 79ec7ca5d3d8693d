"""Use of trained models: :class:`~hmamba_asr.inference.recogniser.Recogniser` reads a run folder."""
