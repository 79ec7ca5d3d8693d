"""What train.py prints at its end: every score, where files lie, commands that the program accepts."""

from __future__ import annotations

import argparse
import shlex

from hmamba_asr.cli import COMMANDS
from hmamba_asr.report.run_text import describe_run
from hmamba_asr.system.run_layout import RunLayout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    commands = parser.add_subparsers(required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def test_each_score_has_a_row_and_no_line_is_too_long(make_results, make_entry):
    entry = make_entry(words=200, sentences=20, errors=9, audio=100.0, processing=0.5)
    entry["wer"]["interval_95"] = [2.5, 6.25]
    chunked = entry | {"stages": [{"kept": 0.5}, {"kept": 0.25}]}
    unmeasured = make_entry(words=200, sentences=20, errors=1, audio=None)
    results = make_results(
        "conmamba_mini+hmamba", {"test-clean": {"greedy": chunked, "beam": unmeasured}}, seed=7
    )
    text = describe_run(results, "results/a run")
    lines = text.splitlines()
    assert lines[1:3] == [
        "conmamba_mini+hmamba, seed 7, 14.1M parameters",
        "Trained on train-clean-100 for 70 epochs in 4 h 32 min, 1543 s of audio a second.",
    ]
    header, _, greedy, beam = lines[4:8]
    assert header.split()[:4] == ["test", "set", "search", "WER"]
    assert greedy.split() == [
        *("test-clean", "greedy", "4.50", "2.50", "to", "6.25", "0.90", "45.0"),
        *("0.50", "×", "0.25", "0.0050"),
    ]
    assert beam.split() == ["test-clean", "beam", "0.50", "0.10", "5.0"]
    assert max(map(len, lines)) <= 120


def test_files_and_next_commands_are_named(make_results, make_entry):
    scored = {"dev": {"beam": make_entry(words=10, sentences=2, errors=1, audio=None)}}
    folder = "results/a run"
    lines = describe_run(make_results("a", scored, training=None), folder).splitlines()
    layout = RunLayout(folder)
    assert f"Results:      {layout.results}" in lines
    named = str(layout.transcripts("SPLIT", "SEARCH") / "wer.txt")
    assert f"Word errors:  {named}" in lines
    commands = [shlex.split(line.partition("hmamba-asr ")[2]) for line in lines if "hmamba-asr " in line]
    assert [words[0] for words in commands] == ["transcribe", "report", "compare"]
    for words in commands:
        assert folder in words
        _parser().parse_args(words)


def test_a_run_without_scores_says_so(make_results):
    assert "No test set was evaluated." in describe_run(make_results("a", {}), "r").splitlines()
