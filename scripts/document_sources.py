"""What stands on the right in a document's comment of sources: a value, computed from kept files.

`check_documents.py` describes the language. `ast` reads it, and nothing is called but the functions below.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import operator
import re
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plot_tradeoff import DEFAULT_RESULTS, read_kept
from ruamel.yaml import YAML

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import resolve
from hmamba_asr.evaluation.results import Results, plain

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "scripts" / "benchmarks" / "results"


@dataclass(frozen=True)
class Source:
    """A line of a comment of sources."""

    line: int
    left: str
    right: str
    listed: bool = False  # in a file of its own, not in the document


class SourceError(ValueError):
    """A line of sources that gives no value."""


def read_sources(comment: str, line: int) -> list[Source]:
    """Read a comment of sources that begins in ``line``. An indented line goes on with the line above."""
    first, _, rest = comment.partition("\n")
    lines = [first.strip().removeprefix("sources").strip(), *textwrap.dedent(rest).splitlines()]
    rows: list[tuple[int, str]] = []
    for number, row in enumerate(lines):
        if row[:1].isspace() and row.strip() and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {row.strip()}")
        elif row.strip():
            rows.append((line + number, row))
    parts = [(number, *row.partition(" = ")) for number, row in rows]
    return [Source(number, left.strip(), right.strip()) for number, left, _, right in parts]


@dataclass(frozen=True)
class Value:
    """A number, with its standard deviation or its range."""

    number: float
    others: tuple[float, ...] = ()

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.number, *self.others)

    def in_words(self, decimals: int) -> str:
        first, *others = (f"{number:.{decimals}f}" for number in self.numbers)
        return f"{first} ({' to '.join(others)})" if len(others) > 1 else " ± ".join([first, *others])

    def scaled(self, factor: float) -> Value:
        return Value(self.number * factor, tuple(other * factor for other in self.others))


@dataclass(frozen=True)
class Cited:
    """A figure of the literature: no file of ours can give it."""


def _over_seeds(values: Sequence[float | None], what: str) -> Value:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        raise SourceError(f"not every kept file has {what}")
    return Value(statistics.mean(known), (statistics.stdev(known),) if len(known) > 1 else ())


_read_kept = functools.cache(lambda name: read_kept(DEFAULT_RESULTS, name))


def _results(name: str, seed: int | None) -> list[Results]:
    found = [result for result in _read_kept(name) if seed in (None, result.seed)]
    if not found:
        raise SourceError(f"{name} has no kept file of seed {seed}")
    return found


def _entries(name: str, split: str, search: str | None, seed: int | None) -> list:
    try:
        splits = [result.evaluation[split] for result in _results(name, seed)]
        return [entries[search or next(iter(entries))] for entries in splits]
    except KeyError as error:
        raise SourceError(f"{name} has no evaluation {error}") from None


def wer(name: str, split: str, search: str, *, seed: int | None = None) -> Value:
    return _over_seeds([entry.wer.rate for entry in _entries(name, split, search, seed)], "a WER")


def kept(name: str, split: str, *, seed: int | None = None) -> Value:
    stages = [[stage.kept for stage in entry.stages] for entry in _entries(name, split, None, seed)]
    if any(None in each for each in stages):
        raise SourceError(f"{name} does not say what its chunks keep")
    return _over_seeds([math.prod(filter(None, each)) for each in stages], "kept")  # 1 without chunks


def parameters(name: str) -> Value:
    return Value(statistics.mean(result.parameters.total for result in _results(name, None)) / 1e6)


def seeds(name: str) -> Value:
    return Value(len(_results(name, None)))


def rtf(name: str, search: str, *, seed: int | None = None) -> Value:
    rates: list[float | None] = []
    for result in _results(name, seed):
        timed = [entries[search].efficiency for entries in result.evaluation.values() if search in entries]
        spent = sum(item.processing_seconds or math.nan if item else math.nan for item in timed)
        audio = sum(item.audio_seconds or math.nan if item else math.nan for item in timed)
        rates.append(spent / audio if timed and spent / audio > 0 else None)
    return _over_seeds(rates, "an RTF")


def _training(name: str, attribute: str, seed: int | None) -> Value:
    trained = [result.training for result in _results(name, seed)]
    return _over_seeds(
        [getattr(item, attribute) if item else None for item in trained], f"training.{attribute}"
    )


def train_minutes(name: str, *, seed: int | None = None) -> Value:
    return _training(name, "seconds", seed).scaled(1 / 60)


def train_hours(name: str, *, seed: int | None = None) -> Value:
    return _training(name, "seconds", seed).scaled(1 / 3600)


def data_hours(name: str) -> Value:
    epochs = _training(name, "epochs", None).number
    return Value(_training(name, "audio_seconds", None).number / epochs / 3600)


def _number(found: Any, where: str) -> Value:
    """Make a value of a number, or of an object with low, median and high (or min and max)."""
    if isinstance(found, dict) and "median" in found:
        ends = [found.get(first, found.get(second)) for first, second in (("low", "min"), ("high", "max"))]
        return Value(found["median"], tuple(end for end in ends if end is not None))
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        holds = f"; it holds {', '.join(map(str, found))}" if isinstance(found, dict) else ""
        raise SourceError(f"{where} is no number{holds}")
    return Value(float(found))


def _walk(found: Any, keys: Sequence[str | int], where: str) -> Any:
    for key in keys:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            there = f"; it has {', '.join(map(str, found))}" if isinstance(found, dict) else ""
            raise SourceError(f"{where} has no {key!r}{there}") from None
        where = f"{where} > {key}"
    return found


def result(name: str, *keys: str | int, seed: int | None = None) -> Value:
    found = [_walk(plain(each, name), keys, name) for each in _results(name, seed)]
    return _over_seeds([_number(each, name).number for each in found], "it")


def _from_json(path: Path, keys: Sequence[str | int]) -> Value:
    content = json.loads(path.read_text(encoding="utf-8"))
    return _number(_walk(content, keys, path.name), " > ".join(map(str, (path.name, *keys))))


def bench(file: str, *keys: str | int) -> Value:
    return _from_json(BENCHMARKS / f"{file}.json", keys)


def efficiency(file: str, *keys: str | int) -> Value:
    return _from_json(DEFAULT_RESULTS / f"{file}.efficiency.json", keys)


@functools.cache
def _hparams(name: str) -> Any:
    base, *variants = name.split("+")
    folder = ROOT / "hparams"
    text = compose(folder / f"{base}.yaml", [folder / "variants" / f"{variant}.yaml" for variant in variants])
    return YAML().load(resolve(text, {"data_folder": "DIR"}))


def hparam(yaml: str, key: str) -> Value:
    return _number(_walk(_hparams(yaml), key.split("."), yaml), f"{yaml} > {key}")


def text(file: str, regex: str) -> Value:
    if file.endswith(".md"):
        raise SourceError(f"{file} is a document, which is no source")
    content = (ROOT / file).read_text(encoding="utf-8")
    found = {match[1] for match in re.finditer(regex, content, re.MULTILINE)}
    if len(found) != 1:
        raise SourceError(f"{file} has {len(found)} different texts for {regex!r}, not one")
    return Value(float(found.pop().replace(",", "")))


def cited(where: str) -> Cited:
    return Cited()


FUNCTIONS = {
    each.__name__: each
    for each in (wer, kept, parameters, seeds, rtf, train_minutes, train_hours, data_hours)
    + (result, bench, efficiency, hparam, text, cited)
}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SCALES = (operator.mul, operator.truediv)


def evaluate(expression: str) -> Value | Cited:
    """Return what the right side of a line of sources gives.

    Raises
    ------
    SourceError
        If it is not in the language above, names no file, or the file does not have the number.
    """
    try:
        found = _evaluate(ast.parse(expression, mode="eval").body)
    except SyntaxError:
        raise SourceError(f"not an expression: {expression}") from None
    except OSError as error:
        missing = f"no such file: {error.filename}" if error.filename else str(error)
        raise SourceError(missing.replace(f"{ROOT}/", "")) from None
    except (TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise SourceError(str(error)) from None
    if not isinstance(found, (Value, Cited)):
        raise SourceError(f"names no file: {expression}")
    return found


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _combine(operator.mul, -1, _evaluate(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return _combine(OPERATORS[type(sign)], _evaluate(left), _evaluate(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=options) if name in FUNCTIONS:
            named = {option.arg or "**": _evaluate(option.value) for option in options}
            return FUNCTIONS[name](*map(_evaluate, args), **named)
    raise SourceError(f"no source can hold {ast.unparse(node)}")


def _combine(sign: Any, left: Any, right: Any) -> Any:
    """Compute. A spread survives only a factor, since nothing is known of how two values vary together."""
    if not all(isinstance(side, (int, float, Value)) for side in (left, right)):
        raise SourceError("only numbers and values of files can be computed with")
    if isinstance(left, Value) and isinstance(right, Value):
        return Value(sign(left.number, right.number))
    if isinstance(left, Value):
        return left.scaled(sign(1, right)) if sign in SCALES else Value(sign(left.number, right))
    if isinstance(right, Value):
        return right.scaled(left) if sign is operator.mul else Value(sign(left, right.number))
    return sign(left, right)
