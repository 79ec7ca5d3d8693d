"""The Markdown file that holds the table of all results between two markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hmamba_asr.evaluation.results import Results
from hmamba_asr.report.results_table import render_table
from hmamba_asr.system.files import write_atomically

BEGIN_MARKER = "<!-- results:begin -->"
END_MARKER = "<!-- results:end -->"


def update_summary(
    path: str | Path, results: Sequence[Results], check: bool = False, expected: Iterable[str] = ()
) -> None:
    """Put the table of `results` between the markers of a Markdown file.

    Parameters
    ----------
    path
        The Markdown file.
    results, expected
        As `render_table` takes them.
    check
        Change nothing, and fail if the file would change.

    Raises
    ------
    ValueError
        If the file does not have exactly one pair of markers; with `check`, if its table is not up to date.
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
