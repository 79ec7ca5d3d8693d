"""What train.py prints when it ends: the scores of the run, where its files lie, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path

from hmamba_asr.evaluation.results import Entry, Results
from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.run_layout import RunLayout
from hmamba_asr.system.tables import split_table, text_table


def describe_run(results: Results, folder: str | Path) -> str:
    """Describe an evaluated run for a terminal.

    Parameters
    ----------
    results
        What the evaluation returned.
    folder
        The run's output folder.
    """
    layout = RunLayout(folder)
    transcripts = layout.transcripts("SPLIT", "SEARCH") / "wer.txt"
    run = shlex.quote(str(layout.folder))
    return "\n".join(
        [
            "",
            f"{results.name}, seed {results.seed}, {results.parameters.total / 1e6:.3g}M parameters",
            *_training(results),
            "",
            *_scores(results),
            "",
            f"Results:      {layout.results}",
            f"Word errors:  {transcripts}",
            "",
            f"Transcribe a recording:    hmamba-asr transcribe {run} FILE",
            f"Write an HTML report:      hmamba-asr report {run}",
            f"Compare with another run:  hmamba-asr compare {run} OTHER_RUN",
        ]
    )


def _training(results: Results) -> list[str]:
    training = results.training
    if training is None:
        return []
    text = f"Trained on {' + '.join(training.train_splits)}"
    if training.epochs is not None:
        text += f" for {training.epochs} epochs"
    if training.seconds is not None:
        text += f" in {format_duration(training.seconds)}"
    if training.audio_seconds_per_second is not None:
        text += f", {training.audio_seconds_per_second:.0f} s of audio a second"
    return [f"{text}."]


def _scores(results: Results) -> list[str]:
    entries = [
        (split, search, entry)
        for split, searches in results.evaluation.items()
        for search, entry in searches.items()
    ]
    columns = {
        "test set": [split for split, *_ in entries],
        "search": [search for _, search, _ in entries],
        "WER %": [f"{entry.wer.rate:.2f}" for *_, entry in entries],
        "95% interval": [_interval(entry) for *_, entry in entries],
        "CER %": [f"{entry.cer.rate:.2f}" for *_, entry in entries],
        "wrong utterances %": [f"{entry.wer.sentence_error_rate:.1f}" for *_, entry in entries],
        "chunks / frames": [_kept(entry) for *_, entry in entries],
        "RTF": [_rtf(entry) for *_, entry in entries],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if not entries:
        return ["No test set was evaluated."]
    sides = ["left" if name in ("test set", "search") else "right" for name in columns]
    rows = list(zip(*columns.values(), strict=True))
    return "\n\n".join(split_table(text_table, rows, list(columns), align=sides, keys=2)).splitlines()


def _interval(entry: Entry) -> str:
    if entry.wer.interval_95 is None:
        return ""
    low, high = entry.wer.interval_95
    return f"{low:.2f} to {high:.2f}"


def _kept(entry: Entry) -> str:
    return " × ".join(f"{stage.kept:.2f}" for stage in entry.stages if stage.kept is not None)


def _rtf(entry: Entry) -> str:
    rtf = entry.efficiency.rtf if entry.efficiency else None
    return "" if rtf is None else f"{rtf:.4f}"
