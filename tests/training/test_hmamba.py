"""H-Mamba in training: the router's learning rate, schedules that survive a kill, and equal numbers on
several processes."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch

from hmamba_asr.evaluation.segmentation import read_segmentations
from hmamba_asr.evaluation.wer import read_trn
from hmamba_asr.training import chunking_checks
from hmamba_asr.training.losses import RatioLoss
from recipes import H_MAMBA, H_NET

STEP_FIGURES = (
    "loss",
    "loss_intermediate_ctc",
    "loss_ratio",
    "learning_rate",
    "grad_norm",
    "stage0_kept",
    "stage0_kept_std",
    "stage0_kept_min",
    "stage0_kept_max",
    "stage0_prob",
    "stage0_chunk_ms",
    "stage0_ratio_loss",
    "stage0_floored",
)
EPOCH_FIGURES = (
    "loss",
    "valid_loss",
    "valid_infeasible",
    "stage0_kept_min",
    "valid_stage0_kept",
    "valid_stage0_chunk_ms_max",
)


def same_figures(run, reference, rel: float, *, ratio_loss: bool) -> None:
    for kind, keys in (("step", STEP_FIGURES), ("epoch", EPOCH_FIGURES)):
        records, expected = run.records(kind), reference.records(kind)
        assert [r["optimizer_step"] for r in records] == [r["optimizer_step"] for r in expected]
        for key in (
            keys if ratio_loss else [key for key in keys if not key.endswith(("loss_ratio", "ratio_loss"))]
        ):
            assert [r[key] for r in records] == pytest.approx(
                [r[key] for r in expected], rel=rel, abs=1e-6
            ), key


def three_steps(brain, train_set) -> None:
    brain.make_dataloader(train_set, Stage.TRAIN)
    brain.on_fit_start()
    brain.on_stage_start(Stage.TRAIN, 1)
    brain.modules.train()
    for brain.step in (1, 2, 3):
        brain.fit_batch(PaddedBatch([train_set[brain.step]]))


@pytest.mark.parametrize("multiplier", [0.5, 1.0])
def test_the_router_has_its_own_learning_rate(new_brain, multiplier):
    """The multiplier holds in every step of the schedule, and for the router's weights alone."""
    brain, train_set, *_ = new_brain(**H_NET, chunker=f"{{lr_multiplier: {multiplier}}}")
    three_steps(brain, train_set)
    chunker = brain.raw_model.encoder.chunker
    expected = {chunker.query.weight: multiplier, chunker.key.weight: multiplier}
    usual = brain.hparams.lr_schedule.lr_initial * 3 / 5  # the third of five warm-up steps
    rates = {p: group["lr"] for group in brain.optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(brain.raw_model.parameters()))
    for parameter, rate in rates.items():
        assert rate == pytest.approx(usual * expected.get(parameter, 1.0))


def test_the_log_of_a_step(new_brain, tmp_path):
    brain, train_set, *_ = new_brain(**H_NET)
    three_steps(brain, train_set)
    records = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    assert all(set(STEP_FIGURES) <= record.keys() for record in records)
    first, second, _ = records
    assert first["loss_ratio"] == 0 and second["loss_ratio"] > 0  # the weight rises from the first step on
    labels = len(train_set[2]["tokens"]) + 1
    assert second["loss_ratio"] == pytest.approx(0.5 / 16 * labels * second["stage0_ratio_loss"], rel=1e-5)
    # 40 ms an encoder frame: the utterance's frames over its chunks.
    frames = -(-(1 + len(train_set[2]["sig"]) // 160) // 4)
    assert second["stage0_chunk_ms"] == pytest.approx(40 / second["stage0_kept"], rel=1e-5)
    assert second["stage0_kept"] * frames == pytest.approx(round(second["stage0_kept"] * frames), abs=1e-4)


@pytest.mark.parametrize(
    "variant",
    [
        {"chunker": "{target_ratio: 1}"},
        {"chunker": "{target_ratio: 3}"},
        {"encoder": "{output: frames}"},
        {"yaml": "conmamba_mini+hmamba+hnet"},
        {"yaml": "conmamba_mini+hmamba+hnet", "chunker": "{target_ratio: 1}"},
        {"yaml": "conmamba_mini+hmamba+hnet", "encoder": "{output: chunks}"},
    ],
)
def test_variants_take_steps(new_brain, tmp_path, variant):
    brain, train_set, *_ = new_brain(**H_MAMBA | variant)
    before = {name: parameter.detach().clone() for name, parameter in brain.raw_model.named_parameters()}
    three_steps(brain, train_set)
    assert [
        name for name, parameter in brain.raw_model.named_parameters() if torch.equal(parameter, before[name])
    ] == []
    last = json.loads((tmp_path / "run" / "train_log.jsonl").read_text().splitlines()[-1])
    if "target_ratio: 1" in variant.get("chunker", ""):  # the flat encoder, in two parts
        assert last["stage0_kept"] == last["stage0_prob"] == 1
    assert ("loss_ratio" in last) == ("hnet" in variant.get("yaml", ""))
    if brain.raw_model.encoder.output == "frames":
        assert last["stage0_floored"] == 0  # the CTC has its frames


def test_chunks_by_the_ctc_take_steps(new_brain, tmp_path):
    """The chunker reads the recogniser's own CTC head, which is saved once. Before the CTC has learned
    anything, an utterance gets its share of chunks and half as many again."""
    brain, train_set, *_ = new_brain(**H_MAMBA | {"chunker": "{target_ratio: 4, window: null}"})
    assert [name for name in brain.raw_model.state_dict() if "chunker" in name] == []
    three_steps(brain, train_set)
    first, *_, last = [
        json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()
    ]
    said = -(-(1 + len(train_set[1]["sig"]) // 160) // 4)
    shares = [
        (math.ceil(n / 4) + math.ceil(n / 8 - 0.02)) / n for n in (said - 1, said, said + 1)
    ]  # the speed is perturbed
    assert any(first["stage0_kept"] == pytest.approx(share) for share in shares)
    assert last["loss_intermediate_ctc"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_ctc_weight": 0}, "reads the CTC on the frames, which no loss trains"),
        ({"ctc_weight": 0}, "reads the CTC on the frames, which no loss trains"),
        ({"chunker": "{blank_index: 1}"}, "the CTCChunker's blank_index is 1 and the recogniser's 0"),
    ],
)
def test_chunks_by_the_ctc_need_one_that_is_trained(new_brain, change, message):
    with pytest.raises(ValueError, match=message):
        new_brain(**H_MAMBA | change)


def test_a_ratio_loss_needs_a_router(new_brain):
    brain, *_ = new_brain(**H_MAMBA)
    brain.hparams.ratio_loss = RatioLoss(weight=0.5)
    with pytest.raises(ValueError, match="ratio_loss trains a router, and no chunker has one; leave it out"):
        chunking_checks.check_chunkers(brain.raw_model, brain.hparams)


@pytest.mark.parametrize(
    ("unlike", "word"), [([0.01, 0.02], "no frame"), ([0.99, 0.98], "each frame"), ([0.01, 0.99], None)]
)
def test_a_collapsed_router_is_warned_about_in_training(new_brain, monkeypatch, unlike, word):
    """The warning comes although a floor keeps enough chunks for the CTC."""
    found: list[str] = []
    monkeypatch.setattr(
        chunking_checks.logger, "warning", lambda text, *numbers: found.append(text % numbers)
    )
    brain, train_set, *_ = new_brain(**H_NET | {"encoder": "{output: chunks}"})
    brain.collapse_detector.patience = 3
    said = torch.tensor(unlike).repeat(500)  # of every other frame
    monkeypatch.setattr(
        brain.raw_model.encoder.chunker, "boundary_prob", lambda x: x[:, 1:, 0] * 0.0 + said[: x.shape[1] - 1]
    )
    three_steps(brain, train_set)
    assert [word in message and "up to step 3" in message for message in found] == ([True] if word else [])


@pytest.mark.slow
def test_what_a_run_leaves(h_net_run):
    for searches in h_net_run.results["evaluation"].values():
        (stage,) = searches["greedy"]["stages"]
        assert 0 < stage["kept_min"] <= stage["kept"] <= stage["kept_max"] <= 1 and stage["chunk_ms"] >= 40
        assert stage == searches["beam"]["stages"][0]
    assert "chunks / frames" in h_net_run.output
    for split in ("test-clean", "test-other"):
        references, _ = read_trn(h_net_run.folder / "test" / split / "greedy")
        chunks = read_segmentations(h_net_run.folder / "test" / split / "chunks.jsonl")
        assert [item.id for item in chunks] == sorted(references)
        kept = [len(item.starts[0]) / item.frames for item in chunks]
        (stage,) = h_net_run.results["evaluation"][split]["greedy"]["stages"]
        assert sum(kept) / len(kept) == pytest.approx(stage["kept"])
        durations = [1000 * float(x) for item in chunks for x in item.durations()]
        assert sum(durations) / len(durations) == pytest.approx(stage["chunk_ms"]) and max(
            durations
        ) == pytest.approx(stage["chunk_ms_max"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "whole"), [(H_NET, "h_net_run"), (H_MAMBA, "h_mamba_run")], ids=["hnet", "hmamba"]
)
def test_kill_9_in_the_middle_of_the_schedules(recipe, request, tmp_path, settings, whole):
    folder, uninterrupted = tmp_path / "killed", request.getfixturevalue(whole)
    argv = recipe.arguments(folder, **settings, ckpt_interval_minutes=0, ckpt_interval_steps=2)
    killed = recipe.interrupt(argv, folder, at_step=5, with_signal=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL and killed.records()[-1]["optimizer_step"] < 16
    resumed = recipe.train(argv, folder)
    assert resumed.code == 0, resumed.errors
    assert "Resuming after optimizer step" in resumed.log
    same_figures(resumed, uninterrupted, rel=1e-6, ratio_loss="ratio_loss" in settings)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [H_NET, H_MAMBA], ids=["hnet", "hmamba"])
def test_two_processes_equal_one_with_accumulation(recipe, train_script, tmp_path, settings):
    one, two = tmp_path / "one", tmp_path / "two"
    options = {**settings, "randomness": False}
    assert train_script.main(recipe.arguments(one, **options, grad_accumulation_factor=2)) == 0
    double = recipe.train(recipe.arguments(two, **options), two, processes=2)
    assert double.code == 0, double.errors
    same_figures(double, recipe.look(one), rel=1e-4, ratio_loss="ratio_loss" in settings)
    for split, searches in double.results["evaluation"].items():
        assert searches["greedy"]["stages"][0] == pytest.approx(
            recipe.look(one).results["evaluation"][split]["greedy"]["stages"][0], rel=1e-4
        )
        both = [read_segmentations(folder / "test" / split / "chunks.jsonl") for folder in (one, two)]
        assert [(item.id, item.frames) for item in both[0]] == [(item.id, item.frames) for item in both[1]]
