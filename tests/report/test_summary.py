"""The Markdown file that holds the table of results, and the script that keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmamba_asr.evaluation.results import load_results, write_results
from hmamba_asr.report.results_table import render_table
from hmamba_asr.report.summary import BEGIN_MARKER, END_MARKER, update_summary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def summary(tmp_path):
    path = tmp_path / "SUMMARY.md"
    path.write_text(f"# Title\n\n{BEGIN_MARKER}\nstale\n{END_MARKER}\n\nMore text.\n")
    return path


def test_only_the_text_between_the_markers_is_replaced(summary, golden_results):
    update_summary(summary, golden_results, expected=["hmamba"])
    table = render_table(golden_results, ["hmamba"])
    assert summary.read_text() == f"# Title\n\n{BEGIN_MARKER}\n\n{table}\n\n{END_MARKER}\n\nMore text.\n"
    update_summary(summary, golden_results, check=True, expected=["hmamba"])
    assert len(list(summary.parent.iterdir())) == 1


def test_check_fails_when_stale_and_changes_nothing(summary, golden_results):
    update_summary(summary, golden_results)
    before = summary.read_text()
    with pytest.raises(ValueError, match=r"SUMMARY\.md: the table is not up to date"):
        update_summary(summary, golden_results[:1], check=True)
    assert summary.read_text() == before


@pytest.mark.parametrize(
    "text",
    ["", f"{BEGIN_MARKER}\n", f"{END_MARKER}\n{BEGIN_MARKER}\n", f"{BEGIN_MARKER}\n{END_MARKER}\n" * 2],
)
def test_a_file_without_one_pair_of_markers_is_refused(summary, text):
    summary.write_text(text)
    with pytest.raises(ValueError, match=r"SUMMARY\.md: needs one line"):
        update_summary(summary, [])
    assert summary.read_text() == text


def _summarize(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "summarize.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_the_script_updates_checks_and_complains(tmp_path, summary, golden_results, change):
    folder = tmp_path / "results"
    for result in golden_results:
        write_results(folder / f"{result.name}.results.json", result)
    write_results(folder / "demo.5.results.json", change(golden_results[2], seed=5))
    stale = _summarize(folder, "--summary", summary, "--check")
    assert stale.returncode == 1 and "not up to date" in stale.stderr
    done = _summarize(folder, "--summary", summary)
    assert done.returncode == 0, done.stderr
    expected = [path.stem for path in (ROOT / "hparams").glob("*.yaml")]
    assert done.stdout.strip() == render_table(load_results([folder]), expected)
    assert done.stdout.strip() in summary.read_text() and "| demo (2 seeds) " in done.stdout
    assert _summarize(folder, "--summary", summary, "--check").returncode == 0
    (folder / "demo.results.json").write_text("{")
    broken = _summarize(folder, "--summary", summary)
    assert broken.returncode == 1 and "demo.results.json: not readable as JSON" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_the_summary_of_this_repository_is_up_to_date():
    done = _summarize("--check")
    assert done.returncode == 0, done.stderr
