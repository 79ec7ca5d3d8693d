"""A run that is killed at any moment and started again gives the numbers of an uninterrupted run."""

from __future__ import annotations

import signal

import pytest

pytestmark = pytest.mark.slow
SAVE_OFTEN = {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 2}


def same_training(run, reference) -> None:
    """Check that every step and epoch is logged once, in order, with the reference's numbers and results."""
    for kind, keys in (
        ("step", ("loss", "learning_rate", "grad_norm")),
        ("epoch", ("loss", "valid_loss", "valid_wer")),
    ):
        steps, expected = run.records(kind), reference.records(kind)
        assert [s["optimizer_step"] for s in steps] == [s["optimizer_step"] for s in expected]
        for key in keys:
            assert [s[key] for s in steps] == pytest.approx([s[key] for s in expected], rel=1e-6), key
    for split, searches in reference.results["evaluation"].items():
        for search, entry in searches.items():
            assert run.results["evaluation"][split][search]["wer"] == entry["wer"]
    for key in ("epochs", "optimizer_steps", "audio_seconds"):
        assert run.results["training"][key] == pytest.approx(reference.results["training"][key])


def test_the_reference_is_random(full_run):
    """Otherwise equal losses would not show that random states are restored."""
    resolved = (full_run.folder / "hyperparams.yaml").read_text()
    assert (
        "dropout: 0.1" in resolved and "speed_perturb: !new" in resolved and "spec_augment: !new" in resolved
    )
    assert len(full_run.records()) == 2 * 12


def test_kill_9_then_the_same_command(recipe, full_run, tmp_path):
    folder = tmp_path / "killed"
    argv = recipe.arguments(folder, **SAVE_OFTEN)
    killed = recipe.interrupt(argv, folder, at_step=5, with_signal=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert 5 <= killed.records()[-1]["optimizer_step"] < 24
    # What a kill may leave besides: half a line, and half a checkpoint.
    with open(folder / "train_log.jsonl", "a") as log:
        log.write('{"kind": "step", "epo')
    half = folder / "save" / ".partial-CKPT+2020-01-01+00-00-00+00"
    half.mkdir()
    (half / "CKPT.yaml").write_text("unixtime: 99999999999.0\nend-of-epoch: true\n")

    resumed = recipe.train(argv, folder)
    assert resumed.code == 0, resumed.errors
    assert "Resuming after optimizer step" in resumed.log
    assert not half.exists()
    same_training(resumed, full_run)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_sigterm_saves_and_exits_then_the_same_command(recipe, full_run, tmp_path, num_workers):
    """A worker that reads audio must not keep the process from ending."""
    folder = tmp_path / "preempted"
    argv = recipe.arguments(folder, num_workers=num_workers)
    preempted = recipe.interrupt(argv, folder, at_step=3, with_signal=signal.SIGTERM)
    assert preempted.code == 143
    assert f"SIGTERM: training is saved in {folder}" in preempted.output
    last = preempted.records()[-1]["optimizer_step"]
    assert 3 <= last < 24

    resumed = recipe.train(argv, folder)
    assert resumed.code == 0, resumed.errors
    assert f"Resuming after optimizer step {last}." in resumed.log  # no step is lost
    assert last == 12 or f"; resumes at epoch {last // 12 + 1}, batch {last % 12 + 1}" in resumed.output
    same_training(resumed, full_run)


def test_a_step_limit_ends_the_process_while_a_worker_still_reads(recipe, tmp_path):
    folder = tmp_path / "limited"
    run = recipe.train([*recipe.arguments(folder, num_workers=1), "--optimizer_step_limit", "3"], folder)
    assert run.code == 0, run.errors
    assert run.results["training"]["optimizer_steps"] == 3
