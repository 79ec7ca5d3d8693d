"""Tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

Cell = str | int | float | None


def text_table(rows: Sequence[Sequence[Cell]], headers: Sequence[str], *, align: Sequence[str] = ()) -> str:
    """Lay out rows in columns for a terminal.

    Parameters
    ----------
    rows
        Cells of each row. Strings are printed as they stand, None as an empty cell.
    headers
        Name of each column.
    align
        "left" or "right" for each column. By default all cells stand on the left.

    Returns
    -------
    str
        The table without a final newline.
    """
    return _table(rows, headers, "plain", align)


def markdown_table(
    rows: Sequence[Sequence[Cell]], headers: Sequence[str], *, align: Sequence[str] = ()
) -> str:
    """Write rows as a Markdown table. Parameters are those of `text_table`.

    A vertical bar in a cell is escaped, and a line break becomes a space.
    """
    escaped = [[_escape(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return _table(escaped, [_escape(name) for name in headers], "pipe", align)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _table(rows: Sequence[Sequence[Cell]], headers: Sequence[str], style: str, align: Sequence[str]) -> str:
    sides = align or ["left"] * len(headers)
    return tabulate(
        rows, headers=headers, tablefmt=style, disable_numparse=True, colalign=sides, missingval=""
    )
