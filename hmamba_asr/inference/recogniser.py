"""A trained model out of its output folder, and what it hears in recordings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer
from torch import Tensor

from hmamba_asr.decoding.alignment import Span, align_tokens, state_times, words_of
from hmamba_asr.models.asr import ASROutput
from hmamba_asr.models.weights import best_average


@dataclass
class Transcription:
    """What was said; ``words`` with times in seconds if they were asked for."""

    text: str
    words: list[Span] | None = None


class Recogniser:
    """The average of the best checkpoints of a run, with one of the searches of its YAML (default: the last
    one).

    Raises
    ------
    FileNotFoundError
        If the folder is no output folder of ``train.py``.
    ValueError
        If it has no checkpoint, the YAML no such search, or this machine no such device.
    """

    def __init__(self, folder: str | Path, *, search: str | None = None, device: str = "cpu"):
        folder = Path(folder)
        yaml = folder / "hyperparams.yaml"
        if not yaml.is_file():
            raise FileNotFoundError(
                f"{folder} holds no hyperparams.yaml; give the output folder of a training run."
            )
        # Without the checkpointer, which clears half-written checkpoints away: they may be those of a run
        # that goes on.
        hparams = load_hyperpyyaml(
            yaml.read_text(encoding="utf-8"), {"output_folder": str(folder), "checkpointer": None}
        )
        searches = hparams["test_searches"]
        search = search or list(searches)[-1]
        if search not in searches:
            raise ValueError(f"{yaml} has no search '{search}'; it has {', '.join(searches)}.")
        try:
            self.device = torch.zeros((), device=device).device
        except (AssertionError, RuntimeError) as error:  # PyTorch without CUDA asserts
            raise ValueError(
                f"the device '{device}' cannot be used here ({str(error).splitlines()[0]}); give cpu."
            ) from error
        self.hparams, self.search_name = hparams, search
        self.model, self.features = (
            hparams["model"].to(self.device).eval(),
            hparams["features"].to(self.device).eval(),
        )
        self.tokenizer, self.sample_rate, self.blank = (
            hparams["tokenizer"],
            hparams["sample_rate"],
            hparams["blank_index"],
        )
        self.search = searches[search].to(self.device)
        self._load(folder, hparams)

    def _load(self, folder: Path, hparams: dict) -> None:
        checkpoints = Checkpointer(folder / "save")
        parameters, _ = best_average(checkpoints, hparams["avg_checkpoints"])
        self.model.load_state_dict(parameters)
        if "pretrainer" in hparams:
            hparams["pretrainer"].collect_files()
            hparams["pretrainer"].load_collected()
        else:
            name = f"{hparams['tokenizer_type']}{hparams['vocab_size']}.model"
            self.tokenizer.load(str(folder / "tokenizer" / name))

    def read(self, audio: str | Path) -> Tensor:
        """Samples (1, S) of one recording.

        Raises
        ------
        ValueError
            If it cannot be read, has another sample rate than the model or several channels.
        """
        try:
            samples, rate = soundfile.read(audio, dtype="float32")
        except (OSError, soundfile.SoundFileError) as error:
            raise ValueError(f"{audio} cannot be read as audio: {error}") from error
        if rate != self.sample_rate or samples.ndim != 1:
            channels = 1 if samples.ndim == 1 else samples.shape[1]
            raise ValueError(
                f"{audio} has {rate} Hz and {channels} channel(s), the model takes {self.sample_rate} Hz and one; convert it "
                f"(sox {audio} -r {self.sample_rate} -c 1 OUT.flac)."
            )
        return torch.from_numpy(samples).unsqueeze(0).to(self.device)

    @torch.no_grad()
    def listen(self, wavs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ASROutput]:
        """Features (B, T, n_mels) and what the model makes of them, of samples (B, S) of ``lengths`` (B,), by
        default S."""
        if lengths is None:
            lengths = torch.full((len(wavs),), wavs.shape[1], device=self.device)
        features, lengths = self.features(wavs, lengths)
        return features, self.model(features, lengths)

    @torch.no_grad()
    def transcribe(self, audio: str | Path, *, timestamps: bool = False) -> Transcription:
        """The words of one recording.

        Raises
        ------
        ValueError
            As :meth:`read`.
        """
        _, output = self.listen(self.read(audio))
        (tokens,) = self.search(output)
        text = self.tokenizer.decode(tokens)
        if not timestamps:
            return Transcription(text)
        words = words_of(self.align(output, tokens))
        # The first frame begins half a frame before the recording does.
        return Transcription(text, [replace(word, start=max(0.0, word.start)) for word in words])

    def align(self, output: ASROutput, tokens: list[int]) -> list[Span]:
        """When the CTC has each of these tokens, of a batch of one; see
        :func:`~hmamba_asr.decoding.alignment.align_tokens`."""
        log_probs = output.ctc_logits[0, : int(output.encoded.lengths[0])].log_softmax(-1)
        first, second = (
            self.features.hop_seconds * self.model.frontend.centres(frame) for frame in (-0.5, 0.5)
        )
        times = state_times(output.encoded, first=first, step=second - first)
        return align_tokens(
            log_probs, tokens, blank=self.blank, state_times=times, piece=self.tokenizer.id_to_piece
        )
