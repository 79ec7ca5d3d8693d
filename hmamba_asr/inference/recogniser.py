"""Recognise recordings with a trained model, read from the output folder of its run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import Checkpointer
from torch import Tensor

from hmamba_asr.config.hparams import load_hparams
from hmamba_asr.config.select import select_search
from hmamba_asr.data.audio import read_audio
from hmamba_asr.decoding.alignment import Span, align_tokens, merge_words
from hmamba_asr.decoding.search import Search
from hmamba_asr.models.asr import ASROutput
from hmamba_asr.models.weights import best_average, load_pretrained
from hmamba_asr.system.run_layout import RunLayout


@dataclass
class Transcription:
    """The transcript of a recording.

    Attributes
    ----------
    text
        The words, with spaces between them.
    words
        Each word with its times in seconds, if they were asked for.
    """

    text: str
    words: list[Span] | None = None


class Recogniser:
    """A trained model with one search.

    The weights are the average of the run's best checkpoints. Only what recognition needs is built and
    fetched: the features, the model, the tokenizer and the search.

    Parameters
    ----------
    folder
        Output folder of train.py. It is only read, except that pretrained files are collected in its folder
        pretrained/.
    search
        A name among the YAML's ``test_searches``. The default is the last one.
    device
        Where to compute, such as "cpu" or "cuda".

    Attributes
    ----------
    features, model, tokenizer, search
        The parts, ready for inference.
    search_name
        Name of the search.
    sample_rate
        Rate of the recordings in Hz.
    blank
        Index of the CTC's blank.
    device
        Where the parts are.
    settings
        The YAML's keys that hold plain values.

    Raises
    ------
    FileNotFoundError
        If the folder holds no hyperparams.yaml.
    ValueError
        If there is no checkpoint, no such search or no such device.
    OSError
        If pretrained files cannot be fetched.
    """

    def __init__(self, folder: str | Path, *, search: str | None = None, device: str = "cpu"):
        layout = RunLayout(folder)
        yaml = layout.hyperparams
        if not yaml.is_file():
            raise FileNotFoundError(
                f"{folder} holds no hyperparams.yaml; give the output folder of a training run."
            )
        self.device = _usable_device(device)
        self.search_name, part = select_search(yaml.read_text(encoding="utf-8"), search)
        built = load_hparams(part)
        self.features = built.pop("features").to(self.device).eval()
        self.model = built.pop("model").to(self.device).eval()
        self.search: Search = built.pop("search").to(self.device)
        self.tokenizer = built.pop("tokenizer")
        pretrainer = built.pop("pretrainer", None)
        self.settings: dict[str, Any] = built
        self.sample_rate: int = built["sample_rate"]
        self.blank: int = built["blank_index"]

        weights, _ = best_average(Checkpointer(layout.checkpoints), built["avg_checkpoints"])
        self.model.load_state_dict(weights)
        if pretrainer is None:
            self.tokenizer.load(str(layout.tokenizer(built["tokenizer_type"], built["vocab_size"])))
        else:
            load_pretrained(pretrainer, layout.pretrained)  # the folder of the YAML may have moved

    def read(self, audio: str | Path) -> Tensor:
        """Read a recording.

        Parameters
        ----------
        audio
            A mono file at the model's sample rate.

        Returns
        -------
        Tensor
            The samples (1, S), float32 in [-1, 1], on the recogniser's device.

        Raises
        ------
        ValueError
            If the file cannot be read, is not mono or has another sample rate.
        """
        samples, _ = read_audio(audio, sample_rate=self.sample_rate)
        return torch.from_numpy(samples).unsqueeze(0).to(self.device)

    @torch.no_grad()
    def encode(self, wavs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ASROutput]:
        """Run the features and the model on a batch of recordings.

        Parameters
        ----------
        wavs
            Samples (B, S).
        lengths
            Number of samples of each recording (B,). The default is S for all.

        Returns
        -------
        features
            Log-Mel features (B, T, n_mels).
        output
            Encoder states and CTC logits.
        """
        if lengths is None:
            lengths = torch.full((len(wavs),), wavs.shape[1], device=self.device)
        features, lengths = self.features(wavs, lengths)
        return features, self.model(features, lengths)

    @torch.no_grad()
    def transcribe(self, audio: str | Path, *, timestamps: bool = False) -> Transcription:
        """Transcribe one recording.

        Parameters
        ----------
        audio
            A mono file at the model's sample rate.
        timestamps
            Whether to align the words with the recording.

        Raises
        ------
        ValueError
            If the file cannot be read, is not mono or has another sample rate.
        """
        _, output = self.encode(self.read(audio))
        (tokens,) = self.search(output)
        text = self.tokenizer.decode(tokens)
        if not timestamps:
            return Transcription(text)
        words = merge_words(self.align(output, tokens))
        # The first encoder frame begins half a frame before the recording does.
        return Transcription(text, [replace(word, start=max(0.0, word.start)) for word in words])

    def align(self, output: ASROutput, tokens: list[int]) -> list[Span]:
        """Align tokens with a recording, by the CTC.

        Parameters
        ----------
        output
            What :meth:`encode` gives for a batch of one.
        tokens
            The tokens of the transcript.

        Returns
        -------
        list of Span
            The time of each token in seconds; see :func:`hmamba_asr.decoding.alignment.align_tokens`.
        """
        log_probs = output.ctc_logits[0, : int(output.encoded.lengths[0])].log_softmax(-1)
        times = output.encoded.time_axis.edges(0, self.features.hop_seconds)
        return align_tokens(
            log_probs, tokens, blank=self.blank, state_times=times, piece=self.tokenizer.id_to_piece
        )


def load(folder: str | Path, *, search: str | None = None, device: str = "cpu") -> Recogniser:
    """Load a trained model.

    Parameters
    ----------
    folder
        Output folder of train.py.
    search
        A name among the YAML's ``test_searches``. The default is the last one.
    device
        Where to compute, such as "cpu" or "cuda".

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        As :class:`Recogniser`.
    """
    return Recogniser(folder, search=search, device=device)


def _usable_device(name: str) -> torch.device:
    """Return the device, or raise ValueError if nothing can be stored there."""
    try:
        return torch.zeros((), device=name).device
    except (AssertionError, RuntimeError) as error:  # PyTorch without CUDA asserts
        raise ValueError(
            f"the device '{name}' cannot be used here ({str(error).splitlines()[0]}); give cpu."
        ) from error
