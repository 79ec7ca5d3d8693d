"""Sums by name, joined over batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any


def merge_sums(into: MutableMapping[str, Any], more: Mapping[str, float]) -> None:
    """Add `more` to `into`. Of a name that ends in _min or _max, keep the smaller or larger value instead."""
    for name, value in more.items():
        if name.endswith(("_min", "_max")):
            smaller_or_larger = min if name.endswith("_min") else max
            into[name] = smaller_or_larger(into.get(name, value), value)
        else:
            into[name] = into.get(name, 0) + value
