"""Durations for people."""

from __future__ import annotations


def format_duration(seconds: float | None) -> str:
    """Seconds as the two largest units, for people: '2 h 05 min', '3 min 20 s'; empty for None."""
    if seconds is None:
        return ""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
