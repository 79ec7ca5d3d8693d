"""Training an H-Mamba: the router's learning rate, schedules that survive a kill, and the same numbers on
several processes."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.nnet.linear import Linear

from hmamba_asr import cli
from hmamba_asr.evaluation.probing import ctc_alignments, measure_stability
from hmamba_asr.evaluation.segmentation import read_chunks
from hmamba_asr.evaluation.wer import read_trn
from hmamba_asr.training import chunk_statistics as stages
from hmamba_asr.training.losses import RatioLoss

ROUTER = {
    "yaml": "router_mini",
    "encoder": None,
    "outer": "{num_layers: 1, d_state: 4}",
    "inner": "{num_layers: 1, d_state: 4}",
}
H_MAMBA = {**ROUTER, "yaml": "hmamba_mini"}
H_NET = {**ROUTER, "yaml": "hnet_an4", "ratio_loss": "{weight: 0.5, warmup_steps: 16, ramp_steps: 20}"}
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
    """In every step of the schedule, and on nothing but the router."""
    brain, train_set, *_ = new_brain(**ROUTER, chunker=f"{{lr_multiplier: {multiplier}}}")
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
        {"yaml": "router_mini"},
        {"yaml": "router_mini", "chunker": "{target_ratio: 1}"},
        {"yaml": "router_mini", "encoder": "{output: frames}"},
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
    assert "loss_ratio" not in last
    if "output" in variant.get("encoder", ""):
        assert last["stage0_floored"] == 0  # the CTC has its frames


def test_chunks_by_the_ctc_take_steps(new_brain, tmp_path):
    """Whose head is the recogniser's own, saved once; before it has learned anything an utterance has half as
    many again as its share."""
    brain, train_set, *_ = new_brain(**H_MAMBA | {"chunker": "{target_ratio: 4, window: null}"})
    model = brain.raw_model
    assert model.encoder.chunker.ctc_head is model.ctc_head
    assert [name for name in model.state_dict() if "chunker" in name] == []
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
        ({"intermediate_ctc_weight": 0}, "reads the CTC on the frames, which nothing trains"),
        ({"ctc_weight": 0}, "reads the CTC on the frames, which nothing trains"),
        ({"chunker": "{blank_index: 1}"}, "the CTCChunker's blank_index is 1 and the recogniser's 0"),
    ],
)
def test_chunks_by_the_ctc_need_one_that_is_trained(new_brain, change, message):
    with pytest.raises(ValueError, match=message):
        new_brain(**H_MAMBA | change)


def test_chunks_by_the_ctc_need_the_recognisers_own(new_brain):
    brain, *_ = new_brain(**H_MAMBA)
    brain.raw_model.encoder.chunker._head[0] = Linear(input_size=8, n_neurons=5)
    with pytest.raises(ValueError, match="must be the outermost encoder's, and have the model's ctc_head"):
        stages.check_chunkers(brain.raw_model, brain.hparams)


def test_a_ratio_loss_needs_a_router(new_brain):
    brain, *_ = new_brain(**H_MAMBA)
    brain.hparams.ratio_loss = RatioLoss(weight=0.5)
    with pytest.raises(ValueError, match="ratio_loss teaches a router, and no chunker has one; leave it out"):
        stages.check_chunkers(brain.raw_model, brain.hparams)


@pytest.mark.parametrize(
    ("unlike", "word"), [([0.01, 0.02], "no frame"), ([0.99, 0.98], "each frame"), ([0.01, 0.99], None)]
)
def test_a_collapsed_router_is_warned_about_in_training(new_brain, monkeypatch, unlike, word):
    """In spite of a floor, which keeps chunks for the CTC."""
    found: list[str] = []
    monkeypatch.setattr(stages.logger, "warning", lambda text, *numbers: found.append(text % numbers))
    brain, train_set, *_ = new_brain(**H_NET | {"encoder": "{output: chunks}"})
    brain.collapse_detector.patience = 3
    said = torch.tensor(unlike).repeat(500)  # of every other frame
    monkeypatch.setattr(
        brain.raw_model.encoder.chunker, "dissimilarity", lambda x: x[:, 1:, 0] * 0.0 + said[: x.shape[1] - 1]
    )
    three_steps(brain, train_set)
    assert [word in message and "up to step 3" in message for message in found] == ([True] if word else [])


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hmamba") / "run"
    run = recipe.train(recipe.arguments(folder, **H_NET), folder)
    assert run.code == 0, run.errors
    return run


@pytest.mark.slow
def test_what_a_run_leaves(uninterrupted):
    for searches in uninterrupted.results["evaluation"].values():
        (stage,) = searches["greedy"]["stages"]
        assert 0 < stage["kept_min"] <= stage["kept"] <= stage["kept_max"] <= 1 and stage["chunk_ms"] >= 40
        assert stage == searches["beam"]["stages"][0]
    assert "test-clean kept" in uninterrupted.output
    for split in ("test-clean", "test-other"):
        references, _ = read_trn(uninterrupted.folder / "test" / split / "greedy")
        chunks = read_chunks(uninterrupted.folder / "test" / split / "chunks.jsonl")
        assert [item.id for item in chunks] == sorted(references)
        kept = [len(item.starts[0]) / item.frames for item in chunks]
        (stage,) = uninterrupted.results["evaluation"][split]["greedy"]["stages"]
        assert sum(kept) / len(kept) == pytest.approx(stage["kept"])
        durations = [1000 * float(x) for item in chunks for x in item.durations()]
        assert sum(durations) / len(durations) == pytest.approx(stage["chunk_ms"]) and max(
            durations
        ) == pytest.approx(stage["chunk_ms_max"])


@pytest.mark.slow
def test_pictures_of_boundaries(uninterrupted, recipe, tmp_path, monkeypatch, capsys):
    """Of a run's recordings: a PNG each, with what the model decided at the times of the encoder's frames."""
    import plot_boundaries

    drawn = {}
    draw = plot_boundaries.draw_boundaries
    monkeypatch.setattr(
        plot_boundaries,
        "draw_boundaries",
        lambda path, **what: (drawn.update({path: what}), draw(path, **what)),
    )
    audio = sorted((recipe.corpus / "test-clean").rglob("*.flac"))[-2:]
    assert (
        plot_boundaries.main([str(uninterrupted.folder), *map(str, audio), "--output", str(tmp_path / "p")])
        == 0
    )
    assert capsys.readouterr().out.split() == [str(tmp_path / "p" / f"{path.stem}.png") for path in audio]
    for path, what in drawn.items():
        assert path.read_bytes().startswith(b"\x89PNG")
        (stage,) = what["stages"]
        frames = -(-len(what["spectrogram"]) // 4)
        assert stage.times == pytest.approx([0.04 * frame for frame in range(frames)])
        assert stage.mask[0] and (stage.mask == (stage.prob >= 0.5)).all() and len(stage.prob) == frames

    assert plot_boundaries.main([str(tmp_path), str(audio[0])]) == 2
    assert "hyperparams.yaml; give the output folder of a training run" in capsys.readouterr().err
    assert plot_boundaries.main([str(uninterrupted.folder), str(recipe.corpus)]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_flat_encoder_has_no_boundaries_to_draw(full_run, recipe, capsys):
    import plot_boundaries

    audio = next((recipe.corpus / "test-clean").rglob("*.flac"))
    assert plot_boundaries.main([str(full_run.folder), str(audio)]) == 2
    assert (
        f"nothing to draw for {audio.stem}: the encoder of this run has no chunking stage"
        in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "whole"), [(H_NET, "uninterrupted"), (H_MAMBA, "chunk_rate_run")], ids=["hnet", "hmamba"]
)
def test_kill_9_in_the_middle_of_the_schedules(recipe, request, tmp_path, settings, whole):
    folder, uninterrupted = tmp_path / "killed", request.getfixturevalue(whole)
    argv = recipe.arguments(folder, **settings, ckpt_interval_minutes=0, ckpt_interval_steps=2)
    killed = recipe.interrupt(argv, folder, at_step=5, with_signal=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL and killed.records()[-1]["optimizer_step"] < 16
    resumed = recipe.train(argv, folder)
    assert resumed.code == 0, resumed.errors
    assert "Resuming after optimizer step" in resumed.output
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
        both = [read_chunks(folder / "test" / split / "chunks.jsonl") for folder in (one, two)]
        assert [(item.id, item.frames) for item in both[0]] == [(item.id, item.frames) for item in both[1]]


# ---- Probing a trained run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chunk_rate_run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hmamba") / "chunks"
    run = recipe.train(recipe.arguments(folder, **H_MAMBA), folder)
    assert run.code == 0, run.errors
    return run


@pytest.mark.slow
def test_boundaries_are_compared_with_the_tokens_of_a_ctc(chunk_rate_run, full_run, capsys):
    """Its own, whose steps are those of its chunks, or another run's."""
    command = ["boundaries", str(chunk_rate_run.folder), "--split", "test-clean", "--utterances", "4"]
    for more, aligner, chunk_rate in (
        ([], chunk_rate_run, True),
        (["--aligner", str(full_run.folder)], full_run, False),
    ):
        assert cli.main([*command, *more, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["source"] == {"kind": "CTC", "folder": str(aligner.folder), "chunk_rate": chunk_rate}
        assert list(found["agreement"]) == ["tokens", "words"] and found["silence"] is None
        assert 0 < found["utterances"] <= 4 and found["utterances"] + found["without_alignment"] == 6
        assert cli.main([*command, *more]) == 0
        text = capsys.readouterr().out
        assert (
            "No forced alignment" in text
            and ("agreement with its own chunks means nothing" in text) is chunk_rate
        )
        assert "In silence" not in text and "Stability" not in text


@pytest.mark.slow
def test_ctc_alignments_hold_the_reference(chunk_rate_run, full_run):
    references, _ = read_trn(full_run.folder / "test" / "test-clean" / "greedy")
    found = ctc_alignments(full_run.folder, chunk_rate_run.folder, split="test-clean", utterances=6)
    chunks = {
        item.id: item for item in read_chunks(chunk_rate_run.folder / "test" / "test-clean" / "chunks.jsonl")
    }
    assert found.alignments and not found.chunk_rate
    for key, alignment in found.alignments.items():
        words = [label for *_, label in alignment.tiers["words"] if label]
        assert words == references[key].split()
        item = chunks[key]
        for tier in alignment.tiers.values():
            edges = [tier[0][0], *(end for _, end, _ in tier)]
            assert edges == sorted(edges) and [start for start, *_ in tier] == edges[:-1]
            # From the first frame's beginning to the last one's end, on frames that begin where chunks may.
            assert (edges[0], edges[-1]) == pytest.approx((item.first, item.first + item.step * item.frames))
            frames = [(edge - item.first) / item.step for edge in edges]
            assert frames == pytest.approx([round(frame) for frame in frames], abs=1e-6)


@pytest.mark.slow
def test_boundaries_stay_where_the_recording_stays(chunk_rate_run, full_run, capsys):
    folder = chunk_rate_run.folder
    found = measure_stability(
        folder, split="test-clean", noise=[200.0, -20.0], speed=[1.0, 1.1], utterances=5
    )
    assert list(found["conditions"]) == ["noise 200 dB", "noise -20 dB", "speed 1", "speed 1.1"]
    for unchanged in ("noise 200 dB", "speed 1"):
        for kinds in found["conditions"][unchanged].values():
            assert kinds["chunks"]["f1"] == 1.0 and kinds["uniform"]["f1"] < 1.0
        assert found["kept"][unchanged] == found["kept"]["clean"]
    noisy, faster = (found["conditions"][name]["20"]["chunks"] for name in ("noise -20 dB", "speed 1.1"))
    assert noisy["f1"] < 1.0 and faster["true"] == noisy["true"]
    command = ["boundaries", str(folder), "--split", "test-clean", "--utterances", "5"]
    assert cli.main([*command, "--noise", "20", "--speed", "1.1", "--json"]) == 0
    stability = json.loads(capsys.readouterr().out)["stability"]
    assert (
        stability["conditions"]["speed 1.1"] == found["conditions"]["speed 1.1"]
        and stability["utterances"] == 5
    )
    assert cli.main([*command, "--noise", "20"]) == 0
    assert (
        "Stability: 5 utterances" in (text := capsys.readouterr().out)
        and "noise 20 dB   20 ms  chunks" in text
    )
    for wrong, message in (
        (["--speed", "3"], "a speed of 3 is no speech"),
        (["--noise", "20", "--stage", "1"], "no chunking stage 1"),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no chunking stage; give a run of H-Mamba"):
        measure_stability(full_run.folder, noise=[20.0], utterances=1)
