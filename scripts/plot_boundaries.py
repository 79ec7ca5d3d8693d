#!/usr/bin/env python3
"""Draw where a trained encoder puts its chunks: spectrogram, boundary probability, boundaries and transcript of recordings.

    python scripts/plot_boundaries.py RUN_FOLDER AUDIO [AUDIO ...] [--output FOLDER]

RUN_FOLDER is an output folder of train.py; the average of its best checkpoints is used, as in testing. Writes one PNG for each
recording (default: into RUN_FOLDER/boundaries). Needs matplotlib: pip install -e ".[plots]".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from hmamba_asr.evaluation.figures import Stage, draw_boundaries
from hmamba_asr.models.encoder import StageOutput
from hmamba_asr.training.testing import best_average


def load_run(folder: Path) -> dict:
    """The YAML of a run with its objects, the model with its best average, the tokenizer filled.

    Raises
    ------
    ValueError
        If the folder holds no run, or no checkpoint.
    """
    saved = folder / "hyperparams.yaml"
    if not saved.is_file():
        raise ValueError(f"there is no {saved}; give the output folder of a training run.")
    hparams = load_hyperpyyaml(saved.read_text(encoding="utf-8"), {"output_folder": str(folder)})
    weights, _ = best_average(hparams["checkpointer"], hparams["avg_checkpoints"])
    hparams["model"].load_state_dict(weights)
    for module in hparams["modules"].values():
        module.eval()
    if "pretrainer" in hparams:
        tokenizer = folder / "pretrained" / "tokenizer.ckpt"
    else:
        tokenizer = folder / "tokenizer" / f"{hparams['tokenizer_type']}{hparams['vocab_size']}.model"
    hparams["tokenizer"].load(str(tokenizer))
    return hparams


def read(path: Path, sample_rate: int) -> torch.Tensor:
    """Samples (1, S) of a mono recording.

    Raises
    ------
    ValueError
        If it cannot be read, or is not mono at ``sample_rate``.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.LibsndfileError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error
    if samples.ndim != 1 or rate != sample_rate:
        raise ValueError(f"{path} has {rate} Hz and shape {samples.shape}; the model takes mono recordings of {sample_rate} Hz.")
    return torch.from_numpy(samples).unsqueeze(0)


def stages_in_time(stages: tuple[StageOutput, ...], seconds_of) -> list[Stage]:
    """Of a batch of one; ``seconds_of`` turns positions in encoder frames into seconds."""
    drawn, positions = [], torch.arange(stages[0].boundary_prob.shape[1] if stages else 0)
    for stage in stages:
        states = int(stage.lengths)
        times = np.asarray(seconds_of(positions[:states]), dtype=float)
        drawn.append(Stage(times, stage.boundary_prob[0, :states].numpy(), stage.boundary_mask[0, :states].numpy()))
        positions = stage.chunk_starts[0]  # a nested stage is given this one's chunks
    return drawn


@torch.no_grad()
def draw(hparams: dict, audio: Path, picture: Path) -> None:
    wavs = read(audio, hparams["sample_rate"])
    features, model = hparams["features"], hparams["model"]
    spectrogram, lengths = features(wavs, torch.tensor([wavs.shape[1]]))
    output = model(spectrogram, lengths)
    transcript = hparams["tokenizer"].decode(hparams["valid_search"](output))[0]
    stages = stages_in_time(output.encoded.stages, lambda frames: model.frontend.centres(frames) * features.hop_seconds)
    draw_boundaries(
        picture, spectrogram=spectrogram[0].numpy(), hop=features.hop_seconds, stages=stages, transcript=transcript,
        title=audio.stem,
    )  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("audio", nargs="+", type=Path, metavar="AUDIO")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the pictures go (default: RUN_FOLDER/boundaries)")
    options = parser.parse_args(argv)
    try:
        hparams = load_run(options.run)
        for audio in options.audio:
            picture = (options.output or options.run / "boundaries") / f"{audio.stem}.png"
            draw(hparams, audio, picture)
            print(picture)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
