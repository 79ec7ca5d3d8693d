"""The Markdown file that holds the tables of all results between two markers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hmamba_asr.evaluation.results import Results
from hmamba_asr.report.blocks import to_markdown
from hmamba_asr.report.results_table import describe_results, row_names
from hmamba_asr.system.files import write_atomically

BEGIN_MARKER = "<!-- results:begin -->"
END_MARKER = "<!-- results:end -->"

_SHOWN = 8  # names in a message


def write_summary(
    path: str | Path,
    results: Mapping[Path, Results],
    *,
    expected: Iterable[str] = (),
    drop: Collection[str] = (),
) -> None:
    """Put the tables of `results` between the markers of a Markdown file.

    Parameters
    ----------
    path
        The Markdown file.
    results, expected
        As `describe_results` takes them.
    drop
        Names of rows that the file has and that may go.

    Raises
    ------
    ValueError
        If the file does not have exactly one pair of markers, or has a row that is neither in `results` nor
        in `drop`. Then the file stays as it is.
    """
    text, begin, end = _read(path)
    known = {*row_names(results), *drop}
    lost = [name for name in _rows(text[begin:end]) if name not in known]
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise ValueError(
            f"{path} has rows whose results were not given: {', '.join(lost[:_SHOWN])}{more}."
            " Give their files too, or name after --drop the rows that may go."
        )
    updated = _updated(text, begin, end, results, expected)
    if updated != text:
        with write_atomically(path) as stream:
            stream.write(updated)


def check_summary(path: str | Path, results: Mapping[Path, Results], *, expected: Iterable[str] = ()) -> None:
    """Check that a Markdown file has the tables of `results` between its markers.

    Raises
    ------
    ValueError
        If it has others, or does not have exactly one pair of markers.
    """
    text, begin, end = _read(path)
    if _updated(text, begin, end, results, expected) != text:
        raise ValueError(f"{path}: the tables are not up to date. Run: python scripts/summarize.py --write")


def _read(path: str | Path) -> tuple[str, int, int]:
    """Return the file's text, and where the part between its markers begins and ends."""
    text = Path(path).read_text(encoding="utf-8")
    begin, end = text.find(BEGIN_MARKER), text.find(END_MARKER)
    if text.count(BEGIN_MARKER) != 1 or text.count(END_MARKER) != 1 or end < begin:
        raise ValueError(f"{path}: needs one line {BEGIN_MARKER} and below it one line {END_MARKER}.")
    return text, begin + len(BEGIN_MARKER), end


def _rows(block: str) -> list[str]:
    """Return the names of the rows in the part between the markers: each has an item of a list."""
    return re.findall(r"^- `([^`]+)`:", block, flags=re.MULTILINE)


def _updated(
    text: str, begin: int, end: int, results: Mapping[Path, Results], expected: Iterable[str]
) -> str:
    tables = to_markdown(describe_results(results, expected))
    return f"{text[:begin]}\n\n{tables}\n\n{text[end:]}"
