"""The tables of all results: accuracy, speed, and the settings of each row."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hmamba_asr.config.difference import differ_in_seed_only
from hmamba_asr.config.moved import removed_names
from hmamba_asr.evaluation.results import ErrorRates, Hardware, Results
from hmamba_asr.report.blocks import Block, Details, Heading, Paragraph, Table
from hmamba_asr.system.durations import format_duration

REMOVED = "†"  # marks a model that the code no longer has

_KEPT_ENDING = ".results.json"
_NAME_WIDTH = 40  # of a row's name that says what the command line changed
_HOW_TO_READ = (
    "WER is in percent. ± is the standard deviation over seeds; a row of one seed has none. An empty cell was"
    " not measured. Greedy is greedy CTC decoding, beam is joint CTC/attention beam search."
)
_NAMES = "Each row is named after its files: NAME.results.json, or NAME.SEED.results.json for several seeds."
_KEPT = "Kept is chunks / frames."
_REMOVED = f"{REMOVED} marks a model that the code no longer has."
_FEWER = "(n) counts the seeds of a WER where it is fewer than those of the row."
_SPEED = (
    "Audio-s/s is seconds of audio in a second of training. Training time leaves validation out. RTF × 1000"
    " is milliseconds of recognition for a second of audio."
)


class _TestSet(NamedTuple):
    """What a WER was measured on. WERs compare only where all three agree: the demo has a test-clean too."""

    split: str
    sentences: int
    words: int

    @property
    def size(self) -> str:
        return f"{self.sentences:,} utterances, {self.words:,} words"


class _Way(NamedTuple):
    """How speed was measured: machine and precision of training, and batches of recognition."""

    machine: str
    batches: str


@dataclass(frozen=True)
class _Row:
    """Results that differ only in the seed, and the row's name."""

    name: str
    results: list[Results]

    @property
    def shown(self) -> str:
        return f"{self.name} {REMOVED}" if is_removed(self.results[0]) else self.name


def describe_results(results: Mapping[Path, Results], expected: Iterable[str] = ()) -> list[Block]:
    """Make tables of results, with one row for each experiment.

    Results that share a test set (same name, utterances and words) share tables: one of accuracy, one of
    speed, and a list of the rows' settings. Results that differ only in the seed share a row of means. In the
    table of speed they share it only if they were measured alike.

    A row is called what its files are: NAME.results.json or NAME.SEED.results.json. Files called results.json
    have no such name. Then it is the model's.

    Parameters
    ----------
    results
        As `load_files` returns them.
    expected
        Names of models that are listed if they have no results (the YAMLs of `hparams/`).

    Returns
    -------
    list
        What `blocks.to_markdown` and `blocks.to_text` write.
    """
    corpora = _corpora(results)
    blocks: list[Block] = []
    if results:
        rows = [row for _, members in corpora for row in members]
        notes = [_HOW_TO_READ]
        if any(_kept_name(path, result) for path, result in results.items()):
            notes.insert(0, _NAMES)
        if any(stages for row in rows for item in row.results for stages in _stages(item)):
            notes.append(_KEPT)
        if any(is_removed(row.results[0]) for row in rows):
            notes.append(_REMOVED)
        blocks += [Paragraph(" ".join(notes)), Paragraph(_SPEED)]
    for test_sets, members in corpora:
        blocks += _describe_corpus(test_sets, members)
    if unmeasured := sorted(set(expected) - {result.name for result in results.values()}):
        blocks += [Heading("Not measured yet"), Paragraph(f"{', '.join(map(_code, unmeasured))}.")]
    elif not results:
        blocks.append(Paragraph("There are no results."))
    return blocks


def row_names(results: Mapping[Path, Results]) -> list[str]:
    """Return the names of the rows that `describe_results` makes."""
    return [row.name for _, rows in _corpora(results) for row in rows]


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


# ---- corpora and rows -------------------------------------------------------------------------------------


def _test_set(split: str, wer: ErrorRates) -> _TestSet:
    return _TestSet(split, wer.sentences, wer.tokens)


def _corpora(results: Mapping[Path, Results]) -> list[tuple[list[_TestSet], list[_Row]]]:
    """Group results that share a test set, directly or through others, and make rows of each group."""
    groups: list[tuple[set[_TestSet], dict[Path, Results]]] = []
    for path, result in sorted(results.items(), key=lambda item: (_row_order(item[1]), item[0])):
        test_sets = {
            _test_set(split, entry.wer)
            for split, searches in result.evaluation.items()
            for entry in searches.values()
        }
        joined, apart = {path: result}, []
        for other, members in groups:
            # Results that were not evaluated share a table of their own.
            if other & test_sets or not (other or test_sets):
                test_sets, joined = test_sets | other, members | joined
            else:
                apart.append((other, members))
        groups = [*apart, (test_sets, joined)]
    # Most material first: LibriSpeech stands above the demo.
    groups.sort(key=lambda group: (-sum(item.words for item in group[0]), sorted(group[0])))
    taken: set[str] = set()
    return [(sorted(test_sets), _rows(members, taken)) for test_sets, members in groups]


def _row_order(result: Results) -> tuple[str, int, str]:
    return model_name(result), result.seed, result.date


def _rows(results: Mapping[Path, Results], taken: set[str]) -> list[_Row]:
    """Group results that differ only in the seed. No row gets a name that is ``taken``."""
    rows: list[_Row] = []
    for path, result in sorted(results.items(), key=lambda item: (_row_order(item[1]), item[0])):
        for row in rows:
            if all(same_experiment(result, other) for other in row.results):
                row.results.append(result)
                break
        else:
            rows.append(_Row(_kept_name(path, result) or _short_name(result), [result]))
    return [replace(row, name=_free(row.name, taken)) for row in sorted(rows, key=lambda row: row.name)]


def _kept_name(path: Path, result: Results) -> str | None:
    """Return NAME of NAME.results.json and of NAME.SEED.results.json; None for results.json."""
    if not path.name.endswith(_KEPT_ENDING):
        return None
    return path.name.removesuffix(_KEPT_ENDING).removesuffix(f".{result.seed}")


def _short_name(result: Results) -> str:
    """Name a model, and what the command line changed in it if that is short."""
    name = ", ".join([result.name, *(f"{key} {value}" for key, value in result.overrides.items())])
    return name if len(name) <= _NAME_WIDTH else result.name


def _free(name: str, taken: set[str]) -> str:
    """Number a name that is taken: "a", "a #2", "a #3"."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} #{number}"
    taken.add(free)
    return free


# ---- blocks of a corpus -----------------------------------------------------------------------------------


def _describe_corpus(test_sets: list[_TestSet], rows: list[_Row]) -> list[Block]:
    about = []
    if test_sets:
        sizes = " and ".join(f"{item.split} ({item.size})" for item in test_sets)
        about.append(f"Test sets: {sizes}.")
    trained = {_train_data(row) for row in rows}
    if len(trained) == 1 and any(trained):
        about.append(f"Training data: {next(iter(trained))}.")
    title = " and ".join(dict.fromkeys(item.split for item in test_sets)) or "Not evaluated"
    blocks: list[Block] = [Heading(title)]
    if about:
        blocks.append(Paragraph(" ".join(about)))
    blocks += _accuracy(test_sets, rows, with_data=len(trained) > 1)
    blocks += _speed(rows)
    blocks.append(
        Details("What the rows are: overrides, parameters, seeds, commits", tuple(map(_settings, rows)))
    )
    return blocks


def _accuracy(test_sets: list[_TestSet], rows: list[_Row], *, with_data: bool) -> list[Block]:
    searches: dict[_TestSet, set[str]] = defaultdict(set)
    for row in rows:
        for result in row.results:
            for split, entries in result.evaluation.items():
                for search, entry in entries.items():
                    searches[_test_set(split, entry.wer)].add(search)
    columns = [(item, search) for item in test_sets for search in sorted(searches[item], key=_search_order)]
    labels = _labels(test_sets)
    keys: dict[str, list[str]] = {"model": [row.shown for row in rows]}
    if with_data:
        keys["training data"] = [_train_data(row) for row in rows]
    keys["seeds"] = [str(len(row.results)) for row in rows]
    keys["epochs"] = [_epochs(row) for row in rows]
    kept = [_kept_cell(row) for row in rows]
    if any(kept):
        keys["kept"] = kept
    wers = {
        f"{labels[item]} {search}".strip(): [_wer_cell(row, item, search) for row in rows]
        for item, search in columns
    }
    groups = tuple(len(searches[item]) for item in test_sets)
    blocks: list[Block] = [_table({**keys, **wers}, keys=len(keys), groups=groups)]
    if any("(" in cell for cells in wers.values() for cell in cells):
        blocks.append(Paragraph(_FEWER))
    return blocks


def _speed(rows: list[_Row]) -> list[Block]:
    """One row for each model and way to measure: training and recognition on what, in which batches."""
    measured: list[tuple[_Row, _Way, list[Results]]] = []
    for row in rows:
        ways: dict[_Way, list[Results]] = defaultdict(list)
        for result in row.results:
            ways[_way(result)].append(result)
        measured += [(row, way, ways[way]) for way in sorted(ways) if any(way)]
    if not measured:
        return []
    letters = {way: chr(ord("A") + at) for at, way in enumerate(sorted({way for _, way, _ in measured}))}
    cells: dict[str, list[str]] = {"model": [row.shown for row, *_ in measured]}
    if len(letters) > 1:
        cells["on"] = [letters[way] for _, way, _ in measured]
    cells["seeds"] = [str(len(found)) for *_, found in measured]
    keys = len(cells)
    trainings = [[result.training for result in found if result.training] for *_, found in measured]
    cells["training audio-s/s"] = [
        _number(_mean(item.audio_seconds_per_second for item in each), ".0f") for each in trainings
    ]
    cells["training time"] = [format_duration(_mean(item.seconds for item in each)) for each in trainings]
    searches = {search for *_, found in measured for result in found for search in _searches(result)}
    for search in sorted(searches, key=_search_order):
        cells[f"RTF × 1000 {search}"] = [_rtf_cell(found, search) for *_, found in measured]
    cells = {name: column for name, column in cells.items() if any(column)}
    return [Paragraph(_where(letters)), _table(cells, keys=keys)]


def _where(letters: Mapping[_Way, str]) -> str:
    """Say what the letters stand for, and what all have in common only once."""
    batches = {way.batches for way in letters if way.batches}
    common = f" Recognition in batches of {next(iter(batches))}." if len(batches) == 1 else ""
    described = {
        letter: ", ".join(
            part
            for part in (
                way.machine,
                way.batches and not common and f"recognition in batches of {way.batches}",
            )
            if part
        )
        for way, letter in letters.items()
    }
    if len(described) == 1:
        return f"Speed on {described['A']}.{common}"
    return f"Speed on {'; '.join(f'{letter}: {text}' for letter, text in described.items())}.{common}"


def _settings(row: _Row) -> str:
    """Say how a row's model was made: YAML and overrides, size, seeds, commits."""
    model = model_name(row.results[0])
    parameters = _joined(f"{result.parameters.total / 1e6:.3g}M" for result in row.results)
    facts = [
        *([_code(model)] if model != row.name else []),
        f"{parameters} parameters",
        _counted("seed", [str(result.seed) for result in row.results]),
        _counted("commit", [_commit(result) for result in row.results]),
    ]
    return f"{_code(row.name)}: {'; '.join(filter(None, facts))}"


def _counted(noun: str, values: Sequence[str]) -> str:
    """Write "seed 1" or "seeds 1, 2"; nothing if there are none."""
    known = list(dict.fromkeys(filter(None, values)))
    return f"{noun}{'s' if len(known) > 1 else ''} {', '.join(known)}" if known else ""


def _table(columns: Mapping[str, Sequence[str]], *, keys: int, groups: tuple[int, ...] = ()) -> Table:
    sides = tuple("left" if name in {"model", "training data", "on"} else "right" for name in columns)
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)), sides, keys, groups)


def _labels(test_sets: Sequence[_TestSet]) -> dict[_TestSet, str]:
    """Name test sets by what tells their splits apart: dev and test for dev-clean and test-clean.

    Where several share a split's name, their size follows.
    """
    splits = list(dict.fromkeys(item.split for item in test_sets))
    parts = [split.split("-") for split in splits]
    start = end = 0
    shortest = min(map(len, parts), default=0)
    while start < shortest - 1 and len({words[start] for words in parts}) == 1:
        start += 1
    while end < shortest - 1 - start and len({words[-1 - end] for words in parts}) == 1:
        end += 1
    if len(splits) == 1:
        start, end = 0, len(parts[0])  # the heading names it
    short = {
        split: "-".join(words[start : len(words) - end]) for split, words in zip(splits, parts, strict=True)
    }
    names = [item.split for item in test_sets]
    return {
        item: short[item.split] if names.count(item.split) == 1 else f"{item.split} ({item.size})"
        for item in test_sets
    }


# ---- cells ------------------------------------------------------------------------------------------------


def _search_order(search: str) -> tuple[int, str]:
    """Order greedy before beam before beam with a language model."""
    return (0 if "greedy" in search else 2 if "lm" in search.lower() else 1), search


def _joined(cells: Iterable[str]) -> str:
    """Join the cells' texts, each once."""
    return " / ".join(dict.fromkeys(cell for cell in cells if cell))


def _mean(values: Iterable[float | None]) -> float | None:
    """Average the values that were measured."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _over_seeds(values: Sequence[float], form: str) -> str:
    """Write mean ± standard deviation; one seed has no deviation."""
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def _train_data(row: _Row) -> str:
    return _joined(" + ".join(result.training.train_splits) for result in row.results if result.training)


def _epochs(row: _Row) -> str:
    epochs = [result.training.epochs for result in row.results if result.training]
    return _joined(str(count) for count in epochs if count is not None)


def _wer_cell(row: _Row, item: _TestSet, search: str) -> str:
    entries = [result.evaluation.get(item.split, {}).get(search) for result in row.results]
    rates = [entry.wer.rate for entry in entries if entry and _test_set(item.split, entry.wer) == item]
    if not rates:
        return ""
    fewer = f" ({len(rates)})" if len(rates) < len(row.results) else ""
    return _over_seeds(rates, ".2f") + fewer


def _stages(result: Results) -> list[list[float | None]]:
    """Return the kept fraction of each chunking stage, the outermost first, on each split: a search changes
    none."""
    found = []
    for entries in result.evaluation.values():
        stages = [[stage.kept for stage in entry.stages] for entry in entries.values() if entry.stages]
        found += stages[:1]
    return found


def _kept_cell(row: _Row) -> str:
    """Write the mean over seeds and test sets of the fraction that each stage keeps."""
    measured = [stages for result in row.results for stages in _stages(result)]
    return " × ".join(_number(_mean(stage), ".2f") for stage in zip(*measured, strict=True))


def _searches(result: Results) -> set[str]:
    return {search for entries in result.evaluation.values() for search in entries}


def _rtf_cell(results: Sequence[Results], search: str) -> str:
    """Write 1000 times the RTF over all splits: mean and standard deviation over seeds, three digits."""
    rates = [1000 * rate for result in results if (rate := _rtf(result, search)) is not None]
    if not rates:
        return ""
    mean = statistics.mean(rates)
    decimals = max(0, 2 - math.floor(math.log10(mean))) if mean > 0 else 2
    return _over_seeds(rates, f".{decimals}f")


def _rtf(result: Results, search: str) -> float | None:
    audio = processing = 0.0
    for entries in result.evaluation.values():
        efficiency = entries[search].efficiency if search in entries else None
        if efficiency and efficiency.processing_seconds is not None and efficiency.audio_seconds:
            audio += efficiency.audio_seconds
            processing += efficiency.processing_seconds
    return processing / audio if audio else None


def _way(result: Results) -> _Way:
    """Say on what a run was trained and timed; empty texts for what was not."""
    timed = [
        entry.efficiency
        for entries in result.evaluation.values()
        for entry in entries.values()
        if entry.efficiency and entry.efficiency.processing_seconds is not None
    ]
    run = _hardware_name(result.environment.hardware)
    parts = []
    if result.training:
        processes = result.training.world_size
        parts = [f"{processes} × {run}" if processes > 1 else run, result.training.precision]
    machines = sorted({_hardware_name(item.hardware) for item in timed})
    if machines and not (parts and machines == [run]):
        parts.append(f"recognition on {' and '.join(machines)}")
    return _Way(", ".join(parts), " and ".join(sorted({_batch(item.batch) for item in timed})))


def _batch(batch: int | str) -> str:
    return f"{batch} utterances" if isinstance(batch, int) else batch


def _hardware_name(hardware: Hardware) -> str:
    return hardware.gpu or f"{hardware.cpu} ({hardware.cores} cores)"


def _commit(result: Results) -> str:
    git = result.environment.git
    return git.commit[:8] + (" (dirty)" if git.dirty else "") if git else ""


def _code(text: str) -> str:
    return f"`{text}`"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
