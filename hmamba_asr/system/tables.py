"""Tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tabulate

Cell = str | int | float | None

WIDTH = 120  # characters of the longest line of a table that is split
tabulate.MIN_PADDING = 0  # tabulate makes a column two characters wider than its header


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
    return _table(rows, headers, "simple", align)


def markdown_table(
    rows: Sequence[Sequence[Cell]], headers: Sequence[str], *, align: Sequence[str] = ()
) -> str:
    """Write rows as a Markdown table. Parameters are those of `text_table`.

    A vertical bar in a cell is escaped, and a line break becomes a space.
    """
    escaped = [[_escape(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return _table(escaped, [_escape(name) for name in headers], "pipe", align)


def split_table(
    write: Callable[..., str],
    rows: Sequence[Sequence[Cell]],
    headers: Sequence[str],
    *,
    align: Sequence[str] = (),
    keys: int = 1,
    groups: Sequence[int] = (),
    width: int = WIDTH,
) -> list[str]:
    """Write as few tables as it takes to have no line that is longer than `width`.

    Each table has the first `keys` columns and some of the others.

    Parameters
    ----------
    write
        `text_table` or `markdown_table`.
    rows, headers, align
        Its arguments.
    keys
        Number of columns that name a row.
    groups
        Sizes of groups of consecutive other columns. A group is not divided if there is another way.
    width
        Characters in a line.

    Returns
    -------
    list of str
        The tables. Where even a single column is too wide, its table is.
    """
    sides = align or ["left"] * len(headers)
    tables: list[str] = []
    for pieces in _cuts(keys, len(headers), groups):
        tables = []
        for piece in pieces:
            columns = [*range(keys), *piece]
            tables.append(
                write(
                    [[row[index] for index in columns] for row in rows],
                    [headers[index] for index in columns],
                    align=[sides[index] for index in columns],
                )
            )
        if all(len(line) <= width for table in tables for line in table.splitlines()):
            break
    return tables


def _cuts(keys: int, columns: int, groups: Sequence[int]) -> list[list[list[int]]]:
    """List the ways to spread columns over tables: few tables first, groups before single columns."""
    others = list(range(keys, columns))
    cuts = []
    for sizes in (list(groups) or [len(others)], [1] * len(others)):
        ends = [keys + sum(sizes[: index + 1]) for index in range(len(sizes))]
        units = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
        for count in range(1, len(units) + 1):
            each = -(-len(units) // count)
            cuts.append([sum(units[at : at + each], []) for at in range(0, len(units), each)])
    return cuts or [[others]]


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _table(rows: Sequence[Sequence[Cell]], headers: Sequence[str], style: str, align: Sequence[str]) -> str:
    sides = align or ["left"] * len(headers)
    return tabulate.tabulate(
        rows, headers=headers, tablefmt=style, disable_numparse=True, colalign=sides, missingval=""
    )
