"""One self-contained HTML page about finished runs: WER, claims, curves, errors, chunks, speed.

The page asks for nothing over the network, and its Content-Security-Policy says so to the browser. Needs
Jinja2 and matplotlib.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hmamba_asr.evaluation.compare import ALPHA
from hmamba_asr.evaluation.finished_run import load_run
from hmamba_asr.evaluation.operations import COUNTED_SECONDS, COUNTED_TOKENS
from hmamba_asr.evaluation.speed import BENCHMARK_KIND, read_figures
from hmamba_asr.report import charts, claims
from hmamba_asr.report.headline import summarise
from hmamba_asr.report.media import inline_svg, page_style
from hmamba_asr.report.sections import Sections
from hmamba_asr.report.seeds import group_runs
from hmamba_asr.system.files import write_atomically

TEMPLATE = "report.html.j2"


def write_report(
    output: str | Path,
    folders: Sequence[str | Path],
    *,
    title: str,
    alignments: str | Path | None = None,
    efficiency: str | Path | None = None,
) -> None:
    """Write the page about some runs.

    What a run lacks (log, transcripts, recordings, chunks) is left out, and the page says so.

    Parameters
    ----------
    output
        The HTML file.
    folders
        Output folders of runs. Runs that differ only in the seed are one model. The first model is the one
        that others are compared with.
    title
        The page's title.
    alignments
        A folder of TextGrids of test utterances.
    efficiency
        What scripts/benchmarks/efficiency.py wrote.

    Raises
    ------
    FileNotFoundError
        If a folder holds no evaluated run, or an alignment or file is missing.
    ValueError
        If a file of a run is not valid, or a run is named twice.
    """
    models = group_runs([load_run(folder) for folder in folders])
    benchmark = read_figures(efficiency, BENCHMARK_KIND) if efficiency else None
    with page_style():
        sections = Sections(models, alignments)
        chunking = sections.chunking()
        found = sections.claims({section["label"]: section["agreement"] for section in chunking})
        html = _render(
            title=title,
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            alpha=ALPHA,
            models=models,
            headline=summarise(models, found, sections.test),
            columns=sections.columns,
            wers=[sections.wer_row(model) for model in models],
            tests=sections.test_rows(),
            seeds=sections.seed_rows(),
            claims=found,
            claim_rules=_rules(),
            training=sections.training_figures(),
            splits=[sections.word_errors(split) for split in sections.splits],
            chunking=[section for section in chunking if section["pictures"] or section["agreement"]],
            durations=sections.durations_figure(),
            speed=[sections.speed_row(model) for model in models],
            operations_of=(COUNTED_SECONDS, COUNTED_TOKENS),
            speed_figure=sections.speed_figure(),
            measured=sections.speed_figures,
            benchmark=benchmark,
            benchmark_figures=_benchmark_figures(benchmark["encoders"]) if benchmark else None,
            provenance=[sections.provenance(run) for model in models for run in model.runs],
            notes=list(dict.fromkeys(sections.notes)),
        )
    with write_atomically(output) as stream:
        stream.write(html)


def _rules() -> list[str | list[str]]:
    """Return the rules of the claims as paragraphs and lists, in HTML."""
    from markupsafe import Markup, escape

    def html(text: str) -> str:
        return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(" ".join(text.split())))))

    _, *blocks = inspect.cleandoc(claims.__doc__ or "").split("\n\n")
    return [
        [html(item) for item in block[2:].split("\n- ")] if block.startswith("- ") else html(block)
        for block in blocks
    ]


def _benchmark_figures(encoders: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    alt = "of each encoder against the length of the utterance; the table below has the figures"
    return [
        inline_svg(charts.draw_encoder_times(encoders), name="encoder-times", alt=f"Time {alt}"),
        inline_svg(charts.draw_encoder_memory(encoders), name="encoder-memory", alt=f"Memory {alt}"),
    ]


def _render(**context: object) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(TEMPLATE).render(context)
