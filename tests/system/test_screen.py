"""What reaches the screen, and how the progress of a loop is shown."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from hmamba_asr.system.screen import Progress, ScreenFilter, ScreenFormatter, say, say_fact


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch):
    """The clock, in seconds, to be set by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_facts_stand_in_two_columns(said):
    say_fact("data", "train 0.62 h")
    say_fact("evaluation", "test 100 % of it")
    say("a line")
    assert said() == ["data        train 0.62 h", "evaluation  test 100 % of it", "a line"]


def test_the_screen_gets_what_is_said_and_warnings_of_anyone():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(ScreenFilter())
    handler.setFormatter(ScreenFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        say("for the user")
        for name in ("hmamba_asr.data.librispeech", "speechbrain.core"):
            for write in (logging.getLogger(name).info, logging.getLogger(name).warning):
                write("of %s", name)
        logging.getLogger("speechbrain.core").error("broken")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert stream.getvalue().splitlines() == [
        "for the user",
        "warning: of hmamba_asr.data.librispeech",
        "warning (speechbrain.core): of speechbrain.core",
        "error (speechbrain.core): broken",
    ]


def test_without_a_terminal_there_is_a_line_every_few_minutes(seconds, said, monkeypatch):
    """None at the end, where the loop's own outcome follows."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress("epoch 3", 1200, "batches", done=300, every=300) as progress:
        for _ in range(900):
            seconds[0] += 1
            progress.advance(note="loss 1.5")
    assert said() == [
        "epoch 3: 600 of 1,200 batches, 10 min 00 s left, loss 1.5",
        "epoch 3: 900 of 1,200 batches, 5 min 00 s left, loss 1.5",
    ]
    assert sys.stderr.getvalue() == ""


def test_a_short_loop_says_nothing(seconds, said, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress("reading", 100, "files") as progress:
        for _ in range(100):
            seconds[0] += 1
            progress.advance()
    assert said() == [] and sys.stderr.getvalue() == ""


def test_a_terminal_has_a_bar_that_is_wiped_out(said, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("reading", 4, "files", every=0) as progress:
        progress.advance(3, "loss 1.5")
        progress._bar.refresh()
    shown = sys.stderr.getvalue().split("\r")
    assert any(part.startswith("reading  75% |") and "3/4 files" in part for part in shown)
    assert any(part.endswith(" left, loss 1.5") for part in shown)
    assert shown[-1] == "" and shown[-2].isspace()  # the line is blank, and the cursor at its start
    assert said() == []


def test_a_terminal_without_a_bar_has_lines(seconds, said, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("reading", 4, "files", bar=False, every=10) as progress:
        seconds[0] = 20
        progress.advance()
    assert said() == ["reading: 1 of 4 files, 1 min 00 s left"] and sys.stderr.getvalue() == ""
