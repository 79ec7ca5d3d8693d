"""The sections of the page about runs: what its template shows, section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmamba_asr.config.difference import yaml_difference
from hmamba_asr.data.audio import read_audio
from hmamba_asr.evaluation.boundary_agreement import describe_boundaries
from hmamba_asr.evaluation.breakdown import by_length, by_speaker, confusions
from hmamba_asr.evaluation.compare import compare, format_p
from hmamba_asr.evaluation.finished_run import FinishedRun, find_recording
from hmamba_asr.evaluation.operations import recount
from hmamba_asr.evaluation.results import Entry
from hmamba_asr.evaluation.segmentation import Segmentation, read_segmentations
from hmamba_asr.evaluation.speed import RUN_KIND, read_figures
from hmamba_asr.evaluation.textgrid import Tiers, read_textgrids
from hmamba_asr.evaluation.word_alignment import AlignedUtterance
from hmamba_asr.report import charts
from hmamba_asr.report.claims import Claim, check_claims
from hmamba_asr.report.media import audio_uri, figure_uri
from hmamba_asr.report.results_table import format_wer, is_removed, model_name
from hmamba_asr.report.spectrograms import draw_chunks
from hmamba_asr.report.training_log import read_epochs
from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.run_layout import RunLayout

WORST = 5  # utterances of a split that are shown word by word
CONFUSIONS = 10
CLIPS = 10  # recordings in the page, and the longest one: a megabyte at most
CLIP_SECONDS = 20.0
SPECTROGRAMS = 2  # for each run that chunks
SPECTROGRAM_SECONDS = 12.0


class Sections:
    """The page's sections about some runs, the others tested against the first one.

    Attributes
    ----------
    notes
        What had to be left out so far, one sentence each.
    speed_figures
        {label: what `hmamba-asr efficiency` measured} of the runs that have it.
    """

    def __init__(self, runs: Sequence[FinishedRun], alignments: str | Path | None):
        self.runs = runs
        self.notes: list[str] = []
        self._alignments = alignments
        self._clips = 0
        self._compared: dict[tuple[str, str], dict[str, Any]] = {}
        files = {run.label: RunLayout(run.folder).efficiency for run in runs}
        self.speed_figures = {
            label: read_figures(file, RUN_KIND) for label, file in files.items() if file.is_file()
        }
        self._aligned: dict[tuple[str, str, str], list[AlignedUtterance]] = {}
        for run in runs:
            for split, search, _ in run.scored():
                try:
                    self._aligned[run.label, split, search] = run.aligned(split, search)
                except (FileNotFoundError, ValueError) as error:
                    self.notes.append(f"{run.label}, {split}, {search}: no transcripts ({error})")

    def _compare(self, a: FinishedRun, b: FinishedRun) -> dict[str, Any]:
        if (a.label, b.label) not in self._compared:
            self._compared[a.label, b.label] = compare(a, b)
        return self._compared[a.label, b.label]

    # ---- WER, claims, training ----------------------------------------------------------------------------

    def summary_row(self, run: FinishedRun, columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Return a run's row: for each (split, search) the WER, tested against the first run's."""
        tests = {}
        if run is not self.runs[0]:
            try:
                scores = self._compare(self.runs[0], run)["scores"]
                tests = {(score["split"], score["search"]): score for score in scores}
            except ValueError as error:  # nothing in common
                self.notes.append(str(error))
        entries = {(split, search): entry for split, search, entry in run.scored()}
        return {
            "label": run.label,
            "model": model_name(run.results),
            "removed": is_removed(run.results),
            "parameters": f"{run.results.parameters.total / 1e6:.3g}",
            "cells": [_wer_cell(entries.get(column), tests.get(column)) for column in columns],
        }

    def claims(self, agreement: Mapping[str, Any]) -> list[Claim]:
        """Judge the claims; ``agreement`` is that of each label's boundaries with alignments."""
        return check_claims(self.runs, compare=self._compare, agreement=agreement, speed=self.speed_figures)

    def training_figure(self) -> str | None:
        """Draw the training curves of the runs that have a log."""
        epochs = {}
        for run in self.runs:
            try:
                epochs[run.label] = read_epochs(run.folder)
            except ValueError as error:
                self.notes.append(f"{run.label}: no training curve ({error})")
        return figure_uri(charts.draw_training(epochs)) if epochs else None

    # ---- Word errors --------------------------------------------------------------------------------------

    def word_errors(self, split: str) -> dict[str, Any] | None:
        """Return a split's errors by the last search whose transcripts most runs have; None without any."""
        found: dict[str, dict[str, list[AlignedUtterance]]] = {}
        for (label, name, search), aligned in self._aligned.items():
            if name == split:
                found.setdefault(search, {})[label] = aligned
        if not found:
            return None
        most = max(len(runs) for runs in found.values())
        search = [name for name, runs in found.items() if len(runs) == most][-1]
        runs = found[search]
        parts = {
            name: {label: by(aligned) for label, aligned in runs.items()}
            for name, by in (("length", by_length), ("speaker", by_speaker))
        }
        return {
            "split": split,
            "search": search,
            "length": figure_uri(charts.draw_parts(parts["length"], xlabel="words in the utterance")),
            "speaker": figure_uri(charts.draw_parts(parts["speaker"], xlabel="speaker")),
            "parts": parts,
            "confusions": {label: confusions(aligned, CONFUSIONS) for label, aligned in runs.items()},
            "worst": self._worst(split, runs),
        }

    def _worst(self, split: str, runs: Mapping[str, Sequence[AlignedUtterance]]) -> list[dict[str, Any]]:
        """Return the utterances with the most errors, all runs together."""
        by_id: dict[str, dict[str, AlignedUtterance]] = {}
        for label, aligned in runs.items():
            for item in aligned:
                by_id.setdefault(item.id, {})[label] = item
        ordered = sorted(
            by_id.items(), key=lambda pair: (-sum(item.errors for item in pair[1].values()), pair[0])
        )
        return [
            {"id": key, "runs": list(items.items()), "audio": self._clip(split, key)}
            for key, items in ordered[:WORST]
        ]

    def _clip(self, split: str, utterance: str) -> str | None:
        """Return a recording for the page, unless it is gone, too long, or one too many."""
        if self._clips == CLIPS or (found := self._samples(split, utterance)) is None:
            return None
        samples, rate = found
        if len(samples) > CLIP_SECONDS * rate:
            return None
        self._clips += 1
        return audio_uri(samples, rate)

    def _samples(self, split: str, utterance: str) -> tuple[np.ndarray, int] | None:
        for run in self.runs:
            path = find_recording(run.folder, split, utterance, hparams=run.results.hparams)
            if path:
                return read_audio(path)
        self.notes.append(f"{split}: recordings are not where they were when the runs were evaluated")
        return None

    # ---- Chunks -------------------------------------------------------------------------------------------

    def _segmentations(self, run: FinishedRun) -> dict[str, list[Segmentation]]:
        files = {split: RunLayout(run.folder).chunks(split) for split in run.results.evaluation}
        return {split: read_segmentations(file) for split, file in files.items() if file.is_file()}

    def durations_figure(self) -> str | None:
        """Draw how long the chunks of the outermost stage are in each run that chunks."""
        durations = {
            run.label: [
                float(seconds)
                for items in self._segmentations(run).values()
                for item in items
                for seconds in item.durations()
            ]
            for run in self.runs
        }
        durations = {label: values for label, values in durations.items() if values}
        return figure_uri(charts.draw_durations(durations)) if durations else None

    def chunking(self) -> list[dict[str, Any]]:
        """Return one section for each run that chunks: pictures, and agreement with the alignments.

        The pictures are those of the first utterances that are not too long. Utterances with an alignment
        come first.
        """
        sections = []
        for run in self.runs:
            by_split = self._segmentations(run)
            if not by_split:
                continue
            alignments: dict[str, Tiers] = {}
            if self._alignments:
                ids = [item.id for items in by_split.values() for item in items]
                alignments = read_textgrids(self._alignments, ids)
            short = [
                (split, item)
                for split, items in by_split.items()
                for item in items
                if item.durations().sum() < SPECTROGRAM_SECONDS
            ]
            short.sort(key=lambda pair: pair[1].id not in alignments)
            pictures = [
                self._spectrogram(run, split, item, alignments) for split, item in short[:SPECTROGRAMS]
            ]
            agreement = {
                split: describe_boundaries(known, alignments)
                for split, items in by_split.items()
                if (known := [item for item in items if item.id in alignments])
            }
            sections.append(
                {
                    "label": run.label,
                    "pictures": [picture for picture in pictures if picture],
                    "agreement": agreement,
                }
            )
        return sections

    def _spectrogram(
        self, run: FinishedRun, split: str, item: Segmentation, alignments: Mapping[str, Tiers]
    ) -> dict[str, Any] | None:
        """Return a picture of an utterance's chunks, with recording and reference; None if that is gone."""
        found = self._samples(split, item.id)
        if found is None:
            return None
        transcripts = (
            aligned
            for (label, name, _), aligned in self._aligned.items()
            if (label, name) == (run.label, split)
        )
        references = {utterance.id: _reference(utterance) for utterance in next(transcripts, [])}
        figure = draw_chunks(*found, item, alignment=alignments.get(item.id))
        return {
            "id": item.id,
            "text": references.get(item.id, ""),
            "chunks": len(item.starts[0]),
            "frames": item.frames,
            "image": figure_uri(figure, vector=False),
            "audio": audio_uri(*found),
        }

    # ---- Speed and provenance -----------------------------------------------------------------------------

    def speed_row(self, run: FinishedRun) -> dict[str, Any]:
        """Return a run's row: RTFs, speed and memory of training, operations, hardware."""
        training = run.results.training
        measured = [
            (split, search, entry.efficiency) for split, search, entry in run.scored() if entry.efficiency
        ]
        return {
            "label": run.label,
            "rate": training.audio_seconds_per_second if training else None,
            "time": format_duration(training.seconds if training else None),
            "memory": training.peak_memory_mib if training else None,
            "precision": training.precision if training else "",
            "hardware": run.results.environment.hardware,
            "gmacs": self._gmacs(run),
            "rtf": measured,
            "batches": sorted({str(efficiency.batch) for *_, efficiency in measured}),
        }

    def _gmacs(self, run: FinishedRun) -> dict[str, float] | None:
        """Return billions of multiply-accumulates by part; results of an earlier version are counted here."""
        if run.results.operations is not None:
            macs = run.results.operations.macs
        else:
            stages = next((entry.stages for _, _, entry in run.scored() if entry.stages), [])
            try:
                macs = recount(run.results.hparams, kept=[stage.kept or 0.0 for stage in stages])
            except ValueError as error:
                self.notes.append(f"{run.label}: no count of operations ({error})")
                return None
        return {part: count / 1e9 for part, count in macs.items()}

    def speed_figure(self) -> str | None:
        """Draw the processing time of each run, split and search by phase."""
        bars = {}
        for run in self.runs:
            for split, search, entry in run.scored():
                measured = entry.efficiency
                if measured and measured.audio_seconds:
                    bars[f"{run.label}, {split}, {search}"] = {
                        phase: (seconds or 0.0) / measured.audio_seconds
                        for phase, seconds in measured.phase_seconds.items()
                    }
        return figure_uri(charts.draw_phase_times(bars)) if bars else None

    def provenance(self, run: FinishedRun) -> dict[str, Any]:
        """Return where a run comes from: command, commit, versions, checkpoints, YAML."""
        results, first = run.results, self.runs[0]
        git = results.environment.git
        commit = "not known"
        if git:
            commit = git.commit + (" with uncommitted changes" if git.dirty else "")
        return {
            "label": run.label,
            "date": results.date,
            "command": results.environment.command,
            "commit": commit,
            "versions": {"python": results.environment.python, **results.environment.packages},
            "hparams": results.hparams,
            "checkpoints": results.checkpoints,
            "difference": None if run is first else yaml_difference(first.results.hparams, results.hparams),
        }


def _wer_cell(entry: Entry | None, test: Mapping[str, Any] | None) -> dict[str, str]:
    """Return a WER and its test against the first run's, which is run "a" of the comparison."""
    cell = dict.fromkeys(("wer", "mark", "kind", "hint", "p"), "")
    if entry is None:
        return cell
    cell["wer"] = format_wer(entry.wer)
    if test and "difference" in test:
        low, high = test["interval_95"]
        cell["hint"] = f"{test['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
        cell["p"] = f"p = {format_p(test['p_bootstrap'])}, {format_p(test['p_matched_pairs'])}"
        marks = {"a": ("worse", "▲"), "b": ("better", "▼"), None: ("", "≈")}
        cell["kind"], cell["mark"] = marks[test["better"]]
    elif test:
        cell["hint"] = test["verdict"]
    return cell


def _reference(utterance: AlignedUtterance) -> str:
    return " ".join(reference for reference, _ in utterance.pairs if reference is not None)
