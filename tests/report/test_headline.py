"""The first sentences: right in every case, of one model, of several, of seeds, and of what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.report.claims import FASTER, NOT_MEASURED, NOT_SUPPORTED, SUPPORTED, Claim
from hmamba_asr.report.headline import summarise
from hmamba_asr.report.seeds import group_runs


@pytest.fixture
def run(make_results, make_entry):
    """A run with 1,000 words on each split and search; ``errors`` has the number of errors."""

    def make(name: str, errors: dict[tuple[str, str], int], seed: int = 1, **changes) -> FinishedRun:
        evaluation: dict = {}
        for (split, search), count in errors.items():
            entry = make_entry(words=1000, sentences=10, errors=count, audio=None)
            evaluation.setdefault(split, {})[search] = entry
        return FinishedRun(Path(name) / str(seed), make_results(name, evaluation, seed=seed, **changes), name)

    return make


BEAM, OTHER = ("test-clean", "beam"), ("test-other", "beam")
SLOWER = Claim(FASTER, "", NOT_SUPPORTED, "", model="b")


def say(runs, outcomes=None, claims=(SLOWER,)) -> list[str]:
    """The sentences; ``outcomes`` has the better side by split, or by split and seed; without: not tested."""

    def test(a, b, split, search):
        known = outcomes or {}
        for key in ((split, b.results.seed), split):
            if key in known:
                return {"better": known[key], "difference": 0.0}
        return {"better": None, "verdict": "cannot be tested"}

    return summarise(group_runs(runs), claims, test)


def test_one_run(run):
    alone = "No other model was given to compare it with."
    assert say([run("a", {BEAM: 21})]) == [f"a has a WER of 2.10% on test-clean (beam). {alone}"]
    assert say([run("a", {("test-clean", "greedy"): 30, BEAM: 21, OTHER: 57})]) == [
        f"a has a WER of 2.10% on test-clean and 5.70% on test-other (beam). {alone}"
    ]
    assert say([run("a", {BEAM: 20}, 1), run("a", {BEAM: 24}, 2)]) == [
        f"a (2 seeds) has a mean WER of 2.20 ± 0.28% on test-clean (beam). {alone}"
    ]


@pytest.mark.parametrize(
    ("better", "found"),
    [
        (None, "the difference is not significant"),
        ("a", "the difference is significant"),
        ("b", "the difference is significant"),
        ("untested", "the difference was not tested"),
    ],
)
def test_two_runs(run, better, found):
    outcomes = {} if better == "untested" else {"test-clean": better}
    assert say([run("a", {BEAM: 21}), run("b", {BEAM: 23})], outcomes) == [
        f"b has a WER of 2.30% on test-clean (beam) where a has 2.10%; {found}."
        " It is not faster in these runs."
    ]


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ((SLOWER,), "It is not faster in these runs."),
        ((Claim(FASTER, "", SUPPORTED, "", model="b"),), "It is faster in these runs."),
        ((Claim(FASTER, "", NOT_MEASURED, "", model="b"),), "Its speed was not compared."),
        ((Claim(FASTER, "", SUPPORTED, "", model="c"),), "Its speed was not compared."),
        (
            (Claim(FASTER, "", NOT_SUPPORTED, "", held=3, checked=8, model="b"),),
            "It is faster in 3 of 8 measurements.",
        ),
        (
            (Claim(FASTER, "", NOT_SUPPORTED, "", held=0, checked=8, model="b"),),
            "It is not faster in these runs.",
        ),
    ],
)
def test_speed(run, claims, sentence):
    (paragraph,) = say([run("a", {BEAM: 21}), run("b", {BEAM: 23})], {"test-clean": None}, claims)
    assert paragraph.endswith(f"not significant. {sentence}")


def test_further_test_sets_and_unfair_pairs(run, change):
    other = run("b", {BEAM: 23, OTHER: 40})
    results = change(other.results, training={"epochs": 18})
    other = FinishedRun(other.folder, results, "b")
    (paragraph,) = say([run("a", {BEAM: 21, OTHER: 57}), other], {"test-clean": None, "test-other": "b"})
    assert paragraph == (
        "b has a WER of 2.30% on test-clean (beam) where a has 2.10%; the difference is not significant."
        " On test-other it has 4.00% against 5.70%; the difference is significant."
        " It is not faster in these runs. The comparison is not fair: 18 epochs against 70 epochs."
    )


@pytest.mark.parametrize(
    ("outcomes", "found"),
    [
        (
            {("test-clean", 1): None, ("test-clean", 2): None},
            "none of 2",
        ),
        ({("test-clean", 1): "a", ("test-clean", 2): None}, "it is significantly worse for 1 of 2"),
        ({("test-clean", 1): "b", ("test-clean", 2): "b"}, "it is significantly better for 2 of 2"),
        (
            {("test-clean", 1): "b", ("test-clean", 2): "a"},
            "it is significantly better for 1 and worse for 1 of 2",
        ),
    ],
)
def test_seeds(run, outcomes, found):
    runs = [run(name, {BEAM: errors}, seed) for name, errors in (("a", 21), ("b", 23)) for seed in (1, 2)]
    (paragraph,) = say(runs, outcomes)
    assert paragraph == (
        "b (2 seeds) has a mean WER of 2.30 ± 0.00% on test-clean (beam) where a (2 seeds) has 2.10 ± 0.00%;"
        f" {found} pairs of seeds{'' if found[0] == 'i' else ' differs significantly'}."
        " It is not faster in these runs."
    )


def test_a_seed_that_was_not_tested_is_told(run):
    runs = [run(name, {BEAM: 21}, seed) for name in "ab" for seed in (1, 2)]
    (paragraph,) = say(runs, {("test-clean", 1): "b"})
    assert "; the difference is significant (1 more not tested)." in paragraph


def test_what_is_missing(run):
    assert say([run("a", {})]) == ["a was not evaluated on any test set."]
    assert say([run("a", {}), run("b", {})]) == ["These models were not evaluated on any test set."]
    assert say([run("a", {BEAM: 21}), run("b", {})])[0].startswith(
        "a has a WER of 2.10% on test-clean (beam); b was not evaluated there."
    )
    (paragraph,) = say([run("a", {OTHER: 1}), run("b", {("dev", "beam"): 1})])
    assert paragraph.startswith("a has a WER of 0.10% on test-other (beam); b was not evaluated there.")


def test_many_models_are_counted(run):
    names = ["a", "b", "c", "d", "e"]
    runs = [run(name, {BEAM: 50 - index}) for index, name in enumerate(names)]
    better = dict(zip(names, (None, "b", "b", "a", None), strict=True))

    def test(a, b, split, search):
        assert a.label == "a"
        return {"better": better[b.label], "difference": 1.0}

    (paragraph,) = summarise(group_runs(runs), (), test)
    assert paragraph == (
        "e has the lowest WER on test-clean (beam): 4.60%. a has 5.00%. Compared with a, 4 models are:"
        " 2 significantly better, 1 significantly worse and 1 not significantly different."
    )
