#!/usr/bin/env python3
"""Draw where a trained encoder starts its chunks in recordings.

    python scripts/plot_boundaries.py RUN_FOLDER AUDIO [AUDIO ...] [--output FOLDER]

RUN_FOLDER is an output folder of train.py. The average of its best checkpoints is used, as in testing. Each
recording becomes one PNG with its spectrogram, boundary probabilities, boundaries and transcript (default:
in RUN_FOLDER/boundaries). Needs matplotlib: pip install -e ".[plots]".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from hmamba_asr.inference.recogniser import Recogniser
from hmamba_asr.models.outputs import EncoderOutput
from hmamba_asr.report.spectrograms import BoundaryTrack, draw_boundaries


def boundary_tracks(encoded: EncoderOutput, hop_seconds: float) -> list[BoundaryTrack]:
    """Return the chunking stages of a batch of one, with the times of the states that each was given."""
    tracks: list[BoundaryTrack] = []
    positions = torch.arange(int(encoded.time_axis.frames[0]))
    for stage in encoded.stages:
        states = int(stage.lengths)
        times = encoded.time_axis.seconds(positions[:states] + 0.5, hop_seconds).numpy()  # a frame's centre
        tracks.append(BoundaryTrack(times, stage.prob[0, :states].numpy(), stage.mask[0, :states].numpy()))
        positions = stage.starts[0]  # a nested stage is given this one's chunks
    return tracks


def draw(recogniser: Recogniser, audio: Path, picture: Path) -> None:
    """Write the picture of one recording."""
    spectrogram, output = recogniser.encode(recogniser.read(audio))
    transcript = recogniser.tokenizer.decode(recogniser.search(output))[0]
    hop = recogniser.features.hop_seconds
    draw_boundaries(
        picture,
        spectrogram=spectrogram[0].numpy(),
        hop=hop,
        tracks=boundary_tracks(output.encoded, hop),
        transcript=transcript,
        title=audio.stem,
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("audio", nargs="+", type=Path, metavar="AUDIO")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where the pictures go (default: RUN_FOLDER/boundaries)"
    )
    parser.add_argument(
        "--search",
        default="greedy",
        help="the search of the YAML that finds the transcript (default: greedy)",
    )
    options = parser.parse_args(argv)
    try:
        recogniser = Recogniser(options.run, search=options.search)
        for audio in options.audio:
            picture = (options.output or options.run / "boundaries") / f"{audio.stem}.png"
            draw(recogniser, audio, picture)
            print(picture)
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
