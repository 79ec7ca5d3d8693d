"""Models: which runs are one model, what they are called, and which runs of two models are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.report.seeds import group_runs, pair_runs, training_flags


@pytest.fixture
def run(make_results, make_entry):
    def make(name: str, seed: int, *, errors: int = 10, folder: str = "", **changes) -> FinishedRun:
        entry = make_entry(words=100, sentences=10, errors=errors, audio=None)
        results = make_results(name, {"dev": {"beam": entry}}, seed=seed, **changes)
        return FinishedRun(Path(folder or f"{name}/{seed}"), results, name)

    return make


def test_runs_that_differ_in_the_seed_are_one_model(run):
    runs = [run("a", 1, errors=10), run("b", 1), run("a", 2, errors=14), run("a", 3, hparams="size: 3\n")]
    models = group_runs(runs)
    assert [model.label for model in models] == ["a, seeds 1 and 2", "b", "a, seed 3"]
    assert [[item.label for item in model.runs] for model in models] == [
        ["a, seed 1", "a, seed 2"],
        ["b"],
        ["a, seed 3"],
    ]
    assert models[0].wer("dev", "beam") == "12.00 ± 2.83" and models[1].wer("dev", "beam") == "10.00"
    assert models[0].wer("dev", "greedy") == ""


def test_labels_are_as_short_as_they_can_be(run):
    labels = [
        [model.label for model in group_runs(runs)]
        for runs in (
            [run("a", 1), run("a", 2)],
            [run("a", 1), run("a", 2, overrides={"size": "3"})],
            [run("a", 1, folder="x"), run("a", 1, folder="y")],
        )
    ]
    assert labels == [["a"], ["a", "a --size 3"], ["a, seed 1, x", "a, seed 1, y"]]
    with pytest.raises(ValueError, match="named twice"):
        group_runs([run("a", 1), run("a", 1)])


@pytest.mark.parametrize(
    ("left", "right", "pairs"),
    [
        ([1], [1], [(1, 1)]),
        ([1], [2], [(1, 2)]),
        ([1, 2, 3], [3, 1, 2], [(1, 1), (2, 2), (3, 3)]),
        ([1, 2, 3], [2], [(2, 2), (1, 2), (3, 2)]),
        ([1], [1, 2], [(1, 1), (1, 2)]),
        ([1, 2], [2, 3], [(2, 2), (1, 3)]),
    ],
)
def test_runs_with_the_same_seed_are_compared_and_none_is_left_out(run, left, right, pairs):
    a, b = group_runs([run(name, seed) for name, seeds in (("a", left), ("b", right)) for seed in seeds])
    found = [(one.results.seed, other.results.seed) for one, other in pair_runs(a, b)]
    assert found == pairs
    assert {seed for seed, _ in found} == set(left) and {seed for _, seed in found} == set(right)


def test_other_epochs_and_other_data_are_flagged(run, change):
    def model(**training):
        first = run("a", 1)
        return group_runs([FinishedRun(first.folder, change(first.results, training=training), "a")])[0]

    usual, short, small = model(), model(epochs=1), model(train_splits=["dev"])
    (unknown,) = group_runs([run("b", 1, training=None)])
    assert training_flags(usual, usual) == []
    assert training_flags(usual, short) == ["1 epoch against 70 epochs"]
    assert training_flags(usual, small) == ["trained on dev against train-clean-100"]
    assert training_flags(usual, unknown) == [
        "an unknown number of epochs against 70 epochs",
        "trained on unknown data against train-clean-100",
    ]
