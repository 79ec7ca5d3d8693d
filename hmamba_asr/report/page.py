"""One self-contained HTML page about finished runs: scores with significance, curves, errors, recordings,
chunks, speed.

The page asks for nothing over the network, and its Content-Security-Policy says so to the browser. Needs
Jinja2 and matplotlib.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmamba_asr.evaluation import recordings
from hmamba_asr.evaluation.breakdown import by_length, by_speaker, confusions
from hmamba_asr.evaluation.compare import ALPHA, RunFolder, compare, format_p, load_run, yaml_difference
from hmamba_asr.evaluation.operations import count_macs
from hmamba_asr.evaluation.segmentation import Chunks, describe_boundaries, read_alignments, read_chunks
from hmamba_asr.evaluation.speed import BENCHMARK_KIND, RUN_FILE, RUN_KIND, read_figures
from hmamba_asr.evaluation.wer import AlignedUtterance
from hmamba_asr.report import claims, curves, figures
from hmamba_asr.report.summary import format_wer, model_name
from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 5  # utterances of a split that are shown word by word
CONFUSIONS = 10
CLIPS = 10  # recordings in the page, and the longest one: a megabyte at most
CLIP_SECONDS = 20.0
SPECTROGRAMS = 2  # of each run that chunks
SPECTROGRAM_SECONDS = 12.0
MACS_OF = (10.0, 40)  # seconds and tokens of the utterance whose operations are counted
TEMPLATE = "report.html.j2"


def write_report(
    output: str | Path,
    folders: Sequence[str | Path],
    *,
    title: str,
    alignments: str | Path | None = None,
    efficiency: str | Path | None = None,
) -> None:
    """Write the page about the runs in these output folders; the others are tested against the first one.

    ``alignments`` is a folder of TextGrids of test utterances, ``efficiency`` what
    scripts/benchmarks/efficiency.py wrote. What a run lacks (log, transcripts, recordings, chunks) is left
    out of the page, which says so.

    Raises:
        FileNotFoundError: a folder holds no evaluated run, or there is no alignment or file.
        ValueError: a file of a run is not as it should be, or a run is named twice.
    """
    import jinja2

    runs = _labelled([load_run(folder) for folder in folders])
    benchmark = read_figures(efficiency, BENCHMARK_KIND) if efficiency else None
    scored = {(split, search): None for run in runs for split, search, _ in run.scored()}
    splits = list(dict.fromkeys(split for split, _ in scored))
    page = Page(runs, alignments)
    chunking = page.chunking_sections()
    context = {
        "title": title,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "alpha": ALPHA,
        "columns": list(scored),
        "summary": [page.summary_row(run, list(scored)) for run in runs],
        "training": page.training_figure(),
        "splits": [page.split_section(split) for split in splits],
        "chunking": chunking,
        "claims": page.claims({section["label"]: section["agreement"] for section in chunking}),
        "claim_rules": textwrap.dedent(claims.__doc__).split("\n\n")[1:],
        "durations": page.durations_figure(),
        "speed": page.speed_rows(),
        "macs_of": MACS_OF,
        "speed_figure": page.speed_figure(),
        "measured": page.measured,
        "benchmark": benchmark,
        "benchmark_figure": as_image(curves.draw_efficiency(benchmark["encoders"])) if benchmark else None,
        "provenance": [page.provenance(run) for run in runs],
        "notes": list(dict.fromkeys(page.notes)),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template(TEMPLATE).render(context)
    with write_atomically(output) as stream:
        stream.write(html)


def _labelled(runs: list[RunFolder]) -> list[RunFolder]:
    """The runs with labels that tell them apart: the YAML's name, then with overrides, seed and folder as far
    as needed."""
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("a run is named twice; give each output folder once.")
    labels = [run.results["name"] for run in runs]
    for longer in (
        lambda run, _: model_name(run.results),
        lambda run, label: f"{label}, seed {run.results['seed']}",
        lambda run, label: f"{label}, {run.folder.name}",
    ):
        repeated = {label for label in labels if labels.count(label) > 1}
        labels = [
            longer(run, label) if label in repeated else label
            for run, label in zip(runs, labels, strict=True)
        ]
    return [RunFolder(run.folder, run.results, label) for run, label in zip(runs, labels, strict=True)]


def as_image(figure: Figure, *, vector: bool = True) -> str:
    """The figure in a data: address, and closed."""
    import matplotlib
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    # Text stays text; fixed salt and date: the same figure is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hmamba_asr"}):
        if vector:
            figure.savefig(stream, format="svg", metadata={"Date": None})
        else:
            figure.savefig(stream, format="png", dpi=90)
    plt.close(figure)
    kind = "svg+xml" if vector else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


class Page:
    """The parts of the page, as the template shows them; ``notes`` collects what had to be left out."""

    def __init__(self, runs: Sequence[RunFolder], alignments: str | Path | None):
        self.runs, self.notes = runs, []
        self._alignments = alignments
        self._clips = 0
        self._compared: dict[tuple[str, str], dict[str, Any]] = {}
        files = {run.label: run.folder / RUN_FILE for run in runs}
        self.measured = {
            label: read_figures(file, RUN_KIND) for label, file in files.items() if file.is_file()
        }
        self._aligned: dict[tuple[str, str, str], list[AlignedUtterance]] = {}
        for run in runs:
            for split, search, _ in run.scored():
                try:
                    self._aligned[run.label, split, search] = run.aligned(split, search)
                except (FileNotFoundError, ValueError) as error:
                    self.notes.append(f"{run.label}, {split}, {search}: no transcripts ({error})")

    def summary_row(self, run: RunFolder, columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
        tests = {}
        if run is not self.runs[0]:
            try:
                tests = {
                    (score["split"], score["search"]): score
                    for score in self._compare(self.runs[0], run)["scores"]
                }
            except ValueError as error:  # nothing in common
                self.notes.append(str(error))
        entries = {(split, search): entry for split, search, entry in run.scored()}
        return {
            "label": run.label,
            "model": model_name(run.results),
            "parameters": f"{run.results['parameters']['total'] / 1e6:.3g}",
            "cells": [_score_cell(entries.get(column), tests.get(column)) for column in columns],
        }

    def _compare(self, a: RunFolder, b: RunFolder) -> dict[str, Any]:
        if (a.label, b.label) not in self._compared:
            self._compared[a.label, b.label] = compare(a, b)
        return self._compared[a.label, b.label]

    def claims(self, agreement: Mapping[str, Any]) -> list[claims.Claim]:
        """See `claims.check_claims`; ``agreement`` of each label's boundaries with alignments."""
        return claims.check_claims(self.runs, compare=self._compare, agreement=agreement, speed=self.measured)

    def training_figure(self) -> str | None:
        epochs = {}
        for run in self.runs:
            try:
                epochs[run.label] = curves.read_epochs(run.folder)
            except ValueError as error:
                self.notes.append(f"{run.label}: no training curve ({error})")
        return as_image(curves.draw_training(epochs)) if epochs else None

    def split_section(self, split: str) -> dict[str, Any] | None:
        """Errors of one split by the last search that every run with transcripts of it has."""
        found: dict[str, dict[str, list[AlignedUtterance]]] = {}
        for (label, name, search), aligned in self._aligned.items():
            if name == split:
                found.setdefault(search, {})[label] = aligned
        most = max((len(runs) for runs in found.values()), default=0)
        if not most:
            return None
        search = [name for name, runs in found.items() if len(runs) == most][-1]
        runs = found[search]
        parts = {
            name: {label: by(aligned) for label, aligned in runs.items()}
            for name, by in (("length", by_length), ("speaker", by_speaker))
        }
        return {
            "split": split,
            "search": search,
            "length": as_image(curves.draw_parts(parts["length"], xlabel="words in the utterance")),
            "speaker": as_image(curves.draw_parts(parts["speaker"], xlabel="speaker")),
            "parts": parts,
            "confusions": {label: confusions(aligned, CONFUSIONS) for label, aligned in runs.items()},
            "worst": self._worst(split, runs),
        }

    def _worst(self, split: str, runs: Mapping[str, Sequence[AlignedUtterance]]) -> list[dict[str, Any]]:
        """The utterances with the most errors, all runs together."""
        by_id: dict[str, dict[str, AlignedUtterance]] = {}
        for label, aligned in runs.items():
            for item in aligned:
                by_id.setdefault(item.id, {})[label] = item
        ordered = sorted(
            by_id.items(), key=lambda pair: (-sum(item.errors for item in pair[1].values()), pair[0])
        )
        return [
            {
                "id": key,
                "runs": [(label, item) for label, item in items.items()],
                "audio": self._clip(split, key),
            }
            for key, items in ordered[:WORST]
        ]

    def _clip(self, split: str, utterance: str) -> str | None:
        if self._clips == CLIPS or (found := self._samples(split, utterance)) is None:
            return None
        samples, rate = found
        if len(samples) > CLIP_SECONDS * rate:
            return None
        self._clips += 1
        return recordings.as_data_uri(samples, rate)

    def _samples(self, split: str, utterance: str) -> tuple[Any, int] | None:
        for run in self.runs:
            path = recordings.find_recording(run.folder, split, utterance, hparams=run.results["hparams"])
            if path:
                return recordings.read_samples(path)
        self.notes.append(f"{split}: recordings are not where they were when the runs were evaluated")
        return None

    # ---- Chunks -------------------------------------------------------------------------------------------------------

    def _chunks(self, run: RunFolder) -> dict[str, list[Chunks]]:
        files = {split: run.folder / "test" / split / "chunks.jsonl" for split in run.results["evaluation"]}
        return {split: read_chunks(file) for split, file in files.items() if file.is_file()}

    def durations_figure(self) -> str | None:
        durations = {
            run.label: [
                float(x) for items in self._chunks(run).values() for item in items for x in item.durations()
            ]
            for run in self.runs
        }
        durations = {label: values for label, values in durations.items() if values}
        return as_image(curves.draw_durations(durations)) if durations else None

    def chunking_sections(self) -> list[dict[str, Any]]:
        """Of each run that chunks: spectrograms of the first utterances that are not too long, and agreement
        with alignments."""
        sections = []
        for run in self.runs:
            by_split = self._chunks(run)
            if not by_split:
                continue
            aligned = {}
            if self._alignments:
                aligned = read_alignments(
                    self._alignments, [item.id for items in by_split.values() for item in items]
                )
            known = {
                split: [item for item in items if item.id in aligned] for split, items in by_split.items()
            }
            short = [
                (s, item)
                for s, items in by_split.items()
                for item in items
                if item.durations().sum() < SPECTROGRAM_SECONDS
            ]
            short.sort(key=lambda pair: pair[1].id not in aligned)  # aligned ones first
            pictures = [
                p
                for split, item in short[:SPECTROGRAMS]
                for p in self._spectrogram(run, split, item, aligned)
            ]
            agreement = {
                split: describe_boundaries(items, aligned) for split, items in known.items() if items
            }
            sections.append({"label": run.label, "pictures": pictures, "agreement": agreement})
        return sections

    def _spectrogram(
        self, run: RunFolder, split: str, item: Chunks, aligned: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        found = self._samples(split, item.id)
        if found is None:
            return []
        references = next(
            (
                dict(_references(a))
                for (label, s, _), a in self._aligned.items()
                if (label, s) == (run.label, split)
            ),
            {},
        )
        figure = figures.draw_chunks(*found, item, alignment=aligned.get(item.id))
        return [
            {
                "id": item.id,
                "text": references.get(item.id, ""),
                "chunks": len(item.starts[0]),
                "frames": item.frames,
                "image": as_image(figure, vector=False),
                "audio": recordings.as_data_uri(*found),
            }
        ]

    # ---- Speed and provenance -----------------------------------------------------------------------------------------

    def speed_rows(self) -> list[dict[str, Any]]:
        rows = []
        for run in self.runs:
            training = run.results["training"] or {}
            measured = [
                (split, search, entry["efficiency"])
                for split, search, entry in run.scored()
                if entry["efficiency"]
            ]
            rows.append(
                {
                    "label": run.label,
                    "rate": training.get("audio_seconds_per_second"),
                    "time": format_duration(training.get("seconds")),
                    "memory": training.get("peak_memory_mib"),
                    "precision": training.get("precision", ""),
                    "hardware": run.results["environment"]["hardware"],
                    "macs": self._macs(run),
                    "rtf": measured,
                    "batches": sorted({str(efficiency["batch"]) for *_, efficiency in measured}),
                }
            )
        return rows

    def _macs(self, run: RunFolder) -> dict[str, float] | None:
        """Billions of MACs by part of an utterance of MACS_OF, with the kept fractions that were measured."""
        seconds, tokens = MACS_OF
        stages = next((entry["stages"] for _, _, entry in run.scored() if entry.get("stages")), [])
        try:
            macs = count_macs(
                run.results["hparams"],
                seconds=seconds,
                tokens=tokens,
                kept=tuple(stage["kept"] for stage in stages),
            )
        except ValueError as error:
            self.notes.append(f"{run.label}: no count of operations ({error})")
            return None
        return {part: count / 1e9 for part, count in macs.items()}

    def speed_figure(self) -> str | None:
        bars = {}
        for run in self.runs:
            for split, search, entry in run.scored():
                measured = entry["efficiency"]
                if measured and measured["audio_seconds"]:
                    times = {
                        stage: (t or 0.0) / measured["audio_seconds"]
                        for stage, t in measured["stage_seconds"].items()
                    }
                    bars[f"{run.label}, {split}, {search}"] = times
        return as_image(curves.draw_stage_times(bars)) if bars else None

    def provenance(self, run: RunFolder) -> dict[str, Any]:
        environment = run.results["environment"]
        git = environment["git"]
        first = self.runs[0]
        return {
            "label": run.label,
            "date": run.results["date"],
            "command": environment["command"],
            "commit": git["commit"] + (" with uncommitted changes" if git["dirty"] else "")
            if git
            else "not known",
            "versions": {"python": environment["python"], **environment["packages"]},
            "hparams": run.results["hparams"],
            "checkpoints": run.results["checkpoints"],
            "difference": None
            if run is first
            else yaml_difference(first.results["hparams"], run.results["hparams"]),
        }


def _score_cell(entry: Mapping[str, Any] | None, test: Mapping[str, Any] | None) -> dict[str, Any]:
    """A WER, and what is to be said of it beside the first run's (run "a" of the comparison)."""
    if entry is None:
        return dict.fromkeys(("wer", "mark", "kind", "hint", "p"), "")
    cell = {"wer": format_wer(entry["wer"]), **dict.fromkeys(("mark", "kind", "hint", "p"), "")}
    if test and "difference" in test:
        low, high = test["interval_95"]
        cell["hint"] = f"{test['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
        cell["p"] = f"p = {format_p(test['p_bootstrap'])}, {format_p(test['p_matched_pairs'])}"
        words = {"a": ("worse", "\u25b2"), "b": ("better", "\u25bc"), None: ("", "\u2248")}
        cell["kind"], cell["mark"] = words[test["better"]]
    elif test:
        cell["hint"] = test["verdict"]
    return cell


def _references(aligned: Sequence[AlignedUtterance]) -> list[tuple[str, str]]:
    return [
        (item.id, " ".join(reference for reference, _ in item.pairs if reference is not None))
        for item in aligned
    ]
