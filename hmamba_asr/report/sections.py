"""The sections of the page about runs: what its template shows, section by section."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
from hmamba_asr.evaluation.results import EfficiencyRecord
from hmamba_asr.evaluation.segmentation import Segmentation, read_segmentations
from hmamba_asr.evaluation.speed import RUN_KIND, read_figures
from hmamba_asr.evaluation.textgrid import Tiers, read_textgrids
from hmamba_asr.evaluation.word_alignment import AlignedUtterance
from hmamba_asr.report import charts
from hmamba_asr.report.claims import Claim, check_claims
from hmamba_asr.report.media import audio_uri, inline_svg
from hmamba_asr.report.results_table import format_wer, is_removed
from hmamba_asr.report.seeds import Model, describe_training, pair_runs, training_flags
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
# Of a model, by the better side of a test: "a" is the first model.
MARKS = {"a": "▲ worse", "b": "▼ better", None: "≈ not significant"}


class Sections:
    """The page's sections about some models, the others tested against the first one.

    Attributes
    ----------
    columns
        Each split with each search that a run has.
    notes
        What had to be left out so far, one sentence each.
    speed_figures
        {label: what `hmamba-asr efficiency` measured} of the runs that have it.
    """

    def __init__(self, models: Sequence[Model], alignments: str | Path | None):
        self.models = models
        self.runs = [run for model in models for run in model.runs]
        self.columns = list(
            dict.fromkeys((split, search) for run in self.runs for split, search, _ in run.scored())
        )
        self.notes: list[str] = []
        self._alignments = alignments
        self._clips = self._pictures = 0
        self._compared: dict[tuple[str, str], dict[str, Any]] = {}
        files = {run.label: RunLayout(run.folder).efficiency for run in self.runs}
        self.speed_figures = {
            label: read_figures(file, RUN_KIND) for label, file in files.items() if file.is_file()
        }
        self._aligned: dict[tuple[str, str, str], list[AlignedUtterance]] = {}
        for run in self.runs:
            for split, search, _ in run.scored():
                try:
                    self._aligned[run.label, split, search] = run.aligned(split, search)
                except (FileNotFoundError, ValueError) as error:
                    self.notes.append(f"{run.label}, {split}, {search}: no transcripts ({error})")

    @property
    def splits(self) -> list[str]:
        """The splits that were evaluated."""
        return list(dict.fromkeys(split for split, _ in self.columns))

    def _compare(self, a: FinishedRun, b: FinishedRun) -> dict[str, Any]:
        if (a.label, b.label) not in self._compared:
            self._compared[a.label, b.label] = compare(a, b)
        return self._compared[a.label, b.label]

    def test(self, a: FinishedRun, b: FinishedRun, split: str, search: str) -> Mapping[str, Any] | None:
        """Return the score of two runs on a split with a search, as `compare` does; None if one lacks it."""
        try:
            scores = self._compare(a, b)["scores"]
        except ValueError as error:  # nothing in common
            self.notes.append(str(error))
            return None
        return next((score for score in scores if (score["split"], score["search"]) == (split, search)), None)

    # ---- WER, claims, training ----------------------------------------------------------------------------

    def wer_row(self, model: Model) -> dict[str, Any]:
        """Return a model's row: for each (split, search) the WER, tested against the first model's."""
        first, results = self.models[0], model.runs[0].results
        epochs, _ = describe_training(model)
        return {
            "label": model.label,
            "seeds": len(model.runs),
            "overrides": results.overrides,
            "removed": is_removed(results),
            "parameters": f"{results.parameters.total / 1e6:.3g}",
            "epochs": epochs,
            "flags": [] if model is first else training_flags(first, model),
            "cells": [self._wer_cell(model, split, search) for split, search in self.columns],
        }

    def _wer_cell(self, model: Model, split: str, search: str) -> dict[str, str]:
        """Return a WER, and whether the pairs of seeds differ significantly from the first model's."""
        cell = {"wer": model.wer(split, search), "kind": "", "mark": "", "hint": ""}
        found = len(model.rates(split, search))
        if 0 < found < len(model.runs):
            cell["hint"] = f"{found} of {len(model.runs)} seeds"
        if model is self.models[0] or not found:
            return cell
        scores = [self.test(a, b, split, search) for a, b in pair_runs(self.models[0], model)]
        tested = [score for score in scores if score is not None and "difference" in score]
        if not tested:
            cell["hint"] = "not tested" if any(scores) else ""
            return cell
        sides = [score["better"] for score in tested]
        better, worse = sides.count("b"), sides.count("a")
        if better and worse:
            cell["mark"], cell["hint"] = "▼▲ mixed", f"{better} better, {worse} worse of {len(tested)} pairs"
        elif better or worse:
            cell["kind"] = "better" if better else "worse"
            cell["mark"] = MARKS["b" if better else "a"]
            if len(tested) > 1:
                cell["hint"] = f"for {better or worse} of {len(tested)} pairs of seeds"
        else:
            cell["mark"] = MARKS[None]
        return cell

    def seed_rows(self) -> list[dict[str, Any]]:
        """Return the WERs of each run of the models with several seeds."""
        rows = []
        for run in (run for model in self.models if model.several for run in model.runs):
            entries = {(split, search): entry for split, search, entry in run.scored()}
            wers = [format_wer(entries[at].wer) if at in entries else "" for at in self.columns]
            rows.append({"label": run.label, "wers": wers})
        return rows

    def test_rows(self) -> list[dict[str, str]]:
        """Return each test of two runs on a split with a search."""
        pairs = [pair for model in self.models[1:] for pair in pair_runs(self.models[0], model)]
        rows = []
        for a, b in pairs:
            for split, search in self.columns:
                score = self.test(a, b, split, search)
                if score is None:
                    continue
                before, after = (run.results.evaluation[split][search].wer for run in (a, b))
                row = {
                    "run": b.label,
                    "against": a.label,
                    "place": f"{split}, {search}",
                    "before": format_wer(before),
                    "after": format_wer(after),
                    "difference": "",
                    "p": "",
                    "verdict": score["verdict"],
                }
                if "difference" in score:
                    low, high = score["interval_95"]
                    row["difference"] = f"{score['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
                    row["p"] = f"{format_p(score['p_bootstrap'])}, {format_p(score['p_matched_pairs'])}"
                    row["verdict"] = MARKS[score["better"]]
                rows.append(row)
        return rows

    def claims(self, agreement: Mapping[str, Any]) -> list[Claim]:
        """Judge the claims; ``agreement`` is that of each run's boundaries with alignments, by its label."""
        return check_claims(self.models, compare=self._compare, agreement=agreement, speed=self.speed_figures)

    def training_figures(self) -> list[str]:
        """Draw the training curves of the runs that have a log."""
        epochs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for model in self.models:
            epochs[model.label] = {}
            for run in model.runs:
                try:
                    epochs[model.label][run.label] = read_epochs(run.folder)
                except ValueError as error:
                    self.notes.append(f"{run.label}: no training curve ({error})")
        records = [record for seeds in epochs.values() for seed in seeds.values() for record in seed]
        if not records:
            return []
        alt = "Loss of training and of validation by epoch, a line for each model"
        figures = [inline_svg(charts.draw_losses(epochs), name="losses", alt=alt)]
        if any(record.get("valid_wer") is not None for record in records):
            alt = "WER on the validation set by epoch, a line for each model"
            figures.append(inline_svg(charts.draw_validation_wers(epochs), name="validation-wers", alt=alt))
        return figures

    # ---- Word errors --------------------------------------------------------------------------------------

    def word_errors(self, split: str) -> dict[str, Any] | None:
        """Return a split's errors by the last search whose transcripts most models have; None without any.

        Of a model with several seeds, the first run stands for all.
        """
        labels = [model.runs[0].label for model in self.models]
        found: dict[str, dict[str, list[AlignedUtterance]]] = {}
        for (label, name, search), aligned in self._aligned.items():
            if name == split and label in labels:
                found.setdefault(search, {})[label] = aligned
        if not found:
            return None
        most = max(len(runs) for runs in found.values())
        search = [name for name, runs in found.items() if len(runs) == most][-1]
        runs = found[search]
        # A model without transcripts has no points, but keeps its colour.
        parts = {
            name: {label: by(runs.get(label, [])) for label in labels}
            for name, by in (("length", by_length), ("speaker", by_speaker))
        }
        number = self.splits.index(split) + 1
        return {
            "split": split,
            "search": search,
            "figures": [
                inline_svg(
                    charts.draw_parts(parts[name], xlabel=xlabel),
                    name=f"{name}-{number}",
                    alt=f"WER by {xlabel} with 95% intervals; the table below has the figures",
                )
                for name, xlabel in (("length", "words in the utterance"), ("speaker", "speaker"))
            ],
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
            if any(item.errors for item in items.values())
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
        """Draw how long the chunks of the outermost stage are in each model that chunks, all seeds joined."""
        durations = {
            model.label: [
                float(seconds)
                for run in model.runs
                for items in self._segmentations(run).values()
                for item in items
                for seconds in item.durations()
            ]
            for model in self.models
        }
        if not any(durations.values()):
            return None
        alt = "Share of the chunks of each model by their duration, all test sets together"
        return inline_svg(charts.draw_durations(durations), name="durations", alt=alt)

    def chunking(self) -> list[dict[str, Any]]:
        """Return one section for each run that chunks: pictures, and agreement with the alignments.

        The pictures are those of the first utterances that are not too long. Utterances with an alignment
        come first. Of several seeds, only the first run has pictures.
        """
        pictured = {model.runs[0].label for model in self.models}
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
                self._spectrogram(run, split, item, alignments)
                for split, item in short[: SPECTROGRAMS if run.label in pictured else 0]
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
        self._pictures += 1
        chunks = len(item.starts[0])
        return {
            "id": item.id,
            "text": references.get(item.id, ""),
            "chunks": chunks,
            "frames": item.frames,
            "image": inline_svg(
                figure,
                name=f"chunks-{self._pictures}",
                alt=f"Spectrogram of {item.id} with {chunks} chunks of {item.frames} frames",
            ),
            "audio": audio_uri(*found),
        }

    # ---- Speed and provenance -----------------------------------------------------------------------------

    def speed_row(self, model: Model) -> dict[str, Any]:
        """Return a model's row: RTFs, speed and memory of training, operations, machine; means over seeds."""
        training = [run.results.training for run in model.runs if run.results.training]
        memory = [item.peak_memory_mib for item in training if item.peak_memory_mib is not None]
        machines = dict.fromkeys(run.results.environment.hardware.machine for run in model.runs)
        timed = [entry.efficiency for run in model.runs for *_, entry in run.scored() if entry.efficiency]
        return {
            "label": model.label,
            "seeds": len(model.runs),
            "rate": _mean(item.audio_seconds_per_second for item in training),
            "time": format_duration(_mean(item.seconds for item in training)),
            "memory": max(memory, default=None),
            "precision": " / ".join(dict.fromkeys(item.precision for item in training)),
            "machine": " / ".join(machines),
            "gmacs": self._gmacs(model.runs[0]),
            "rtf": _rtfs(model),
            "batches": sorted({str(item.batch) for item in timed}),
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
        """Draw the processing time by phase of each model, search, machine and batch, test sets joined."""
        audio: dict[tuple[str, ...], float] = defaultdict(float)
        phases: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for model in self.models:
            for _, search, entry in (scored for run in model.runs for scored in run.scored()):
                measured = entry.efficiency
                if measured and measured.audio_seconds:
                    key = (model.label, search, _way(measured))
                    audio[key] += measured.audio_seconds
                    for phase, seconds in measured.phase_seconds.items():
                        phases[key][phase] += seconds or 0.0
        if not phases:
            return None
        words = 3 if len({way for *_, way in phases}) > 1 else 2
        bars = {
            ", ".join(key[:words]): {phase: seconds / audio[key] for phase, seconds in spent.items()}
            for key, spent in phases.items()
        }
        alt = "Processing time for a second of audio by phase; the table below has the sums"
        return inline_svg(charts.draw_phase_times(bars), name="phases", alt=alt)

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


def _way(measured: EfficiencyRecord) -> str:
    """Say how an RTF was measured: RTFs of different ways do not compare."""
    return f"{measured.hardware.machine}, batch {measured.batch}"


def _rtfs(model: Model) -> list[tuple[str, str]]:
    """Return split with search, and the RTF: a mean over the seeds that were measured alike."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for split, search, entry in (scored for run in model.runs for scored in run.scored()):
        if entry.efficiency and entry.efficiency.rtf is not None:
            found[f"{split}, {search}"][_way(entry.efficiency)].append(entry.efficiency.rtf)
    return [
        (place, " / ".join(f"{statistics.mean(rates):.3g}" for rates in ways.values()))
        for place, ways in found.items()
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _reference(utterance: AlignedUtterance) -> str:
    return " ".join(reference for reference, _ in utterance.pairs if reference is not None)
