"""What the trainer refuses, and what it says instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from speechbrain.nnet.schedulers import NoamScheduler

from hmamba_asr.config.hparams import top_level_nodes
from hmamba_asr.training.asr import ASRBrain
from hmamba_asr.training.trainer import peak_learning_rate


def test_a_learning_rate_that_does_nothing_is_refused_before_training(new_brain, tmp_path):
    """The schedule replaces the optimizer's learning rate in every step."""
    brain, train_set, valid_set, _ = new_brain(opt_class="{lr: 0.01}")
    with pytest.raises(
        ValueError, match="opt_class.lr is 0.01 and lr_schedule's peak is 0.0015, which alone counts"
    ):
        brain.fit(brain.hparams.epoch_counter, train_set, valid_set)
    assert brain.optimizer_step == 0 and not list((tmp_path / "run" / "save").glob("CKPT*"))


def test_one_value_changes_both(new_brain):
    brain, *_ = new_brain(lr=0.01)
    brain.init_optimizers()
    assert brain.optimizer.param_groups[0]["lr"] == peak_learning_rate(brain.hparams.lr_schedule) == 0.01


@pytest.mark.parametrize("model_size", [None, 144])
def test_the_peak_is_the_highest_learning_rate(model_size):
    schedule = NoamScheduler(lr_initial=0.5, n_warmup_steps=7, model_size=model_size)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = [schedule(optimizer)[1] for _ in range(20)]
    assert peak_learning_rate(schedule) == pytest.approx(max(rates))


def test_speechbrains_evaluate_names_what_to_call_instead(new_brain):
    brain, _, _, tests = new_brain()
    with pytest.raises(
        NotImplementedError,
        match=r"call hmamba_asr.evaluation.run.evaluate with ASRBrain.trained_system\(...\)",
    ) as raised:
        brain.evaluate(tests["test-clean"])
    assert "\n" not in str(raised.value)


def test_a_yaml_from_before_a_key_trains_and_is_evaluated(train_script, recipe, tmp_path):
    """Every key that a later version added has a default."""
    argv = recipe.arguments(tmp_path / "run", optimizer_step_limit=2)
    lines = Path(argv[0]).read_text(encoding="utf-8").splitlines(keepends=True)
    older = tmp_path / "older.yaml"
    older.write_text("".join(line for line in lines if not line.startswith(tuple(ASRBrain.defaults))))
    assert not ASRBrain.defaults.keys() & top_level_nodes(older.read_text()).keys()
    assert train_script.main([str(older), *argv[1:]]) == 0
    assert (tmp_path / "run" / "results.json").is_file()


def test_a_search_that_evaluation_could_not_use_is_refused_before_training(train_script, recipe, tmp_path):
    experiment = train_script.Experiment(recipe.arguments(tmp_path / "run"))
    experiment.hparams["test_searches"]["own"] = torch.nn.Identity()
    with pytest.raises(
        ValueError, match="the search own is of the class Identity; derive it from .*search.Search"
    ):
        ASRBrain.from_experiment(experiment)
