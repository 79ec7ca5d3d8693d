"""Claims: each rule on comparisons that hold, fail and are missing; nothing is supported that was not
measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.evaluation.results import load_results, plain
from hmamba_asr.report.claims import (
    AT_PHONES,
    FASTER,
    NOT_MEASURED,
    NOT_SUPPORTED,
    OVER_FIXED,
    SAME_WER,
    SUPPORTED,
    Claim,
    check_claims,
    chunker_kinds,
)
from hmamba_asr.report.seeds import Model, group_runs

RESULTS = Path(__file__).resolve().parents[2] / "recipes" / "librispeech" / "results"
KINDS = {"flat": [], "ctc": [{"kind": "ctc"}], "fixed": [{"kind": "fixed_stride"}]}


@pytest.fixture
def run(make_results, make_entry):
    def make(name: str, kind: str = "flat", kept: float | None = None, **changes) -> FinishedRun:
        entry = make_entry(words=100, sentences=10, errors=10, audio=None)
        if kept is not None:
            entry["stages"] = [{"kept": kept}]
        results = make_results(name, {"dev": {"beam": entry}}, chunking=KINDS[kind], **changes)
        return FinishedRun(Path(name) / str(results.seed), results, name)

    return make


def score(low: float, high: float, *, wer: float = 10.0, better: str | None = None, **more) -> dict:
    middle = (low + high) / 2
    tested = {"difference": middle, "interval_95": [low, high], "better": better, "verdict": "some"}
    return {"split": "dev", "search": "beam", "wer": [wer, wer + middle], **tested, **more}


def check(runs, scores=(), agreement=None, speed=None) -> dict[str, tuple[str, str]]:
    """{kind: (verdict, what decided and the evidence)}; every pair of runs compares as ``scores``."""
    found = check_claims(
        [Model(item.label, (item,)) for item in runs],
        compare=lambda a, b: {"scores": list(scores)},
        agreement=agreement or {},
        speed=speed or {},
    )
    assert all((item.held == item.checked > 0) == (item.verdict == SUPPORTED) for item in found)
    return {item.kind: (item.verdict, "; ".join((item.key, *item.evidence))) for item in found}


def test_one_run_supports_nothing(run):
    assert {claim: verdict for claim, (verdict, _) in check([run("a")]).items()} == dict.fromkeys(
        (SAME_WER, FASTER, OVER_FIXED, AT_PHONES), NOT_MEASURED
    )


@pytest.mark.parametrize(
    ("scores", "verdict", "shown"),
    [
        (
            [score(-0.4, 0.4)],
            SUPPORTED,
            "WER 10.00% → 10.00%, difference +0.00 (-0.40 to +0.40), at most +0.50",
        ),
        ([score(-3.0, -1.0)], SUPPORTED, "at most +0.50"),
        (
            [score(-3.0, 0.6)],
            NOT_SUPPORTED,
            "may be more than +0.50",
        ),  # no difference was found, because few utterances find none
        ([score(-0.4, 0.4), score(1.0, 2.0)], NOT_SUPPORTED, "may be more than +0.50"),
        ([score(-0.4, 0.4, wer=95.0)], NOT_MEASURED, "dev, beam: a has a WER of 95.00%"),
        (
            [{"split": "dev", "search": "beam", "wer": [1.0, 2.0], "verdict": "cannot be tested: x"}],
            NOT_MEASURED,
            "tested: x",
        ),
    ],
)
def test_the_same_wer_is_within_a_margin(run, scores, verdict, shown):
    found = check([run("a"), run("b")], scores)[SAME_WER]
    assert found[0] == verdict and shown in found[1]


def speeds(*passes: float, hardware: str = "x") -> dict:
    spread = {"min": min(passes), "median": sorted(passes)[1], "max": max(passes)}
    ways = {way: {"rtf": spread} for way in ("batch_1", "batched")}
    same = {
        "split": "dev",
        "hardware": hardware,
        "precision": "fp32",
        "protocol": {"batch": 8, "utterances": 16},
    }
    return {**same, "subjects": {"beam": ways}}


@pytest.mark.parametrize(
    ("after", "verdict", "outcome"),
    [
        ((1.0, 1.1, 1.9), SUPPORTED, "faster"),
        ((1.0, 1.1, 2.1), NOT_SUPPORTED, "told apart"),
        ((4.0,) * 3, NOT_SUPPORTED, "slower"),
    ],
)
def test_faster_is_every_pass(run, after, verdict, outcome):
    once = [score(0, 0, rtf=[1.0, 0.1], same_hardware=True)]
    measured = {"a": speeds(2.0, 2.5, 3.0), "b": speeds(*after)}
    found = check([run("a"), run("b")], once, speed=measured)[FASTER]
    assert found[0] == verdict and found[1].count(outcome) == 3 and "batch 8: RTF 2.5 (2 to 3) →" in found[1]


@pytest.mark.parametrize(
    ("rtf", "same", "verdict"),
    [([1.0, 0.89], True, SUPPORTED), ([1.0, 0.91], True, NOT_SUPPORTED), ([1.0, 0.1], False, NOT_MEASURED)],
)
def test_an_rtf_that_was_measured_once_has_a_margin(run, rtf, same, verdict):
    scores = [score(0, 0, rtf=rtf, same_hardware=same)]
    other_machine = {"a": speeds(2, 2, 2), "b": speeds(1, 1, 1, hardware="y")}
    for speed in (None, other_machine):
        assert check([run("a"), run("b")], scores, speed=speed)[FASTER][0] == verdict
    assert check([run("a"), run("b")], [score(0, 0)])[FASTER][0] == NOT_MEASURED


@pytest.mark.parametrize(
    ("better", "kept", "verdict"),
    [
        ("b", 0.5, SUPPORTED),
        ("b", 0.54, SUPPORTED),
        (None, 0.5, NOT_SUPPORTED),
        ("a", 0.5, NOT_SUPPORTED),
        ("b", 0.6, NOT_MEASURED),
    ],
)
def test_better_than_a_fixed_stride_of_that_rate(run, better, kept, verdict):
    runs = [run("flat"), run("learned", "ctc", kept), run("fixed", "fixed", 0.5)]
    found = check(runs, [score(-1.0, 1.0, better=better)])[OVER_FIXED]
    assert found[0] == verdict and f"keeps {kept:.3f}, the fixed stride 0.500" in found[1]
    assert check(runs[:2], [score(-1.0, 1.0, better="b")])[OVER_FIXED][0] == NOT_MEASURED


def test_boundaries_at_phones_beat_both_baselines_at_each_tolerance(run):
    def agreement(*lows: float) -> dict:
        def kinds(low: float) -> dict:
            over = {"random": [0.1, 0.2], "uniform": [low, 0.3]}
            return {"chunks": {"f1": 0.6, "f1_over": over}, "random": {"f1": 0.4}, "uniform": {"f1": 0.5}}

        return {
            "learned": {
                "dev": {"agreement": {"phones": dict(zip(("20", "40"), map(kinds, lows), strict=True))}}
            }
        }

    runs = [run("learned", "ctc", 0.5)]
    found = check(runs, agreement=agreement(0.01, 0.02))[AT_PHONES]
    assert (
        found[0] == SUPPORTED and "dev, 20 ms: F1 0.600, over random (0.400) by +0.100 to +0.200" in found[1]
    )
    assert check(runs, agreement=agreement(0.01, -0.02))[AT_PHONES][0] == NOT_SUPPORTED
    missing = check(runs)[AT_PHONES]
    assert missing[0] == NOT_MEASURED and "--alignments" in missing[1]


def judged_seeds(run, scores: dict[int, dict], **changes) -> Claim:
    """The claim about the WER of b against a, whose seeds compare as ``scores``."""
    runs = [run(name, seed=seed, **more) for name, more in (("a", {}), ("b", changes)) for seed in scores]
    models = group_runs(runs)
    assert [len(model.runs) for model in models] == [len(scores)] * 2

    def compare(a: FinishedRun, b: FinishedRun) -> dict:
        assert a.results.seed == b.results.seed
        return {"scores": [scores[b.results.seed]]}

    claims = check_claims(models, compare=compare, agreement={}, speed={})
    return next(claim for claim in claims if claim.kind == SAME_WER)


GOOD, BAD = score(-0.4, 0.4), score(1.0, 2.0)
UNTESTED = {"split": "dev", "search": "beam", "wer": [1.0, 2.0], "verdict": "cannot be tested"}


@pytest.mark.parametrize(
    ("scores", "verdict", "seeds"),
    [
        ({1: GOOD, 2: GOOD}, SUPPORTED, "holds for 2 of 2 pairs of seeds"),
        ({1: GOOD, 2: BAD, 3: GOOD}, NOT_SUPPORTED, "holds for 2 of 3 pairs of seeds"),
        ({1: BAD, 2: BAD}, NOT_SUPPORTED, "holds for 0 of 2 pairs of seeds"),
        ({1: GOOD, 2: UNTESTED}, SUPPORTED, "holds for 1 of 1 pairs of seeds, 1 not measured"),
        ({1: UNTESTED, 2: UNTESTED}, NOT_MEASURED, ""),
    ],
)
def test_a_claim_is_supported_by_every_pair_of_seeds(run, scores, verdict, seeds):
    claim = judged_seeds(run, scores)
    assert (claim.verdict, claim.seeds) == (verdict, seeds)
    assert claim.text == "b has the same WER as a, or a lower one" and claim.flags == ()
    if BAD in scores.values():
        worst = next(seed for seed, found in scores.items() if found is BAD)
        assert claim.key == f"seed {worst}: +1.50 (+1.00 to +2.00) points on dev, beam; +0.50 is allowed"
    if verdict == NOT_MEASURED:
        assert claim.evidence == (claim.key,) == ("dev, beam: cannot be tested",)
    else:
        assert all(f"seed {seed}: " in line for seed, line in zip(scores, claim.evidence, strict=True))


def test_a_claim_about_an_unfair_pair_is_flagged(run, make_results):
    training = plain(make_results("a", {}), "results")["training"]
    other = {**training, "epochs": 35, "train_splits": ["train-clean-5"]}
    claim = judged_seeds(run, {1: GOOD, 2: GOOD}, training=other)
    assert claim.flags == (
        "35 epochs against 70 epochs",
        "trained on train-clean-5 against train-clean-100",
    )


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("conmamba_an4.1234", set()),
        ("hmamba_an4.1234", {"ctc"}),
        ("router_an4.1234", {"router"}),  # a model that was removed
        ("hnet_an4.1234", {"router"}),
        ("fixedstride_an4.1234", {"fixed_stride"}),
    ],
)
def test_results_of_an_earlier_version_are_told_apart_by_their_yaml(name, kinds):
    (results,) = load_results([RESULTS / f"{name}.results.json"])
    assert results.chunking is None
    assert chunker_kinds(FinishedRun(Path(name), results, name)) == kinds
