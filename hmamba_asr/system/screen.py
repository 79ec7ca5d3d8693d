"""What a long command says on the screen.

Everything is logged, and the log.txt of a run holds it all. The screen has little of it: what is said through
`say` and `say_fact`, the progress of long loops, and warnings of anyone. The classes at the end make it so;
``training/logging.yaml`` names them.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from hmamba_asr.system.durations import format_duration

if TYPE_CHECKING:
    from typing_extensions import Self

_PACKAGE = "hmamba_asr"
_screen = logging.getLogger(f"{_PACKAGE}.screen")
_LABEL_WIDTH = 12  # of the longest label, "evaluation", with its space
_EVERY = 300.0  # seconds
_BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"


def say(text: str) -> None:
    """Print a line, on the screen and in the log."""
    _screen.info("%s", text)


def say_fact(label: str, text: str) -> None:
    """Print a line in two columns: what it is about, and what there is to know."""
    say(f"{label:<{_LABEL_WIDTH}}{text}")


class Progress:
    """How far a long loop is: a bar on a terminal, elsewhere a line every few minutes.

    The bar goes to stderr and is wiped out at the end. The lines go through `say`.

    Parameters
    ----------
    title
        What the loop does.
    total
        How many things it has to do.
    unit
        What these things are, in the plural.
    done
        How many of them were done before.
    bar
        Whether a terminal may have a bar. Without one it gets the lines.
    every
        Seconds from one line to the next.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        bar: bool = True,
        every: float = _EVERY,
    ) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.done = self._first = done
        self._started = self._spoke = time.monotonic()
        self._bar: tqdm | None = None
        if bar and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=title,
                unit=unit,
                bar_format=_BAR,
                leave=False,
                dynamic_ncols=True,
            )

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count what was done since the last call; ``note`` follows the figures."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._spoke >= self.every and self.done < self.total:
            self._spoke = now
            left = (now - self._started) / (self.done - self._first) * (self.total - self.done)
            line = f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {format_duration(left)} left"
            say(f"{line}, {note}" if note else line)

    def close(self) -> None:
        """Wipe the bar out."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ScreenFilter(logging.Filter):
    """Admits what is said to the user, and warnings and errors of anyone."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the screen gets this record."""
        return record.name == _screen.name or record.levelno >= logging.WARNING


class ScreenFormatter(logging.Formatter):
    """Writes the message alone. A warning or error says that it is one, and which other package it is of."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        source = "" if record.name.partition(".")[0] == _PACKAGE else f" ({record.name})"
        return f"{record.levelname.lower()}{source}: {text}"
