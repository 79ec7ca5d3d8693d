"""The Markdown file that holds the tables of results, and the script that prints and keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hmamba_asr.evaluation.results import Results, load_files, write_results
from hmamba_asr.report.blocks import to_markdown, to_text
from hmamba_asr.report.results_table import describe_results
from hmamba_asr.report.summary import BEGIN_MARKER, END_MARKER, check_summary, write_summary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def summary(tmp_path):
    path = tmp_path / "SUMMARY.md"
    path.write_text(f"# Title\n\n{BEGIN_MARKER}\nstale\n{END_MARKER}\n\n- `text`: stays.\n")
    return path


def _kept(results: Sequence[Results]) -> dict[Path, Results]:
    return {Path(f"{result.name}.results.json"): result for result in results}


def test_only_the_text_between_the_markers_is_replaced(summary, golden_results):
    results = _kept(golden_results)
    write_summary(summary, results, expected=["hmamba"])
    tables = to_markdown(describe_results(results, ["hmamba"]))
    expected = f"# Title\n\n{BEGIN_MARKER}\n\n{tables}\n\n{END_MARKER}\n\n- `text`: stays.\n"
    assert summary.read_text() == expected
    check_summary(summary, results, expected=["hmamba"])
    write_summary(summary, results, expected=["hmamba"])
    assert summary.read_text() == expected
    assert len(list(summary.parent.iterdir())) == 1


def test_check_fails_when_stale_and_changes_nothing(summary, golden_results):
    write_summary(summary, _kept(golden_results))
    before = summary.read_text()
    with pytest.raises(ValueError, match=r"SUMMARY\.md: the tables are not up to date"):
        check_summary(summary, _kept(golden_results[:1]))
    assert summary.read_text() == before


def test_a_row_that_the_file_has_is_not_lost(summary, golden_results):
    write_summary(summary, _kept(golden_results))
    before = summary.read_text()
    with pytest.raises(ValueError, match="has rows whose results were not given: conformer, demo. Give "):
        write_summary(summary, _kept(golden_results[:1]))
    with pytest.raises(ValueError, match="were not given: demo. Give "):
        write_summary(summary, _kept(golden_results[:1]), drop=["conformer"])
    assert summary.read_text() == before
    write_summary(summary, _kept(golden_results[:1]), drop=["conformer", "demo"])
    check_summary(summary, _kept(golden_results[:1]))


def test_of_many_lost_rows_some_are_named(summary, make_results):
    write_summary(summary, _kept([make_results(f"a{index:02}", {}) for index in range(20)]))
    with pytest.raises(ValueError, match="a06, a07 and 12 more. Give "):
        write_summary(summary, {})


@pytest.mark.parametrize(
    "text",
    ["", f"{BEGIN_MARKER}\n", f"{END_MARKER}\n{BEGIN_MARKER}\n", f"{BEGIN_MARKER}\n{END_MARKER}\n" * 2],
)
def test_a_file_without_one_pair_of_markers_is_refused(summary, text):
    summary.write_text(text)
    for act in (write_summary, check_summary):
        with pytest.raises(ValueError, match=r"SUMMARY\.md: needs one line"):
            act(summary, {})
    assert summary.read_text() == text


def _summarize(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "summarize.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_the_script_prints_writes_checks_and_complains(tmp_path, summary, golden_results, change):
    folder = tmp_path / "results"
    for result in golden_results:
        write_results(folder / f"{result.name}.results.json", result)
    write_results(folder / "demo.5.results.json", change(golden_results[2], seed=5))
    before = summary.read_text()
    printed = _summarize(folder)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.strip() == to_text(describe_results(load_files([folder])))
    assert max(map(len, printed.stdout.splitlines())) <= 120
    stale = _summarize(folder, "--check", summary)
    assert stale.returncode == 1 and "not up to date" in stale.stderr
    assert summary.read_text() == before
    done = _summarize(folder, "--write", summary)
    assert done.returncode == 0 and str(summary) in done.stdout, done.stderr
    assert to_markdown(describe_results(load_files([folder]))) in summary.read_text()
    assert _summarize(folder, "--check", summary).returncode == 0
    only = folder / "conmamba.results.json"
    refused = _summarize(only, "--write", summary)
    assert refused.returncode == 1 and "were not given: conformer, demo." in refused.stderr
    dropped = _summarize(only, "--write", summary, "--drop", "conformer", "demo")
    assert dropped.returncode == 0 and "`demo`" not in summary.read_text(), dropped.stderr
    assert _summarize(only, "--drop", "demo").returncode == 2
    (folder / "demo.results.json").write_text("{")
    broken = _summarize(folder)
    assert broken.returncode == 1 and "demo.results.json: not readable as JSON" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_the_summary_of_this_repository_is_up_to_date():
    done = _summarize("--check")
    assert done.returncode == 0, done.stderr
    expected = [path.stem for path in (ROOT / "hparams").glob("*.yaml")]
    text = (ROOT / "TRAINING_SUMMARY.md").read_text()
    assert expected and all(f"`{name}`" in text or f"| {name} " in text for name in expected)
