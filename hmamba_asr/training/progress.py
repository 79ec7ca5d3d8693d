"""How far training is, within an epoch and as a whole."""

from __future__ import annotations

import math
import time

from hmamba_asr.system.durations import format_duration
from hmamba_asr.system.screen import Progress


class TrainingProgress:
    """Shows the batches of an epoch as they are done, and estimates how long the other epochs will take.

    Places are counted in epochs: 2.5 is the middle of the third.

    Parameters
    ----------
    place
        Where this process begins.
    epochs
        Number of epochs in all.
    bar
        Whether a terminal may have a progress bar.
    """

    def __init__(self, place: float, epochs: int, *, bar: bool) -> None:
        self._first, self._epochs, self._shows_bar = place, epochs, bar
        self._started = time.monotonic()
        self._stage: Progress | None = None

    def begin(self, title: str, batches: int, done: int = 0) -> None:
        """Begin with the batches of another stage, of which some may be done."""
        self.end()
        self._stage = Progress(title, batches, "batches", done=done, bar=self._shows_bar)

    def advance(self, place: float, loss: float = math.nan) -> None:
        """Count one batch, after which training is at ``place``; say the loss once it is measured."""
        if self._stage is not None:
            left = self.time_left(place)
            notes = ["" if math.isnan(loss) else f"loss {loss:.3f}", f"all epochs: {left}" if left else ""]
            self._stage.advance(note=", ".join(filter(None, notes)))

    def end(self) -> None:
        """End the stage."""
        if self._stage is not None:
            self._stage.close()

    def time_left(self, place: float) -> str:
        """Say how long the epochs after ``place`` will take: '3 min 20 s left'.

        Nothing is said after the last epoch, nor before a hundredth of one epoch is done.
        """
        done = place - self._first
        if done < 0.01 or place >= self._epochs:
            return ""
        seconds = (time.monotonic() - self._started) / done * (self._epochs - place)
        return f"{format_duration(seconds)} left"
