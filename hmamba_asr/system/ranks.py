"""The processes that share the work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """The place of this process among the processes that share the work.

    Attributes
    ----------
    rank
        The number of this process, from 0. Rank 0 is the main process.
    world_size
        The number of processes.
    """

    rank: int = 0
    world_size: int = 1
