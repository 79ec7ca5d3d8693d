"""Sums of batches and ranks are joined by name."""

from __future__ import annotations

from collections import Counter

from hmamba_asr.system.sums import merge_sums


def test_sums_add_and_extremes_stay():
    into: Counter = Counter()
    merge_sums(into, {"loss": 1.5, "kept_min": 0.5, "kept_max": 0.5})
    merge_sums(into, {"loss": 2.0, "kept_min": 0.25, "kept_max": 0.25, "utterances": 3})
    assert into == {"loss": 3.5, "kept_min": 0.25, "kept_max": 0.5, "utterances": 3}
