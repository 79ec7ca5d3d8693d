"""Durations for people."""

from __future__ import annotations


def format_duration(seconds: float | None) -> str:
    """Write a duration with its two largest units: '2 h 05 min', '3 min 20 s', '45 s'.

    Parameters
    ----------
    seconds
        The duration in seconds. None, one that was not measured, gives an empty text.
    """
    if seconds is None:
        return ""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
