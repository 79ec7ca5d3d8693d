"""The collapse warning, the ratio loss's schedules, and names in the log."""

from __future__ import annotations

import logging
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from hmamba_asr.evaluation.chunk_statistics import flatten_figures
from hmamba_asr.training.asr import ASRBrain
from hmamba_asr.training.chunking_checks import CollapseDetector
from hmamba_asr.training.losses import RatioLoss


def test_ratio_loss_schedules():
    loss = RatioLoss(weight=0.03, warmup_steps=10, ramp_steps=4)
    assert [loss.weight_at(step) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.015, 0.03, 0.03])
    assert [loss.target_at(step, 3.0) for step in (0, 1, 4, 99)] == pytest.approx([1, 1.5, 3, 3])
    at_once = RatioLoss(weight=0.03)
    assert at_once.weight_at(0) == 0.03 and at_once.target_at(0, 2.5) == 2.5
    with pytest.raises(ValueError, match="the ratio loss's ramp_steps must be 0 or more, not -1"):
        RatioLoss(weight=0.03, ramp_steps=-1)


def test_a_fixed_stride_has_nothing_to_learn():
    stage = SimpleNamespace(mean_prob=torch.rand(3), target_ratio=None, has_router=False)
    losses = RatioLoss(weight=0.03).stage_losses([stage, stage], 5)
    assert [loss.tolist() for loss in losses] == [[0, 0, 0]] * 2


def sums_of(low, high, utterances=4):
    kept = (low + high) / 2
    named = {
        "kept": kept * utterances,
        "kept_squares": kept**2 * utterances,
        "kept_min": low,
        "kept_max": high,
        "chunks": 9,
    }
    named |= {"prob": 0.1 * utterances, "rate_min": low, "rate_max": high, "chunk_ms": 90, "chunk_ms_max": 30}
    return {f"stage0_{name}": value for name, value in named.items()}


def test_figures_are_named_by_stage():
    both = sums_of(0.25, 0.5) | {k.replace("0", "1", 1): v for k, v in sums_of(0.5, 1.0).items()}
    found = flatten_figures(both, 4, "valid_")
    assert found["valid_stage0_kept_max"] == 0.5 and found["valid_stage1_kept_max"] == 1.0
    assert found.keys() == {f"valid_{name}" for name in flatten_figures(both, 4)}
    assert flatten_figures({}, 3) == {}


@pytest.mark.parametrize(
    ("rates", "target", "word"),
    [
        ((0.0, 0.09), 2, "no frame"),
        ((0.92, 1.0), 2, "each frame"),
        ((0.0, 0.04), 4, "no frame"),
        ((0.0, 0.3), 2, None),
        ((0.3, 1.0), 2, None),
        ((0.0, 0.09), 4, None),
        ((1.0, 1.0), 1, None),
        ((0.0, 0.0), None, None),
        ((float("inf"), -float("inf")), 2, None),
    ],
)
def test_a_collapse_is_said_once(caplog, rates, target, word):
    """The warning needs several steps in which all utterances are alike. There is none where the target is
    every frame, nothing is learned, or no utterance has a second frame."""
    detector = CollapseDetector(patience=5)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 30):
            detector.update(sums_of(*rates), 4, step=step, targets=[target])
    assert [word in record.getMessage() for record in caplog.records] == ([True] if word else [])
    if word:
        message = caplog.records[0].getMessage()
        assert (
            "stage 0" in message
            and "for 5 optimizer steps (up to step 5)" in message
            and f"target {1 / target:.3f}" in message
        )
        assert (
            f"mean {sum(rates) / 2:.3f}, min {rates[0]:.3f}, max {rates[1]:.3f}" in message
            and "mean p 0.100" in message
        )


def test_a_second_collapse_is_said_again_and_an_interrupted_one_is_none(caplog):
    detector, bad, good = CollapseDetector(patience=3), sums_of(0.0, 0.0), sums_of(0.4, 0.6)
    with caplog.at_level(logging.WARNING):
        for step, sums in enumerate([bad, bad, good, bad, bad, bad, bad, good, bad, bad, bad], start=1):
            detector.update(sums, 4, step=step, targets=[2.0])
    steps = [record.args[2] for record in caplog.records]
    assert steps == [6, 11] and all(later - earlier >= 3 for earlier, later in pairwise(steps))


def test_only_a_routers_target_rises():
    """A chunker by the CTC is measured by its final target from the start, whatever the ratio loss does."""
    seen = []
    brain = SimpleNamespace(
        hparams=SimpleNamespace(ratio_loss=RatioLoss(weight=1.0, ramp_steps=4)),
        optimizer_step=2,
        ranks=SimpleNamespace(rank=0),
        collapse_detector=SimpleNamespace(update=lambda *sums, **settings: seen.append(settings["targets"])),
    )
    stages = [
        SimpleNamespace(target_ratio=ratio, has_router=router)
        for ratio, router in [(3.0, False), (2.0, True), (None, False)]
    ]
    predictions = SimpleNamespace(output=SimpleNamespace(encoded=SimpleNamespace(stages=stages)))
    ASRBrain.on_optimizer_step(brain, predictions, {"utterances": 4})
    assert seen == [[3.0, 1.5, None]]
