from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hmamba_asr.evaluation.results import Results, parse_results, plain


def _merged(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if inside else value
    return merged


@pytest.fixture
def change() -> Callable[..., Results]:
    """Change results: a mapping changes the keys that it names."""
    return lambda results, **changes: parse_results(_merged(plain(results, "results"), changes), results.name)


@pytest.fixture
def golden_results(make_results, make_entry, change) -> list[Results]:
    """Three runs on two corpora."""
    cpu = {"device": "cpu", "cpu": "EPYC", "cores": 2, "gpu": None}
    clean = {"words": 52576, "sentences": 2620}
    # RTF of the beam over both splits: (300 + 600) / (20000 + 20000).
    conmamba = make_results(
        "conmamba",
        {
            "test-other": {
                "beam": make_entry(words=52343, sentences=2939, errors=8000, audio=20000.0, processing=600.0)
            },
            "test-clean": {
                "beam+lm": make_entry(**clean, errors=2000, audio=None),
                "greedy": make_entry(**clean, errors=4000, audio=20000.0, processing=40.0),
                "beam": make_entry(**clean, errors=3000, audio=20000.0, processing=300.0),
            },
        },
    )
    # Evaluated only, elsewhere, on one split, outside git.
    conformer = make_results(
        "conformer",
        {"test-clean": {"beam": make_entry(**clean, errors=5000, audio=1e4, processing=100.0, hardware=cpu)}},
        training=None,
    )
    conformer = change(conformer, environment={"git": None})
    # The same split name, but another corpus.
    entry = make_entry(words=500, sentences=60, errors=20, audio=1.0, processing=0.05, hardware=cpu)
    demo = make_results(
        "demo",
        {"test-clean": {"greedy": entry}},
        parameters={"total": 853_000, "trainable": 853_000, "by_module": {}},
    )
    demo = change(
        demo,
        environment={"hardware": cpu, "git": {"commit": "fedcba9876543210", "dirty": True}},
        training={
            "train_splits": ["train | small", "more"],
            "epochs": 20,
            "seconds": 244.0,
            "audio_seconds_per_second": 120.4,
            "precision": "fp32",
            "world_size": 1,
        },
    )
    return [conmamba, conformer, demo]
