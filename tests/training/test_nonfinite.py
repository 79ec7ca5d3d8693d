"""If the loss of a recording is not a number, training stops and names the recording, or all ranks skip its
batch."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
from speechbrain import Stage

from recipes import H_MAMBA

BAD = "10-1-0099"


@pytest.fixture(scope="session")
def poisoned_corpus(corpus, tmp_path_factory):
    """The tones, and one more training utterance with some NaN samples in a valid file."""
    root = tmp_path_factory.mktemp("poisoned") / "corpus"
    shutil.copytree(corpus, root)
    samples = np.full(9600, 0.1, dtype=np.float32)
    samples[5000:5010] = np.nan
    soundfile.write(root / "train" / "10" / "1" / f"{BAD}.wav", samples, 16000, subtype="FLOAT")
    with open(root / "train" / "10" / "1" / "10-1.trans.txt", "a") as file:
        file.write(f"{BAD} DO RE\n")
    return root


@pytest.mark.parametrize("variant", [{}, H_MAMBA], ids=["ConMamba", "H-Mamba"])
def test_stop_names_the_utterance(train_script, recipe, poisoned_corpus, tmp_path, variant):
    argv = recipe.arguments(tmp_path / "run", data_folder=poisoned_corpus, number_of_epochs=1, **variant)
    with pytest.raises(
        ValueError, match=f"the loss is not finite at optimizer step .*; utterances: {BAD}\\."
    ) as raised:
        train_script.main(argv)
    assert "\n" not in str(raised.value)


def test_skip_goes_on(new_brain, poisoned_corpus):
    brain, train_set, valid_set, _ = new_brain(
        data_folder=poisoned_corpus, nonfinite="skip", number_of_epochs=1
    )
    brain.fit(brain.hparams.epoch_counter, train_set, valid_set)
    run = brain.totals.run
    batches = list(brain.hparams.train_loader(train_set, brain.ranks).batch_sampler)
    assert 1 <= run["skipped"] <= max(map(len, batches))
    assert run["utterances"] + run["skipped"] == 25
    assert brain.optimizer_step == len(batches) - 1
    assert all(torch.isfinite(value).all() for value in brain.raw_model.state_dict().values())
    assert math.isfinite(run["loss"])


def test_skip_has_a_limit(new_brain, poisoned_corpus):
    brain, train_set, valid_set, _ = new_brain(
        data_folder=poisoned_corpus, nonfinite="skip", nonfinite_patience=0, number_of_epochs=1
    )
    with pytest.raises(ValueError, match=r"more than nonfinite_patience \(0\)"):
        brain.fit(brain.hparams.epoch_counter, train_set, valid_set)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_gradient(new_brain, policy):
    """The loss is finite but a gradient is not: the step must not change the parameters."""
    brain, train_set, _, _ = new_brain(nonfinite=policy, number_of_epochs=1)
    batch = start_training(brain, train_set)
    head = brain.raw_model.ctc_head.w.weight
    head.register_hook(lambda gradient: gradient.fill_(float("inf")))
    before = head.detach().clone()
    if policy == "stop":
        with pytest.raises(ValueError, match="the gradient is not finite"):
            brain.fit_batch(batch)
    else:
        brain.fit_batch(batch)
        assert brain.totals.run["skipped"] == len(batch.id)
    assert torch.equal(head, before)
    assert all(torch.isfinite(p).all() for p in brain.raw_model.parameters())


def test_good_batches_before_a_skipped_last_one_are_counted(new_brain, monkeypatch):
    """They were accumulated, but no optimizer step followed."""
    brain, train_set, _, _ = new_brain(nonfinite="skip", number_of_epochs=1)
    batch = start_training(brain, train_set)
    brain.grad_accumulation_factor, brain._batches_per_epoch = 2, 2
    brain.fit_batch(batch)
    objectives = brain.compute_objectives

    def spoiled(*args):
        losses = objectives(*args)
        losses.total = losses.total * float("nan")
        return losses

    monkeypatch.setattr(brain, "compute_objectives", spoiled)
    brain.step = 2
    brain.fit_batch(batch)
    assert brain.optimizer_step == 0
    brain.on_stage_end(Stage.TRAIN, 0.0, 1)
    assert brain.totals.run["skipped"] == 2 * len(batch.id)


def start_training(brain, train_set):
    """Bring a Brain to its first step; returns the first batch."""
    loader = brain.make_dataloader(train_set, Stage.TRAIN)
    brain.on_fit_start()
    brain.on_stage_start(Stage.TRAIN, 1)
    brain.modules.train()
    brain.step, brain.nonfinite_count = 1, 0
    return next(iter(loader))


@pytest.mark.slow
def test_two_processes_skip_alike(recipe, poisoned_corpus, tmp_path):
    folder = tmp_path / "run"
    argv = recipe.arguments(folder, data_folder=poisoned_corpus, nonfinite="skip", number_of_epochs=1)
    run = recipe.train(argv, folder, processes=2)
    assert run.code == 0, run.errors
    assert run.output.count("Skipped: the loss is not finite") == 1  # the main process speaks for both
    assert f"utterances: {BAD}." in run.output
    steps = run.records()
    assert [s["optimizer_step"] for s in steps] == list(range(1, len(steps) + 1))
    assert all(math.isfinite(s["loss"]) and math.isfinite(s["grad_norm"]) for s in steps)
    assert all(epoch["skipped"] >= 1 for epoch in run.records("epoch"))
    for file in (folder / "save").glob("CKPT*/model.ckpt"):
        assert all(torch.isfinite(value).all() for value in torch.load(file).values())
