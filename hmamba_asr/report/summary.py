"""The Markdown table of all results, and the file that holds it.

The schema of a results file, and what reads and writes one, are in `results`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hmamba_asr.config.difference import differ_in_seed_only
from hmamba_asr.evaluation.results import load_results, write_results
from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.environment import collect_environment
from hmamba_asr.system.files import write_atomically

__all__ = ["collect_environment", "load_results", "render_table", "update_summary", "write_results"]

BEGIN_MARKER = "<!-- results:begin -->"
END_MARKER = "<!-- results:end -->"

_Result = Mapping[str, Any]  # the content of one results file
_SPEED_HEADER = ["RTF", "training audio-s/s", "train time", "hardware", "commit"]
_TEXT_COLUMNS = {"model", "train data", "hardware", "commit"}


class _Scored(NamedTuple):
    """What a WER was measured on. WERs compare only where all three agree: the demo has a test-clean too."""

    split: str
    sentences: int
    words: int


def render_table(results: Sequence[_Result], expected: Iterable[str] = ()) -> str:
    """Markdown: one table per corpus, one row per result.

    Results that share a scored split (same name, utterances and words) share a table. WER and RTF have a
    column per search; ± is half the width of the WER's 95% interval, the RTF is that of all splits together.
    Results that differ in nothing but the seed share a row: means, ± being the standard deviation over seeds,
    whose number stands beside it. The kept fraction of an encoder that chunks has a column per split, where a
    row of the table has one. What was not measured is an empty cell.

    Args:
        results: as `load_results` returns them.
        expected: names that shall have a row, empty if no result has that name (the YAMLs of `hparams/`).
    """
    seeds = defaultdict(set)
    for result in results:
        seeds[model_name(result)].add(result["seed"])
    several = {model for model, values in seeds.items() if len(values) > 1}
    sections = [_render_group(scored, group, several) for scored, group in _group_by_corpus(results)]
    unmeasured = sorted(set(expected) - {result["name"] for result in results})
    if unmeasured or not results:
        header = ["model", "train data", "params (M)", "epochs", "WER", *_SPEED_HEADER]
        rows = [[name, *[""] * (len(header) - 1)] for name in unmeasured]
        sections.append("### Not measured yet\n\n" + _markdown(header, rows))
    return "\n\n".join(sections)


def model_name(row: Mapping[str, Any]) -> str:
    """The YAML, and what the command line changed in it: two variants of a YAML are two models."""
    return " ".join([row["name"], *(f"--{key} {value}" for key, value in row.get("overrides", {}).items())])


def _scored(split: str, entry: Mapping[str, Any]) -> _Scored:
    return _Scored(split, entry["wer"]["sentences"], entry["wer"]["tokens"])


def _group_by_corpus(results: Sequence[_Result]) -> list[tuple[list[_Scored], list[_Result]]]:
    """Connected sets of results: those that share scored material, directly or through others."""
    groups: list[tuple[set[_Scored], list[_Result]]] = []
    for result in results:
        scored = {
            _scored(split, entry)
            for split, searches in result["evaluation"].items()
            for entry in searches.values()
        }
        joined = [result]
        apart = []
        for other, members in groups:
            # Results that were not evaluated keep each other company.
            if other & scored or not (other or scored):
                scored, joined = scored | other, members + joined
            else:
                apart.append((other, members))
        groups = [*apart, (scored, joined)]
    # Most material first: LibriSpeech stands above the demo.
    groups.sort(key=lambda group: (-sum(item.words for item in group[0]), sorted(group[0])))
    return [(sorted(scored), sorted(rows, key=_row_order)) for scored, rows in groups]


def _row_order(row: _Result) -> tuple[str, int, str]:
    return model_name(row), row["seed"], row["date"]


def _search_order(search: str) -> tuple[int, str]:
    """Greedy, then beam, then with a language model."""
    return (0 if "greedy" in search else 2 if "lm" in search.lower() else 1), search


def _render_group(scored: list[_Scored], rows: list[_Result], several_seeds: set[str]) -> str:
    searches: dict[_Scored, set[str]] = defaultdict(set)
    for row in rows:
        for split, entries in row["evaluation"].items():
            for search, entry in entries.items():
                searches[_scored(split, entry)].add(search)
    columns = [(item, search) for item in scored for search in sorted(searches[item], key=_search_order)]
    all_searches = sorted({search for _, search in columns}, key=_search_order)
    names = [item.split for item in scored]
    sizes = {item: f"{item.sentences} utterances, {item.words} words" for item in scored}
    unique = {name for name in names if names.count(name) == 1}
    labels = {
        item: item.split if item.split in unique else f"{item.split} ({sizes[item]})" for item in scored
    }
    rtf_header = [f"RTF {search}" for search in all_searches] or ["RTF"]
    wer_header = [f"{labels[item]} WER {search}" for item, search in columns] or ["WER"]
    units = _units(rows)
    kept = {item: [_kept_cell(unit, item) for unit in units] for item in scored}
    chunked = [item for item in scored if any(kept[item])]
    kept_header = [f"{labels[item]} kept" for item in chunked]
    header = [
        "model",
        "train data",
        "params (M)",
        "epochs",
        *wer_header,
        *kept_header,
        *rtf_header,
        *_SPEED_HEADER[1:],
    ]
    body = []
    for index, unit in enumerate(units):
        training = [row["training"] or {} for row in unit]
        body.append(
            [
                _label(unit, several_seeds),
                _joined(" + ".join(map(str, item.get("train_splits", ()))) for item in training),
                _joined(f"{row['parameters']['total'] / 1e6:.3g}" for row in unit),
                _joined(_cell(item.get("epochs"), "d") for item in training),
                *([_wer_cell(unit, item, search) for item, search in columns] or [""]),
                *(kept[item][index] for item in chunked),
                *([_rtf_cell(unit, search) for search in all_searches] or [""]),
                _cell(_mean(item.get("audio_seconds_per_second") for item in training), ".0f"),
                format_duration(_mean(item.get("seconds") for item in training)),
                _joined(map(_hardware_cell, unit)),
                _joined(map(_commit_cell, unit)),
            ]
        )
    title = ", ".join(dict.fromkeys(names)) or "Not evaluated"
    paragraphs = [f"### {title}"]
    if scored:
        paragraphs.append("Scored: " + "; ".join(f"{item.split} {sizes[item]}" for item in scored) + ".")
    return "\n\n".join([*paragraphs, _markdown(header, body)])


def _units(rows: Sequence[_Result]) -> list[list[_Result]]:
    """The rows, those in one list that differ in nothing but the seed."""
    units: list[list[_Result]] = []
    for row in rows:
        mates = next((unit for unit in units if all(differ_in_seed_only(row, other) for other in unit)), None)
        if mates is None:
            units.append([row])
        else:
            mates.append(row)
    return units


def _label(unit: Sequence[_Result], several_seeds: set[str]) -> str:
    name = model_name(unit[0])
    if len(unit) > 1:
        return f"{name} ({len(unit)} seeds)"
    return f"{name} (seed {unit[0]['seed']})" if name in several_seeds else name


def _joined(cells: Iterable[str]) -> str:
    """What is in the cells, each text once."""
    return " / ".join(dict.fromkeys(cell for cell in cells if cell))


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that were measured."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _over_seeds(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (n seeds); of one alone no deviation."""
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread} ({len(values)} seed{'s' if len(values) > 1 else ''})"


def _wer_cell(unit: Sequence[_Result], item: _Scored, search: str) -> str:
    entries = [row["evaluation"].get(item.split, {}).get(search) for row in unit]
    found = [entry["wer"] for entry in entries if entry and _scored(item.split, entry) == item]
    if not found:
        return ""
    return (
        format_wer(found[0]) if len(unit) == 1 else _over_seeds([errors["rate"] for errors in found], ".2f")
    )


def _commit_cell(row: _Result) -> str:
    git = row["environment"]["git"]
    return git["commit"][:8] + (" (dirty)" if git["dirty"] else "") if git else ""


def format_wer(errors: Mapping[str, Any]) -> str:
    """The WER in percent and, where it was measured, half the width of its 95% interval: `5.53 ± 1.20`."""
    interval = errors.get("interval_95")
    return f"{errors['rate']:.2f}" + (f" ± {(interval[1] - interval[0]) / 2:.2f}" if interval else "")


def _kept_cell(unit: Sequence[_Result], item: _Scored) -> str:
    """Mean kept fraction of each chunking stage, outermost first; the search makes no difference to it."""
    measured = []
    for row in unit:
        for entry in row["evaluation"].get(item.split, {}).values():
            if _scored(item.split, entry) == item and entry.get("stages"):
                measured.append([stage["kept"] for stage in entry["stages"]])
                break
    return " / ".join(f"{statistics.mean(stage):.2f}" for stage in zip(*measured, strict=True))


def _rtf_cell(unit: Sequence[_Result], search: str) -> str:
    """RTF and the batch size; those of several seeds as a mean if they were measured alike, else one after
    another."""
    measured = [found for row in unit if (found := _rtf(row, search))]
    if len({(batches, hardware) for _, batches, hardware in measured}) == 1 and len(unit) > 1:
        return f"{_over_seeds([rtf for rtf, *_ in measured], '.3g')[:-1]}, batch {measured[0][1]})"
    batches = dict.fromkeys(found for _, found, _ in measured)
    return _joined(
        f"{_joined(f'{rtf:.3g}' for rtf, found, _ in measured if found == batch)} (batch {batch})"
        for batch in batches
    )


def _rtf(row: _Result, search: str) -> tuple[float, str, str] | None:
    """Processing over audio seconds of all splits decoded with this search, batch sizes and hardware; None if
    not measured."""
    measured = [
        entries[search]["efficiency"]
        for entries in row["evaluation"].values()
        if search in entries and entries[search]["efficiency"] is not None
    ]
    measured = [item for item in measured if item["processing_seconds"] is not None and item["audio_seconds"]]
    if not measured:
        return None
    audio = sum(item["audio_seconds"] for item in measured)
    rtf = sum(item["processing_seconds"] for item in measured) / audio
    batches, hardware = (
        ", ".join(dict.fromkeys(values))
        for values in zip(
            *((str(item["batch"]), _hardware_name(item["hardware"])) for item in measured), strict=True
        )
    )
    return rtf, batches, hardware


def _hardware_cell(row: _Result) -> str:
    """Hardware of the run and precision of training; the hardware of the evaluation where that is another."""
    training = row["training"]
    processes = (training or row["environment"])["world_size"]
    run = _hardware_name(row["environment"]["hardware"])
    evaluated = {
        _hardware_name(entry["efficiency"]["hardware"])
        for entries in row["evaluation"].values()
        for entry in entries.values()
        if entry["efficiency"] is not None
    }
    parts = [f"{processes} × {run}" if processes > 1 else run]
    if training:
        parts.append(training["precision"])
    parts += [f"RTF on {name}" for name in sorted(evaluated - {run})]
    return ", ".join(parts)


def _hardware_name(hardware: Mapping[str, Any]) -> str:
    return hardware["gpu"] or f"{hardware['cpu']} ({hardware['cores']} cores)"


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    alignment = ["---" if name in _TEXT_COLUMNS else "---:" for name in header]
    lines = []
    for row in (header, alignment, *rows):
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update_summary(
    path: str | Path, results: Sequence[_Result], check: bool = False, expected: Iterable[str] = ()
) -> None:
    """Put the table of `results` between the markers of the Markdown file at `path`; see `render_table`.

    With `check`, change nothing.

    Raises:
        ValueError: the file has not exactly one pair of markers; with `check`, its table is not up to date.
    """
    text = Path(path).read_text(encoding="utf-8")
    begin, end = text.find(BEGIN_MARKER), text.find(END_MARKER)
    if text.count(BEGIN_MARKER) != 1 or text.count(END_MARKER) != 1 or end < begin:
        raise ValueError(f"{path}: needs one line {BEGIN_MARKER} and below it one line {END_MARKER}.")
    table = render_table(results, expected)
    updated = f"{text[: begin + len(BEGIN_MARKER)]}\n\n{table}\n\n{text[end:]}"
    if updated == text:
        return
    if check:
        raise ValueError(f"{path}: the table is not up to date. Run: python scripts/summarize.py")
    with write_atomically(path) as stream:
        stream.write(updated)
