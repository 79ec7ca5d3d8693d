"""Alignments of a reference's tokens and words by a trained run's CTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmamba_asr.decoding.alignment import Span, merge_words
from hmamba_asr.evaluation.finished_run import load_run, sample_recordings
from hmamba_asr.evaluation.textgrid import Tiers
from hmamba_asr.inference.recogniser import Recogniser
from hmamba_asr.models.asr import ASROutput


@dataclass(frozen=True)
class CTCAlignments:
    """Alignments of some utterances.

    Attributes
    ----------
    alignments
        By utterance ID, with the tiers "tokens" and "words".
    chunk_rate
        Whether the CTC has one step for each chunk of its encoder, and not for each frame.
    """

    alignments: dict[str, Tiers]
    chunk_rate: bool


def ctc_alignments(
    aligner: str | Path, folder: str | Path, *, split: str, utterances: int = 50, device: str = "cpu"
) -> CTCAlignments:
    """Align the references of test utterances with the CTC of a trained run.

    Utterances whose reference needs more steps than the CTC has are left out.

    Parameters
    ----------
    aligner
        Output folder of the run whose CTC aligns.
    folder
        Output folder of the run whose test utterances are aligned.
    split
        One of its test splits.
    utterances
        Number of utterances, evenly spaced over the durations of the split.
    device
        "cpu" or "cuda".

    Raises
    ------
    FileNotFoundError
        If one of the folders is no evaluated run, or the recordings do not exist.
    ValueError
        If there is nothing to align, or no checkpoint.
    """
    _, recordings = sample_recordings(load_run(folder), split, utterances)
    recogniser = Recogniser(aligner, device=device)
    alignments = {}
    for row in recordings:
        _, output = recogniser.encode(recogniser.read(row.audio))
        spans = recogniser.align(output, recogniser.tokenizer.encode(row.text))
        if spans:
            alignments[row.id] = _as_tiers(recogniser, output, spans)
    return CTCAlignments(alignments, recogniser.model.encoder.shortens)


def _as_tiers(recogniser: Recogniser, output: ASROutput, tokens: Sequence[Span]) -> Tiers:
    """Let each token or word last until the next one starts, because a CTC's labels end at arbitrary
    times."""
    edges = output.encoded.time_axis.edges(0, recogniser.features.hop_seconds)
    first, end = float(edges[0]), float(edges[-1])

    def tier(spans: Sequence[Span]) -> tuple[tuple[float, float, str], ...]:
        starts = [span.start for span in spans]
        intervals = list(zip(starts, [*starts[1:], end], [span.text for span in spans], strict=True))
        return ((first, starts[0], ""), *intervals) if starts[0] > first else tuple(intervals)

    return Tiers({"tokens": tier(tokens), "words": tier(merge_words(tokens))})
