"""Headings, paragraphs, tables and lists, written as Markdown or for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from hmamba_asr.system.tables import WIDTH, markdown_table, split_table, text_table

_TERMINAL = 118  # characters of a line of text, so that Markdown's and the terminal's are alike


@dataclass(frozen=True)
class Heading:
    """A heading."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Some sentences. Backticks surround what a terminal shows without them."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows in columns, split into several tables where one is too wide; see `tables.split_table`."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: tuple[str, ...]
    keys: int = 1
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Details:
    """A list that a page shows on demand."""

    title: str
    items: tuple[str, ...]


Block = Heading | Paragraph | Table | Details


def to_markdown(blocks: Sequence[Block]) -> str:
    """Write blocks as Markdown, with lines of at most 120 characters where words allow it."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"### {block.text}")
        elif isinstance(block, Paragraph):
            parts.append(_wrapped(block.text))
        elif isinstance(block, Table):
            parts += _tables(block, markdown_table)
        else:
            items = "\n".join(_wrapped(item, "- ") for item in block.items)
            parts.append(f"<details><summary>{block.title}</summary>\n\n{items}\n\n</details>")
    return "\n\n".join(parts)


def to_text(blocks: Sequence[Block]) -> str:
    """Write blocks for a terminal of 120 columns."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{block.text}\n{'=' * len(block.text)}")
        elif isinstance(block, Paragraph):
            parts.append(_wrapped(block.text.replace("`", "")))
        elif isinstance(block, Table):
            parts += _tables(block, text_table)
        else:
            items = [_wrapped(item.replace("`", ""), "  ") for item in block.items]
            parts.append("\n".join([f"{block.title}:", *items]))
    return "\n\n".join(parts)


def _tables(table: Table, write) -> list[str]:
    return split_table(
        write,
        table.rows,
        table.headers,
        align=table.align,
        keys=table.keys,
        groups=table.groups,
        width=WIDTH,
    )


def _wrapped(text: str, first: str = "") -> str:
    return textwrap.fill(
        text,
        _TERMINAL,
        initial_indent=first,
        subsequent_indent=" " * len(first) if first.strip() else first * 2,
        break_long_words=False,
        break_on_hyphens=False,
    )
