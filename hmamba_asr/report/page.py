"""One self-contained HTML page about finished runs: WER, claims, curves, errors, chunks, speed.

The page asks for nothing over the network, and its Content-Security-Policy says so to the browser. Needs
Jinja2 and matplotlib.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from hmamba_asr.evaluation.compare import ALPHA
from hmamba_asr.evaluation.finished_run import FinishedRun, load_run
from hmamba_asr.evaluation.operations import COUNTED_SECONDS, COUNTED_TOKENS
from hmamba_asr.evaluation.speed import BENCHMARK_KIND, read_figures
from hmamba_asr.report import charts, claims
from hmamba_asr.report.media import figure_uri
from hmamba_asr.report.results_table import model_name
from hmamba_asr.report.sections import Sections
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
        Output folders of runs. The other runs are tested against the first one.
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
    runs = label_runs([load_run(folder) for folder in folders])
    benchmark = read_figures(efficiency, BENCHMARK_KIND) if efficiency else None
    columns = list(dict.fromkeys((split, search) for run in runs for split, search, _ in run.scored()))
    sections = Sections(runs, alignments)
    chunking = sections.chunking()
    html = _render(
        title=title,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        alpha=ALPHA,
        columns=columns,
        summary=[sections.summary_row(run, columns) for run in runs],
        training=sections.training_figure(),
        splits=[sections.word_errors(split) for split in dict.fromkeys(split for split, _ in columns)],
        chunking=chunking,
        claims=sections.claims({section["label"]: section["agreement"] for section in chunking}),
        claim_rules=inspect.cleandoc(claims.__doc__ or "").split("\n\n")[1:],
        durations=sections.durations_figure(),
        speed=[sections.speed_row(run) for run in runs],
        operations_of=(COUNTED_SECONDS, COUNTED_TOKENS),
        speed_figure=sections.speed_figure(),
        measured=sections.speed_figures,
        benchmark=benchmark,
        benchmark_figure=figure_uri(charts.draw_efficiency(benchmark["encoders"])) if benchmark else None,
        provenance=[sections.provenance(run) for run in runs],
        notes=list(dict.fromkeys(sections.notes)),
    )
    with write_atomically(output) as stream:
        stream.write(html)


def label_runs(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Give each run a label of its own: the YAML's name, and as far as needed overrides, seed and folder.

    Raises
    ------
    ValueError
        If a run is named twice.
    """
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("a run is named twice; give each output folder once.")
    labels = [run.results.name for run in runs]
    longer: list[Callable[[FinishedRun, str], str]] = [
        lambda run, _: model_name(run.results),
        lambda run, label: f"{label}, seed {run.results.seed}",
        lambda run, label: f"{label}, {run.folder.name}",
    ]
    for lengthen in longer:
        repeated = {label for label in labels if labels.count(label) > 1}
        labels = [
            lengthen(run, label) if label in repeated else label
            for run, label in zip(runs, labels, strict=True)
        ]
    return [FinishedRun(run.folder, run.results, label) for run, label in zip(runs, labels, strict=True)]


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
