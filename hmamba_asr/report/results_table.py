"""The Markdown table of results."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hmamba_asr.config.difference import differ_in_seed_only
from hmamba_asr.config.moved import removed_names
from hmamba_asr.evaluation.results import ErrorRates, Hardware, Results
from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.tables import markdown_table

REMOVED = "†"  # marks a model that the code no longer has

_SPEED_COLUMNS = ["training audio-s/s", "train time", "hardware", "commit"]
_TEXT_COLUMNS = {"model", "train data", "hardware", "commit"}


class _TestSet(NamedTuple):
    """What a WER was measured on. WERs compare only where all three agree: the demo has a test-clean too."""

    split: str
    sentences: int
    words: int

    @property
    def size(self) -> str:
        return f"{self.sentences} utterances, {self.words} words"


def render_table(results: Sequence[Results], expected: Iterable[str] = ()) -> str:
    """Write one Markdown table for each corpus, with one row for each experiment.

    Results that share a test set (same name, utterances and words) share a table. WER and RTF have a column
    for each search. ± is half the width of the WER's 95% interval. The RTF is that of all splits together.

    Results that differ only in the seed share a row: it shows means, ± the standard deviation over seeds, and
    the number of seeds. An encoder that chunks has its kept fraction in a column for each test set. What was
    not measured is an empty cell.

    Parameters
    ----------
    results
        As `load_results` returns them.
    expected
        Names that shall have a row, empty if no result has that name (the YAMLs of `hparams/`).
    """
    seeds = defaultdict(set)
    for result in results:
        seeds[model_name(result)].add(result.seed)
    several = {model for model, values in seeds.items() if len(values) > 1}
    sections = [_render_corpus(test_sets, group, several) for test_sets, group in _group_by_corpus(results)]
    unmeasured = sorted(set(expected) - {result.name for result in results})
    if unmeasured or not results:
        header = ["model", "train data", "params (M)", "epochs", "WER", "RTF", *_SPEED_COLUMNS]
        rows = [[name, *[""] * (len(header) - 1)] for name in unmeasured]
        sections.append("### Not measured yet\n\n" + _markdown(header, rows))
    return "\n\n".join(sections)


def model_name(result: Results) -> str:
    """Name a model: the YAML, and what the command line changed in it."""
    return " ".join([result.name, *(f"--{key} {value}" for key, value in result.overrides.items())])


def same_experiment(a: Results, b: Results) -> bool:
    """Tell whether two results are of one experiment with different seeds; the code's commit may differ."""
    splits = [result.training and result.training.train_splits for result in (a, b)]
    alike = a.name == b.name and a.overrides == b.overrides and splits[0] == splits[1]
    return a.seed != b.seed and alike and differ_in_seed_only(a.hparams, b.hparams)


def is_removed(result: Results) -> bool:
    """Tell whether the code no longer has the model of these results."""
    return bool(removed_names(result.hparams))


def format_wer(errors: ErrorRates) -> str:
    """Write the WER in percent with half the width of its 95% interval where there is one: `5.53 ± 1.20`."""
    if errors.interval_95 is None:
        return f"{errors.rate:.2f}"
    low, high = errors.interval_95
    return f"{errors.rate:.2f} ± {(high - low) / 2:.2f}"


def _test_set(split: str, wer: ErrorRates) -> _TestSet:
    return _TestSet(split, wer.sentences, wer.tokens)


def _group_by_corpus(results: Sequence[Results]) -> list[tuple[list[_TestSet], list[Results]]]:
    """Group results that share a test set, directly or through others."""
    groups: list[tuple[set[_TestSet], list[Results]]] = []
    for result in results:
        test_sets = {
            _test_set(split, entry.wer)
            for split, searches in result.evaluation.items()
            for entry in searches.values()
        }
        joined = [result]
        apart = []
        for other, members in groups:
            # Results that were not evaluated share a table of their own.
            if other & test_sets or not (other or test_sets):
                test_sets, joined = test_sets | other, members + joined
            else:
                apart.append((other, members))
        groups = [*apart, (test_sets, joined)]
    # Most material first: LibriSpeech stands above the demo.
    groups.sort(key=lambda group: (-sum(item.words for item in group[0]), sorted(group[0])))
    return [(sorted(test_sets), sorted(rows, key=_row_order)) for test_sets, rows in groups]


def _row_order(result: Results) -> tuple[str, int, str]:
    return model_name(result), result.seed, result.date


def _search_order(search: str) -> tuple[int, str]:
    """Order greedy before beam before beam with a language model."""
    return (0 if "greedy" in search else 2 if "lm" in search.lower() else 1), search


def _render_corpus(test_sets: list[_TestSet], results: list[Results], several_seeds: set[str]) -> str:
    searches: dict[_TestSet, set[str]] = defaultdict(set)
    for result in results:
        for split, entries in result.evaluation.items():
            for search, entry in entries.items():
                searches[_test_set(split, entry.wer)].add(search)
    scored = [(item, search) for item in test_sets for search in sorted(searches[item], key=_search_order)]
    all_searches = sorted({search for _, search in scored}, key=_search_order)
    labels = _labels(test_sets)
    rows = _rows(results)
    kept = {item: [_kept_cell(row, item) for row in rows] for item in test_sets}
    chunked = [item for item in test_sets if any(kept[item])]
    header = [
        "model",
        "train data",
        "params (M)",
        "epochs",
        *([f"{labels[item]} WER {search}" for item, search in scored] or ["WER"]),
        *(f"{labels[item]} kept" for item in chunked),
        *([f"RTF {search}" for search in all_searches] or ["RTF"]),
        *_SPEED_COLUMNS,
    ]
    body = []
    for index, row in enumerate(rows):
        training = [result.training for result in row if result.training]
        body.append(
            [
                _label(row, several_seeds),
                _joined(" + ".join(item.train_splits) for item in training),
                _joined(f"{result.parameters.total / 1e6:.3g}" for result in row),
                _joined(str(item.epochs) for item in training if item.epochs is not None),
                *([_wer_cell(row, item, search) for item, search in scored] or [""]),
                *(kept[item][index] for item in chunked),
                *([_rtf_cell(row, search) for search in all_searches] or [""]),
                _number(_mean(item.audio_seconds_per_second for item in training), ".0f"),
                format_duration(_mean(item.seconds for item in training)),
                _joined(map(_hardware_cell, row)),
                _joined(map(_commit_cell, row)),
            ]
        )
    title = ", ".join(dict.fromkeys(item.split for item in test_sets)) or "Not evaluated"
    paragraphs = [f"### {title}"]
    if test_sets:
        paragraphs.append("Scored: " + "; ".join(f"{item.split} {item.size}" for item in test_sets) + ".")
    paragraphs.append(_markdown(header, body))
    if any(map(is_removed, results)):
        paragraphs.append(f"{REMOVED} The code no longer has this model; its results stay.")
    return "\n\n".join(paragraphs)


def _labels(test_sets: Sequence[_TestSet]) -> dict[_TestSet, str]:
    """Name test sets by their split, and by their size too where several share the name."""
    names = [item.split for item in test_sets]
    return {
        item: item.split if names.count(item.split) == 1 else f"{item.split} ({item.size})"
        for item in test_sets
    }


def _rows(results: Sequence[Results]) -> list[list[Results]]:
    """Group results that differ only in the seed."""
    rows: list[list[Results]] = []
    for result in results:
        row = next((row for row in rows if all(same_experiment(result, other) for other in row)), None)
        if row is None:
            rows.append([result])
        else:
            row.append(result)
    return rows


def _label(row: Sequence[Results], several_seeds: set[str]) -> str:
    name = model_name(row[0])
    shown = f"{name} {REMOVED}" if is_removed(row[0]) else name
    if len(row) > 1:
        return f"{shown} ({len(row)} seeds)"
    return f"{shown} (seed {row[0].seed})" if name in several_seeds else shown


def _joined(cells: Iterable[str]) -> str:
    """Join the cells' texts, each once."""
    return " / ".join(dict.fromkeys(cell for cell in cells if cell))


def _mean(values: Iterable[float | None]) -> float | None:
    """Average the values that were measured."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _over_seeds(values: Sequence[float], form: str) -> str:
    """Write mean ± standard deviation (n seeds); one seed has no deviation."""
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread} ({len(values)} seed{'s' if len(values) > 1 else ''})"


def _wer_cell(row: Sequence[Results], item: _TestSet, search: str) -> str:
    entries = [result.evaluation.get(item.split, {}).get(search) for result in row]
    found = [entry.wer for entry in entries if entry and _test_set(item.split, entry.wer) == item]
    if not found:
        return ""
    return format_wer(found[0]) if len(row) == 1 else _over_seeds([errors.rate for errors in found], ".2f")


def _kept_cell(row: Sequence[Results], item: _TestSet) -> str:
    """Write the mean kept fraction of each chunking stage, the outermost first; no search changes it."""
    measured = []
    for result in row:
        for entry in result.evaluation.get(item.split, {}).values():
            if _test_set(item.split, entry.wer) == item and entry.stages:
                measured.append([stage.kept for stage in entry.stages])
                break
    return " / ".join(_number(_mean(stage), ".2f") for stage in zip(*measured, strict=True))


def _rtf_cell(row: Sequence[Results], search: str) -> str:
    """Write the RTF and the batch size: a mean over seeds if all were measured alike, else each RTF."""
    measured = [found for result in row if (found := _rtf(result, search))]
    if len({(batches, hardware) for _, batches, hardware in measured}) == 1 and len(row) > 1:
        return f"{_over_seeds([rtf for rtf, *_ in measured], '.3g')[:-1]}, batch {measured[0][1]})"
    batches = dict.fromkeys(found for _, found, _ in measured)
    return _joined(
        f"{_joined(f'{rtf:.3g}' for rtf, found, _ in measured if found == batch)} (batch {batch})"
        for batch in batches
    )


def _rtf(result: Results, search: str) -> tuple[float, str, str] | None:
    """Return the RTF over all splits, the batch sizes and the hardware; None if nothing was timed."""
    audio = processing = 0.0
    batches: dict[str, None] = {}
    hardware: dict[str, None] = {}
    for entries in result.evaluation.values():
        efficiency = entries[search].efficiency if search in entries else None
        if efficiency and efficiency.processing_seconds is not None and efficiency.audio_seconds:
            audio += efficiency.audio_seconds
            processing += efficiency.processing_seconds
            batches[str(efficiency.batch)] = None
            hardware[_hardware_name(efficiency.hardware)] = None
    return (processing / audio, ", ".join(batches), ", ".join(hardware)) if audio else None


def _hardware_cell(result: Results) -> str:
    """Name the hardware of the run, the precision of training, and other hardware of the evaluation."""
    processes = (result.training or result.environment).world_size
    run = _hardware_name(result.environment.hardware)
    evaluated = {
        _hardware_name(entry.efficiency.hardware)
        for entries in result.evaluation.values()
        for entry in entries.values()
        if entry.efficiency
    }
    parts = [f"{processes} × {run}" if processes > 1 else run]
    if result.training:
        parts.append(result.training.precision)
    parts += [f"RTF on {name}" for name in sorted(evaluated - {run})]
    return ", ".join(parts)


def _hardware_name(hardware: Hardware) -> str:
    return hardware.gpu or f"{hardware.cpu} ({hardware.cores} cores)"


def _commit_cell(result: Results) -> str:
    git = result.environment.git
    return git.commit[:8] + (" (dirty)" if git.dirty else "") if git else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = ["left" if name in _TEXT_COLUMNS else "right" for name in header]
    return markdown_table(rows, header, align=sides)
