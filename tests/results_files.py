"""A results file as a run writes it, with what a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hmamba_asr.evaluation.results import Results, parse_results, plain

GPU = {"device": "cuda", "cpu": "EPYC", "cores": 16, "torch_threads": 8, "gpu": "NVIDIA RTX A6000"}
CPU = {"device": "cpu", "cpu": "EPYC", "cores": 2, "torch_threads": 2, "gpu": None}


def _errors(tokens: int, errors: int, sentences: int) -> dict[str, Any]:
    return {
        "rate": 100 * errors / tokens,
        "tokens": tokens,
        "errors": errors,
        "insertions": 0,
        "deletions": 0,
        "substitutions": errors,
        "sentences": sentences,
        "sentence_errors": min(errors, sentences),
        "sentence_error_rate": 100 * min(errors, sentences) / sentences,
    }


@pytest.fixture
def make_entry() -> Callable[..., dict[str, Any]]:
    """Build the entry of one split and search."""

    def make(
        *,
        words: int,
        errors: int,
        sentences: int,
        audio: float | None,
        processing: float = 0.0,
        hardware: dict = GPU,
    ) -> dict[str, Any]:
        efficiency = audio and {
            "rtf": processing / audio,
            "processing_seconds": processing,
            "audio_seconds": audio,
            "stage_seconds": {"read": 0.25 * processing, "decoding": 0.75 * processing},
            "wall_seconds": processing,
            "batch": 16,
            "hardware": dict(hardware),
            "processes": 1,
        }
        return {
            "wer": _errors(words, errors, sentences),
            "cer": _errors(5 * words, errors, sentences),
            "efficiency": efficiency,
        }

    return make


@pytest.fixture
def make_results() -> Callable[..., Results]:
    """Build the content of a results file, from entries as `make_entry` or the package makes them."""

    def make(name: str, evaluation: dict[str, Any], **changes: Any) -> Results:
        content = {
            "schema": 1,
            "name": name,
            "seed": 1234,
            "date": "2026-01-31T12:00:00Z",
            "environment": {
                "python": "3.11.0",
                "packages": {"torch": "2.11.0"},
                "git": {"commit": "0123456789abcdef", "dirty": False},
                "hardware": dict(GPU),
                "command": "python train.py",
                "world_size": 4,
            },
            "parameters": {
                "total": 14_123_456,
                "trainable": 14_123_456,
                "by_module": {"encoder": 14_123_456},
            },
            "hparams": "seed: 1234\n",
            "training": {
                "train_splits": ["train-clean-100"],
                "epochs": 70,
                "optimizer_steps": 31000,
                "audio_seconds": 2.5e7,
                "seconds": 16_320.0,
                "audio_seconds_per_second": 1543.2,
                "peak_memory_mib": 20_000.0,
                "precision": "bf16",
                "world_size": 4,
            },
            "checkpoints": ["epoch-70"],
            "evaluation": evaluation,
            **changes,
        }
        return parse_results(plain(content, "results"), name)

    return make
