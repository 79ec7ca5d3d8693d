"""Judge the claims about hierarchical encoders by runs: each is supported, not supported, or not measured.

The rules were fixed before any run was looked at. The first model is the one that others are compared with.
A model is all runs that differ only in the seed. Runs of two models are compared in pairs, those with the
same seed first. A claim is supported if its rule holds for each pair, on each test set and with each search:

- The same WER or a lower one: the 95% interval of the difference in WER (paired bootstrap) ends below 5% of
  the first model's WER. A difference that is not significant is not enough: few utterances show none.
- Faster: the slowest pass is faster than the fastest pass of the first model. `hmamba-asr efficiency` must
  have measured both on one machine with the same utterances. Without it, the RTF in results.json must be
  lower by more than 10%, because each was measured once.
- Better than a fixed stride: chunks that follow the speech give fewer errors by both paired tests (bootstrap
  and MAPSSWE). The model keeps at most 1.1 times as many chunks as the one with a fixed stride.
- Boundaries at phones: F1 against forced alignments is above that of random boundaries and above that of
  evenly spaced ones. The 95% interval of each gain (bootstrap over utterances) is above 0 at each tolerance.
  This means that the agreement is more than chance. The figures tell how much more.

A WER above 90% says nothing about the errors of a model. Where the first model or the fixed stride has one,
the claims about WER are not measured. A verdict holds for the trained models at hand: other seeds may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.evaluation.old_results import chunking_of
from hmamba_asr.evaluation.speed import WAYS, format_spread
from hmamba_asr.report.seeds import Model, pair_runs, training_flags

SUPPORTED, NOT_SUPPORTED, NOT_MEASURED = "supported", "not supported", "not measured"
WER_MARGIN = 0.05  # of the first model's WER
USELESS_WER = 90.0  # percent: above it there is nothing to lose
RTF_MARGIN = 0.1  # of the first model's RTF, where each was measured once
RATE_MARGIN = 0.1  # of the fixed stride's kept fraction
FOLLOWS_SPEECH, FIXED = {"ctc", "router"}, {"fixed_stride"}  # kinds of chunkers

SAME_WER, FASTER, OVER_FIXED, AT_PHONES = "WER", "speed", "fixed stride", "phones"  # kinds of claims

Comparison = Callable[[FinishedRun, FinishedRun], Mapping[str, Any]]  # `compare`, or one with a memory
Score = Mapping[str, Any]  # of `compare`


@dataclass(frozen=True)
class Claim:
    """One sentence that is claimed, and what the runs say about it.

    Attributes
    ----------
    kind
        SAME_WER, FASTER, OVER_FIXED or AT_PHONES.
    text
        The sentence.
    verdict
        SUPPORTED, NOT_SUPPORTED or NOT_MEASURED.
    key
        The one figure that decided, or what is missing.
    evidence
        All figures, one a line.
    seeds
        For how many pairs of seeds the rule holds; empty with one pair.
    held, checked
        In how many places the rule holds, and in how many it was tested.
    flags
        Why the two models are no fair pair.
    model
        The label of the model that the claim is about.
    """

    kind: str
    text: str
    verdict: str
    key: str
    evidence: tuple[str, ...] = ()
    seeds: str = ""
    held: int = 0
    checked: int = 0
    flags: tuple[str, ...] = ()
    model: str = ""


@dataclass(frozen=True)
class _Check:
    """A rule in one place.

    Attributes
    ----------
    slack
        By what the rule holds; below 0 it does not. The check with the least slack decides.
    key
        The figure in a few words.
    line
        The figure with all that belongs to it.
    """

    slack: float
    holds: bool
    key: str
    line: str


@dataclass(frozen=True)
class _Judged:
    """What one pair of runs says: checks, further lines, and why there are no more checks."""

    checks: tuple[_Check, ...] = ()
    shown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def check_claims(
    models: Sequence[Model],
    *,
    compare: Comparison,
    agreement: Mapping[str, Mapping[str, Mapping[str, Any]]],
    speed: Mapping[str, Mapping[str, Any]],
) -> list[Claim]:
    """Judge every claim about these models.

    A claim that no model bears on is listed once, as not measured.

    Parameters
    ----------
    models
        The others are tested against the first one.
    compare
        Compares two runs as `evaluation.compare.compare` does.
    agreement
        {label of a run: {split: what `describe_boundaries` returns}} of the runs that have it.
    speed
        {label of a run: what `hmamba-asr efficiency` measured} of the runs that have it.
    """
    first, *others = models
    follow = [model for model in models if chunker_kinds(model.runs[0]) & FOLLOWS_SPEECH]
    fixed = [model for model in models if chunker_kinds(model.runs[0]) & FIXED]
    same = [
        _judge_pairs(
            SAME_WER,
            f"{model.label} has the same WER as {first.label}, or a lower one",
            first,
            model,
            lambda a, b: _same_wer(a, b, compare),
        )
        for model in others
    ]
    faster = [
        _judge_pairs(
            FASTER,
            f"{model.label} is faster than {first.label}",
            first,
            model,
            lambda a, b: _faster(a, b, compare, speed),
        )
        for model in others
    ]
    better = [
        _judge_pairs(
            OVER_FIXED,
            f"{one.label} makes fewer errors than {other.label}, which has a fixed stride",
            other,
            one,
            lambda a, b: _better_than_fixed(a, b, compare),
        )
        for one in follow
        for other in fixed
    ]
    phones = [
        _judge(
            AT_PHONES,
            f"{model.label} puts its boundaries at phones",
            model,
            [(f"seed {run.results.seed}", _at_phones(agreement.get(run.label, {}))) for run in model.runs],
        )
        for model in follow
    ]
    alone = f"needs a second model beside {first.label}"
    no_pair = "needs a model with a fixed stride and one whose chunks follow the speech"
    return [
        *(same or [Claim(SAME_WER, "The same WER, or a lower one", NOT_MEASURED, alone)]),
        *(faster or [Claim(FASTER, "Faster", NOT_MEASURED, alone)]),
        *(better or [Claim(OVER_FIXED, "Fewer errors than with a fixed stride", NOT_MEASURED, no_pair)]),
        *(
            phones
            or [
                Claim(
                    AT_PHONES,
                    "Boundaries stand at phones",
                    NOT_MEASURED,
                    "needs a model whose chunks follow the speech",
                )
            ]
        ),
    ]


def chunker_kinds(run: FinishedRun) -> set[str]:
    """Return the kinds of chunkers in a run's encoder: "ctc", "router", "fixed_stride"; none in a flat one.

    Results of an earlier version do not name them. Then the YAML tells.
    """
    if run.results.chunking is not None:
        return {stage.kind for stage in run.results.chunking}
    return {stage["kind"] for stage in chunking_of(run.results.hparams)}


def _judge_pairs(
    kind: str, text: str, a: Model, b: Model, judge: Callable[[FinishedRun, FinishedRun], _Judged]
) -> Claim:
    """Judge a claim about ``b`` by all pairs of runs."""
    pairs = [(_pair_name(one, other), judge(one, other)) for one, other in pair_runs(a, b)]
    return _judge(kind, text, b, pairs, tuple(training_flags(a, b)))


def _pair_name(a: FinishedRun, b: FinishedRun) -> str:
    seeds = [run.results.seed for run in (a, b)]
    return f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seeds {seeds[1]} and {seeds[0]}"


def _judge(
    kind: str,
    text: str,
    model: Model,
    judged: Sequence[tuple[str, _Judged]],
    flags: tuple[str, ...] = (),
) -> Claim:
    several = len(judged) > 1
    lines, held, measured, checks = [], 0, 0, []
    for name, found in judged:
        start = f"{name}: " if several else ""
        lines += [start + check.line for check in found.checks]
        lines += [start + line for line in (*found.shown, *found.missing)]
        if found.checks:
            measured += 1
            held += all(check.holds for check in found.checks)
            checks += [(check, start) for check in found.checks]
    if not checks:
        missing = tuple(dict.fromkeys(line for _, found in judged for line in found.missing))
        evidence = tuple(lines) if any(found.shown for _, found in judged) else missing
        return Claim(kind, text, NOT_MEASURED, missing[0], evidence, flags=flags, model=model.label)
    verdict = SUPPORTED if held == measured else NOT_SUPPORTED
    decisive, start = min(checks, key=lambda pair: (pair[0].holds, pair[0].slack))
    seeds = ""
    if several:
        rest = len(judged) - measured
        seeds = (
            f"holds for {held} of {measured} pairs of seeds"
            if kind != AT_PHONES
            else (f"holds for {held} of {measured} seeds")
        )
        seeds += f", {rest} not measured" if rest else ""
    return Claim(
        kind,
        text,
        verdict,
        start + decisive.key,
        tuple(lines),
        seeds=seeds,
        held=sum(check.holds for check, _ in checks),
        checked=len(checks),
        flags=flags,
        model=model.label,
    )


def _scores(a: FinishedRun, b: FinishedRun, compare: Comparison) -> tuple[list[Score], list[str]]:
    """Return the scores of both runs that were tested, and why others were not."""
    try:
        scores = compare(a, b)["scores"]
    except ValueError as error:
        return [], [str(error)]
    useless = [score for score in scores if score["wer"][0] > USELESS_WER]
    tested = [score for score in scores if "difference" in score and score not in useless]
    why = [f"{_place(score)}: {score['verdict']}" for score in scores if "difference" not in score]
    why += [f"{_place(score)}: {a.label} has a WER of {score['wer'][0]:.2f}%" for score in useless]
    return tested, why


def _place(score: Score) -> str:
    return f"{score['split']}, {score['search']}"


def _change(score: Score) -> str:
    low, high = score["interval_95"]
    return f"{score['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


def _difference(score: Score) -> str:
    before, after = score["wer"]
    return f"{_place(score)}: WER {before:.2f}% → {after:.2f}%, difference {_change(score)}"


def _same_wer(first: FinishedRun, run: FinishedRun, compare: Comparison) -> _Judged:
    tested, untested = _scores(first, run, compare)
    checks = []
    for score in tested:
        margin = WER_MARGIN * score["wer"][0]
        holds = score["interval_95"][1] <= margin
        outcome = "at most" if holds else "may be more than"
        checks.append(
            _Check(
                (margin - score["interval_95"][1]) / max(margin, 1e-9),
                holds,
                f"{_change(score)} points on {_place(score)}; {margin:+.2f} is allowed",
                f"{_difference(score)}, {outcome} {margin:+.2f}",
            )
        )
    return _Judged(tuple(checks), missing=tuple(untested))


def _faster(
    first: FinishedRun, run: FinishedRun, compare: Comparison, speed: Mapping[str, Mapping[str, Any]]
) -> _Judged:
    a, b = (speed.get(item.label) for item in (first, run))
    conditions = ("split", "hardware", "precision", "protocol")
    if a and b and all(a[key] == b[key] for key in conditions):
        shared = [search for search in a["subjects"] if search in b["subjects"]]
        if shared:
            return _faster_by_passes(a, b, shared)
    try:
        timed = [score for score in compare(first, run)["scores"] if "rtf" in score]
    except ValueError as error:
        return _Judged(missing=(str(error),))
    alike = [score for score in timed if score["same_hardware"]]
    if not alike:
        why = "their RTFs are of other hardware or batches" if timed else "no RTF of both"
        return _Judged(missing=(f"{why}; measure both with hmamba-asr efficiency on one machine",))
    checks = []
    for score in alike:
        before, after = score["rtf"]
        slack = 1 - RTF_MARGIN - after / before if before else -1.0
        checks.append(
            _Check(
                slack,
                after < (1 - RTF_MARGIN) * before,
                f"RTF {before:.3g} → {after:.3g}{_times(before, after)} on {_place(score)}",
                f"{_place(score)}: RTF {before:.3g} → {after:.3g}, each measured once",
            )
        )
    return _Judged(tuple(checks))


def _times(before: float, after: float) -> str:
    return f" ({after / before:.2f} times)" if before else ""


def _faster_by_passes(a: Mapping[str, Any], b: Mapping[str, Any], searches: Sequence[str]) -> _Judged:
    checks = []
    for search in searches:
        for way in WAYS:
            before, after = (side["subjects"][search][way]["rtf"] for side in (a, b))
            holds = after["max"] < before["min"]
            outcome = "faster" if holds else "slower" if after["min"] > before["max"] else "not told apart"
            batch = 1 if way == "batch_1" else a["protocol"]["batch"]
            medians = before["median"], after["median"]
            change = f"RTF {medians[0]:.3g} → {medians[1]:.3g}{_times(*medians)}"
            spreads = f"RTF {format_spread(before)} → {format_spread(after)}"
            checks.append(
                _Check(
                    1 - after["max"] / before["min"],
                    holds,
                    f"{change} with {search}, batch {batch}: {outcome}",
                    f"{search}, batch {batch}: {spreads}, {outcome}",
                )
            )
    return _Judged(tuple(checks), (f"{a['split']}, {a['protocol']['utterances']} utterances",))


def _kept(run: FinishedRun) -> dict[str, list[float]]:
    """Return the kept fraction of each chunking stage by split."""
    return {
        split: [stage.kept for stage in entry.stages if stage.kept is not None]
        for split, _, entry in run.scored()
        if entry.stages
    }


def _better_than_fixed(fixed: FinishedRun, run: FinishedRun, compare: Comparison) -> _Judged:
    tested, untested = _scores(fixed, run, compare)
    if not tested:
        return _Judged(missing=tuple(untested))
    by_split, fixed_by_split = _kept(run), _kept(fixed)
    rates = [
        (split, kept, fixed_by_split[split]) for split, kept in by_split.items() if split in fixed_by_split
    ]
    shown = tuple(
        f"{split}: keeps {_fractions(kept)}, the fixed stride {_fractions(other)}"
        for split, kept, other in rates
    )
    within = [
        len(kept) == len(other) and all(x <= (1 + RATE_MARGIN) * y for x, y in zip(kept, other, strict=True))
        for _, kept, other in rates
    ]
    if not rates or not all(within):
        return _Judged((), shown, ("their kept fractions do not compare",))
    outcome = {"b": "better", "a": "worse", None: "no significant difference"}
    checks = tuple(
        _Check(
            -score["interval_95"][1],
            score["better"] == "b",
            f"{_change(score)} points on {_place(score)}: {outcome[score['better']]}",
            f"{_difference(score)}: {outcome[score['better']]}",
        )
        for score in tested
    )
    return _Judged(checks, shown, tuple(untested))


def _fractions(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def _at_phones(by_split: Mapping[str, Mapping[str, Any]]) -> _Judged:
    measured = [
        (split, tolerance, kinds)
        for split, found in by_split.items()
        for tolerance, kinds in found["agreement"].get("phones", {}).items()
    ]
    if not measured:
        return _Judged(missing=("needs forced alignments of test utterances (--alignments)",))
    checks = []
    for split, tolerance, kinds in measured:
        gains = kinds["chunks"]["f1_over"]
        parts = [
            f"over {kind} ({kinds[kind]['f1']:.3f}) by {low:+.3f} to {high:+.3f}"
            for kind, (low, high) in gains.items()
        ]
        f1 = f"F1 {kinds['chunks']['f1']:.3f}"
        lowest = min(gains, key=lambda kind: gains[kind][0])
        checks.append(
            _Check(
                gains[lowest][0],
                all(low > 0 for low, _ in gains.values()),
                f"{f1} against {kinds[lowest]['f1']:.3f} of {lowest} boundaries, {tolerance} ms, {split}",
                f"{split}, {tolerance} ms: {f1}, {', '.join(parts)}",
            )
        )
    return _Judged(tuple(checks))
