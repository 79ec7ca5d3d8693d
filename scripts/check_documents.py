#!/usr/bin/env python3
"""Check that every figure in README.md and TRAINING_SUMMARY.md is what a kept file says.

    python scripts/check_documents.py [DOCUMENT ...] [--list]

scripts/figures/README.txt has a line for each figure of README.md, under the headings and in the order of
the text. A longer line goes on in the next one, indented:

    # Does it work?
    51.57 ± 0.37 = wer("hmamba_mini_e36", "test-clean-mini", "beam")
    1.22 (1.18 to 1.53) = bench("chunking_epyc", "cases", "15 s, 8+4, N=2, chunks", "beam")
    1.3% = 100 * (wer("hmamba_mini_e36", "test-clean-mini", "beam")
        / wer("conmamba_mini_e36", "test-clean-mini", "beam") - 1)

The same lines may stand in the document, in a comment <!-- sources ... --> below the paragraph or table.

The value on the right must round to the figure on the left, whose unit may be left out. Results are means
over the kept seeds, ± their standard deviation. seed=1234 picks one seed. The right side may hold numbers,
+ - * /, parentheses, and:

    wer(NAME, SPLIT, SEARCH)       percent, from recipes/librispeech/results/NAME[.SEED].results.json
    kept(NAME, SPLIT)              chunks / frames
    parameters(NAME), seeds(NAME)  millions of parameters, number of kept seeds
    rtf(NAME, SEARCH)              real-time factor over all test sets
    train_minutes(NAME), train_hours(NAME), data_hours(NAME)   time of training; hours of audio in an epoch
    result(NAME, KEY, ...)         any number of these files
    bench(FILE, KEY, ...)          of scripts/benchmarks/results/FILE.json
    efficiency(FILE, KEY, ...)     of recipes/librispeech/results/FILE.efficiency.json
    hparam(YAML, KEY)              of hparams/YAML.yaml; also "conmamba_mini+hmamba", "chunker.target_ratio"
    text(FILE, REGEX)              what the group of REGEX finds in a file of the repository, no Markdown
    cited("WHO, WHERE")            from the literature; the block needs a link

Figures are numbers with a decimal point or a unit, and cells of a table that hold only numbers. Other
numbers (12 blocks, seed 1234) may have a source. Not checked are code, link targets, dates, versions, names,
numbers of sections and the generated tables. A commit's hash is an error: readers would have to check it out.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeAlias

from document_sources import ROOT, Source, SourceError, Value, evaluate, read_sources
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from hmamba_asr.report.summary import BEGIN_MARKER, END_MARKER

FIGURES = ROOT / "scripts" / "figures"
DOCUMENTS = (ROOT / "README.md", ROOT / "TRAINING_SUMMARY.md")

NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
UNIT = (
    r"(?:[\s-]?(?:%|(?:percent|times|points?|hours?|h|minutes?|min|seconds?|s|ms|[µu]s|days?|audio-s/s)\b"
    r"|(?:[kKMGT]i?B|million|M parameters|k?Hz|dB)\b)|[xkMB]\b|×(?!\s?\w))"
)
# A number that is joined to a word (H200, clean-100, 8+4, arXiv:2507) is part of a name.
FIGURE = re.compile(
    rf"(?<![\w.:/@#+])(?<![^\W\d]-)(?P<number>{NUMBER})(?:\s*±\s*(?P<spread>{NUMBER}))?(?P<unit>{UNIT})?"
    rf"(?:\s\((?P<low>{NUMBER}){UNIT}? to (?P<high>{NUMBER}){UNIT}?\))?(?!\.?\w)"
)
# Numbers that measure nothing.
NAMES = re.compile(
    r"\b\d{4}-\d\d-\d\d\b"  # a date
    r"|\bv?\d+(?:\.\d+){2,}"  # a version in three parts
    r"|\b(?:[Vv]ersions?|Python|PyTorch|torch|SpeechBrain|Triton|CUDA|gcc|Ubuntu|Apache|arXiv)\s(?:(?:≥|>=)\s?)?"
    r"\d+(?:\.\d+)*(?:(?:–|-|, | to | and | or )\d+\.\d+)*"
    r"|(?:\b(?:[Ss]ection|[Tt]able|[Ff]igure|[Ee]quation|[Cc]hapter|[Aa]ppendix)s?|§)\s*\d+(?:\.\d+)*"
    r"|\b[A-Z]+\d+\w*\s\d+\s?GB\b"  # a GPU with its memory
)
HASH = re.compile(r"(?<![\w#])(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}(?!\w)")


@dataclass(frozen=True)
class Text:
    """A piece of text that a reader sees, from one line of the document on."""

    line: int
    words: str
    is_cell: bool = False
    has_link: bool = False
    is_heading: bool = False


@dataclass(frozen=True)
class Figure:
    """A number of the text, with its spread or range, as `key`; `required` if it needs a source."""

    line: int
    shown: str
    key: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Fault:
    """What is wrong with a figure."""

    line: int
    figure: str
    what: str
    listed: bool = False  # the line is that of the list of sources


# The texts of a paragraph, list or table, and the sources below it.
Block: TypeAlias = tuple[list[Text], list[Source]]

# ---- reading a document ----


class _Html(HTMLParser):
    """The words that a reader of HTML sees, those of its images, and its comments; each with its line."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[tuple[int, str]] = []
        self.comments: list[tuple[int, str]] = []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.getpos()[0], data))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.words.extend((self.getpos()[0], value) for name, value in attrs if name == "alt" and value)

    def handle_comment(self, data: str) -> None:
        self.comments.append((self.getpos()[0], data))


def read_blocks(document: str, listed: str = "") -> list[Block]:
    """Divide a Markdown document into blocks, each with its sources.

    These stand in the comment below a block, or in ``listed`` under the heading of its section.
    """
    generated = re.compile(f"{re.escape(BEGIN_MARKER)}.*?{re.escape(END_MARKER)}", re.DOTALL)
    document = generated.sub(lambda found: "\n" * found[0].count("\n"), document)
    root = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(document))
    blocks: list[Block] = []
    sections = _list_sources(listed)
    rest: list[Block] = [([], [])]
    for piece in _gather(root, blocks):
        if piece.is_heading:
            rest.append(([], sections.pop(piece.words, [])))
        rest[-1][0].append(piece)
    return [*blocks, *rest, *(([], sources) for sources in sections.values())]


def _list_sources(listed: str) -> dict[str, list[Source]]:
    """Read a list of sources: those of each heading."""
    sections: dict[str, list[Source]] = {}
    parts = re.split(r"^# (.+)$", listed, flags=re.MULTILINE)
    line = parts[0].count("\n") + 1
    for heading, lines in zip(parts[1::2], parts[2::2], strict=True):
        sources = read_sources(lines, line)
        sections[heading] = [dataclasses.replace(source, listed=True) for source in sources]
        line += lines.count("\n")
    return sections


def _gather(node: SyntaxTreeNode, blocks: list[Block]) -> list[Text]:
    """Add the blocks below ``node`` that have sources, and return the texts that have none."""
    without: list[Text] = []
    previous: list[Text] = []  # what a comment would be about
    for child in node.children:
        if child.type == "html_block":
            assert child.map is not None
            html = _Html(child.content)
            if html.words:
                without += previous
                previous = [Text(child.map[0] + below, words) for below, words in html.words]
            for below, comment in html.comments:
                if comment.split(maxsplit=1)[:1] == ["sources"]:
                    blocks.append((previous, read_sources(comment, child.map[0] + below)))
                    previous = []
            continue
        without += previous
        previous = [_visible(child)] if child.type == "inline" else _gather(child, blocks)
    return without + previous


def _visible(inline: SyntaxTreeNode) -> Text:
    """Join what a reader sees of a paragraph, a heading or a cell. Code leaves a gap, unless it is a hash."""
    words = ""
    has_link = False
    autolink = False
    for token in inline.to_tokens()[0].children or []:
        if token.type == "link_open":
            autolink = token.info == "auto"
            has_link |= str(token.attrGet("href")).startswith("http")
        elif token.type == "link_close":
            autolink = False
        elif token.type in ("softbreak", "hardbreak"):
            words += "\n"
        elif token.type == "html_inline":
            words += " ".join(alt for _, alt in _Html(token.content).words)
        elif token.type == "code_inline":
            words += token.content if HASH.fullmatch(token.content) else "`"
        elif not autolink:
            words += token.content
    assert inline.map is not None and inline.parent is not None
    if inline.parent.type == "heading":
        words = re.sub(r"^\d+(\.\d+)*\.?\s", "", words)  # its own number
    kind = inline.parent.type
    return Text(inline.map[0] + 1, words, kind in ("td", "th"), has_link, kind == "heading")


def find_figures(piece: Text) -> list[Figure]:
    """Find the numbers of a text that a source can be about."""
    words = NAMES.sub(lambda found: "`" * len(found[0]), piece.words)
    only_numbers = piece.is_cell and not re.search(r"\w|`", FIGURE.sub("", words))
    figures: list[Figure] = []
    end = 0
    for match in FIGURE.finditer(words):
        measured = "." in match["number"] or any(match[name] for name in ("spread", "unit", "low"))
        if measured and figures and words[end : match.start()] in (" to ", "–", "-"):
            figures[-1] = dataclasses.replace(figures[-1], required=True)  # 4 to 5 h
        end = match.end()
        line = piece.line + words[: match.start()].count("\n")
        figures.append(Figure(line, " ".join(match[0].split()), _key(match), measured or only_numbers))
    return figures


def _key(match: re.Match[str]) -> tuple[str, ...]:
    """The numbers of a figure, without its unit."""
    numbers = (match[name] for name in ("number", "spread", "low", "high"))
    return tuple(number.replace(",", "").replace("−", "-") for number in numbers if number)


# ---- checking it ----


def check_document(document: str, listed: str = "") -> tuple[list[tuple[Source, str]], list[Fault]]:
    """Check a Markdown document; return its sources with their values in words, and all that is wrong."""
    values: list[tuple[Source, str]] = []
    faults: list[Fault] = []
    for texts, sources in read_blocks(document, listed):
        for piece in texts:
            for found in HASH.finditer(piece.words):
                line = piece.line + piece.words[: found.start()].count("\n")
                faults.append(Fault(line, found[0], "a commit, which a reader would have to check out"))
        faults += _unpaired(texts, sources)
        for source in sources:
            try:
                values.append((source, _check(source, any(piece.has_link for piece in texts))))
            except SourceError as error:
                faults.append(Fault(source.line, source.left, str(error), source.listed))
    return sorted(values, key=lambda item: item[0].line), sorted(faults, key=lambda fault: fault.line)


def _unpaired(texts: list[Text], sources: list[Source]) -> Iterator[Fault]:
    """Yield the figures without a source and the sources without a figure. Both stand in the same order."""
    figures = [figure for piece in texts for figure in find_figures(piece)]
    required = [figure for figure in figures if figure.required]
    optional = {figure.key for figure in figures if not figure.required}
    parsed = [(source, FIGURE.fullmatch(source.left)) for source in sources]
    keys = [_key(match) if match else (source.left,) for source, match in parsed]
    matcher = difflib.SequenceMatcher(None, [figure.key for figure in required], keys, autojunk=False)
    for same, start, end, first, last in matcher.get_opcodes():
        if same == "equal":
            continue
        for figure in required[start:end]:
            elsewhere = " at its place: sources stand in the order of the text" if figure.key in keys else ""
            yield Fault(figure.line, figure.shown, f"no source{elsewhere}")
        for source, key in zip(sources[first:last], keys[first:last], strict=True):
            if key not in optional:
                what = "the source names no figure of its block or section at its place"
                yield Fault(source.line, source.left, what, source.listed)


def _check(source: Source, has_link: bool) -> str:
    """Return the value of a source in words; refuse one that does not round to its figure."""
    match = FIGURE.fullmatch(source.left)
    if not match:
        raise SourceError("no figure; a line is FIGURE = SOURCE")
    value = evaluate(source.right)
    if not isinstance(value, Value):
        if not has_link:
            raise SourceError("cited, and the block has no link")
        return "cited"
    key = _key(match)
    pairs = list(zip(key, value.numbers, strict=False))  # a spread need not be shown
    if 1 < len(key) != len(value.numbers) or any(_differs(shown, number) for shown, number in pairs):
        raise SourceError(f"the source gives {value.in_words(_decimals(key[0]))}")
    return value.in_words(_decimals(key[0]) + 2)


def _differs(shown: str, number: float) -> bool:
    return abs(float(shown) - number) > 0.5 * 10 ** -_decimals(shown) + 1e-9


def _decimals(shown: str) -> int:
    return len(shown.partition(".")[2])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", nargs="*", type=Path, default=DOCUMENTS, metavar="DOCUMENT")
    parser.add_argument("--list", action="store_true", help="print every figure with its value and source")
    options = parser.parse_args(arguments)
    wrong = 0
    for path in options.documents:
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        if not path.is_file():
            parser.error(f"there is no {path}.")
        listed = FIGURES / f"{path.stem}.txt"
        has_list = path.resolve().parent == ROOT and listed.is_file()
        sources = listed.read_text(encoding="utf-8") if has_list else ""
        values, faults = check_document(path.read_text(encoding="utf-8"), sources)
        places = {False: name, True: listed.relative_to(ROOT)}
        for source, value in values if options.list else []:
            print(f"{places[source.listed]}:{source.line}: {source.left} = {value} = {source.right}")
        for fault in faults:
            print(f"{places[fault.listed]}:{fault.line}: {fault.figure}: {fault.what}", file=sys.stderr)
        print(f"{name}: {len(values)} figures are what their sources say; {len(faults)} are not")
        wrong += len(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
