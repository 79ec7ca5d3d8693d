"""Judge the claims about hierarchical encoders by runs: each is supported, not supported, or not measured.

The rules were fixed before any run was looked at. A claim is supported if its rule holds wherever it was
tested:

- The same WER as the first run's or a lower one: the 95% interval of the difference in WER (paired bootstrap)
  ends below 5% of the first run's WER. It is not enough that no difference was found: few utterances show
  none.
- Faster than the first run: the slowest pass is faster than the first run's fastest pass, where
  `hmamba-asr efficiency` measured the RTFs of both on the same machine and utterances. Otherwise the RTFs of
  results.json, each measured once, differ by more than 10%.
- Better than a fixed stride, for chunks that follow the speech: fewer errors by both paired tests of
  `compare`, with a kept fraction of at most 1.1 times the other's.
- Boundaries at phones: at each tolerance, F1 against forced alignments is above that of as many random and
  of as many evenly spaced boundaries; the 95% interval of the gain (bootstrap over utterances) is above 0.
  This says that agreement is more than chance. The figures say how much more.

Where the first run, or the one with a fixed stride, has a WER above 90%, its errors say nothing about the
first and the third claim, and they are not measured. All verdicts are about the trained models at hand: other
seeds may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.evaluation.old_results import chunking_of
from hmamba_asr.evaluation.speed import WAYS, format_spread

SUPPORTED, NOT_SUPPORTED, NOT_MEASURED = "supported", "not supported", "not measured"
WER_MARGIN = 0.05  # of the first run's WER
USELESS_WER = 90.0  # percent: above it there is nothing to lose
RTF_MARGIN = 0.1  # of the first run's RTF, where each was measured once
RATE_MARGIN = 0.1  # of the fixed stride's kept fraction
FOLLOWS_SPEECH, FIXED = {"ctc", "router"}, {"fixed_stride"}  # kinds of chunkers

Comparison = Callable[[FinishedRun, FinishedRun], Mapping[str, Any]]  # `compare`, or one with a memory
Score = Mapping[str, Any]  # of `compare`


@dataclass(frozen=True)
class Claim:
    """What is claimed of which runs, the verdict, and its evidence: the figures, or what is missing."""

    claim: str
    runs: str
    verdict: str
    evidence: tuple[str, ...]


def check_claims(
    runs: Sequence[FinishedRun],
    *,
    compare: Comparison,
    agreement: Mapping[str, Mapping[str, Mapping[str, Any]]],
    speed: Mapping[str, Mapping[str, Any]],
) -> list[Claim]:
    """Judge every claim about these runs.

    A claim that no run bears on is listed once, as not measured.

    Parameters
    ----------
    runs
        The others are tested against the first one.
    compare
        Compares two runs as `evaluation.compare.compare` does.
    agreement
        {label: {split: what `describe_boundaries` returns}} of the runs that have it.
    speed
        {label: what `hmamba-asr efficiency` measured} of the runs that have it.
    """
    first, *others = runs
    follow = [run for run in runs if chunker_kinds(run) & FOLLOWS_SPEECH]
    fixed = [run for run in runs if chunker_kinds(run) & FIXED]
    same = [_same_wer(first, run, compare) for run in others]
    faster = [_faster(first, run, compare, speed) for run in others]
    better = [_better_than_fixed(one, other, compare) for one in follow for other in fixed]
    phones = [_at_phones(run, agreement.get(run.label, {})) for run in follow]
    missing = "one run was given, and there is nothing to compare it with"
    no_pair = "no run has a fixed stride, or none has chunks that follow the speech"
    return [
        *(same or [_unmeasured("the same WER or a lower one", first.label, missing)]),
        *(faster or [_unmeasured("faster", first.label, missing)]),
        *(better or [_unmeasured("better than a fixed stride", "", no_pair)]),
        *(phones or [_unmeasured("boundaries at phones", "", "no run has chunks that follow the speech")]),
    ]


def chunker_kinds(run: FinishedRun) -> set[str]:
    """Return the kinds of chunkers in a run's encoder: "ctc", "router", "fixed_stride"; none in a flat one.

    Results of an earlier version do not name them. Then the YAML tells.
    """
    if run.results.chunking is not None:
        return {stage.kind for stage in run.results.chunking}
    return {stage["kind"] for stage in chunking_of(run.results.hparams)}


def _unmeasured(claim: str, runs: str, *why: str) -> Claim:
    return Claim(claim, runs, NOT_MEASURED, why)


def _verdict(holds: Sequence[bool]) -> str:
    return SUPPORTED if all(holds) else NOT_SUPPORTED


def _scores(a: FinishedRun, b: FinishedRun, compare: Comparison) -> tuple[list[Score], list[str]]:
    """Return the scores of both runs that were tested, and why others were not."""
    try:
        scores = compare(a, b)["scores"]
    except ValueError as error:
        return [], [str(error)]
    useless = [score for score in scores if score["wer"][0] > USELESS_WER]
    tested = [score for score in scores if "difference" in score and score not in useless]
    why = [f"{_place(score)}: {score['verdict']}" for score in scores if "difference" not in score]
    why += [f"{_place(score)}: {a.label} has a WER of {score['wer'][0]:.2f}" for score in useless]
    return tested, why


def _place(score: Score) -> str:
    return f"{score['split']}, {score['search']}"


def _difference(score: Score) -> str:
    (before, after), (low, high) = score["wer"], score["interval_95"]
    change = f"{score['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"{_place(score)}: WER {before:.2f} -> {after:.2f}, {change}"


def _same_wer(first: FinishedRun, run: FinishedRun, compare: Comparison) -> Claim:
    claim, names = "the same WER or a lower one", f"{run.label} as {first.label}"
    tested, untested = _scores(first, run, compare)
    if not tested:
        return _unmeasured(claim, names, *untested)
    holds, lines = [], []
    for score in tested:
        margin = WER_MARGIN * score["wer"][0]
        holds.append(score["interval_95"][1] <= margin)
        outcome = "at most" if holds[-1] else "may be more than"
        lines.append(f"{_difference(score)}, {outcome} {margin:+.2f}")
    return Claim(claim, names, _verdict(holds), (*lines, *untested))


def _faster(
    first: FinishedRun, run: FinishedRun, compare: Comparison, speed: Mapping[str, Mapping[str, Any]]
) -> Claim:
    claim, names = "faster", f"{run.label} than {first.label}"
    a, b = (speed.get(item.label) for item in (first, run))
    conditions = ("split", "hardware", "precision", "protocol")
    if a and b and all(a[key] == b[key] for key in conditions):
        shared = [search for search in a["subjects"] if search in b["subjects"]]
        if shared:
            return _faster_by_passes(claim, names, a, b, shared)
    try:
        timed = [score for score in compare(first, run)["scores"] if "rtf" in score]
    except ValueError as error:
        return _unmeasured(claim, names, str(error))
    alike = [score for score in timed if score["same_hardware"]]
    if not alike:
        why = "their RTFs are of other hardware or batches" if timed else "no RTF of both"
        return _unmeasured(claim, names, f"{why}; measure both with hmamba-asr efficiency on one machine")
    holds, lines = [], []
    for score in alike:
        before, after = score["rtf"]
        holds.append(after < (1 - RTF_MARGIN) * before)
        lines.append(f"{_place(score)}: RTF {before:.3g} -> {after:.3g}, each measured once")
    return Claim(claim, names, _verdict(holds), tuple(lines))


def _faster_by_passes(
    claim: str, names: str, a: Mapping[str, Any], b: Mapping[str, Any], searches: Sequence[str]
) -> Claim:
    holds, lines = [], []
    for search in searches:
        for way in WAYS:
            before, after = (side["subjects"][search][way]["rtf"] for side in (a, b))
            holds.append(after["max"] < before["min"])
            outcome = (
                "faster" if holds[-1] else "slower" if after["min"] > before["max"] else "not told apart"
            )
            batch = 1 if way == "batch_1" else a["protocol"]["batch"]
            change = f"RTF {format_spread(before)} -> {format_spread(after)}"
            lines.append(f"{search}, batch {batch}: {change}, {outcome}")
    lines.append(f"{a['split']}, {a['protocol']['utterances']} utterances")
    return Claim(claim, names, _verdict(holds), tuple(lines))


def _kept(run: FinishedRun) -> dict[str, list[float]]:
    """Return the kept fraction of each chunking stage by split."""
    return {
        split: [stage.kept for stage in entry.stages if stage.kept is not None]
        for split, _, entry in run.scored()
        if entry.stages
    }


def _better_than_fixed(run: FinishedRun, fixed: FinishedRun, compare: Comparison) -> Claim:
    claim, names = "better than a fixed stride", f"{run.label} than {fixed.label}"
    tested, untested = _scores(fixed, run, compare)
    if not tested:
        return _unmeasured(claim, names, *untested)
    by_split, fixed_by_split = _kept(run), _kept(fixed)
    rates = [
        (split, kept, fixed_by_split[split]) for split, kept in by_split.items() if split in fixed_by_split
    ]
    shown = [
        f"{split}: kept {_fractions(kept)}, fixed stride {_fractions(other)}" for split, kept, other in rates
    ]
    within = [
        len(kept) == len(other) and all(x <= (1 + RATE_MARGIN) * y for x, y in zip(kept, other, strict=True))
        for _, kept, other in rates
    ]
    if not rates or not all(within):
        return _unmeasured(claim, names, "their kept fractions do not compare", *shown)
    outcome = {"b": "better", "a": "worse", None: "no significant difference"}
    lines = [f"{_difference(score)}, {outcome[score['better']]}" for score in tested]
    verdict = _verdict([score["better"] == "b" for score in tested])
    return Claim(claim, names, verdict, (*lines, *shown, *untested))


def _fractions(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def _at_phones(run: FinishedRun, by_split: Mapping[str, Mapping[str, Any]]) -> Claim:
    claim = "boundaries at phones"
    measured = [
        (split, tolerance, kinds)
        for split, found in by_split.items()
        for tolerance, kinds in found["agreement"].get("phones", {}).items()
    ]
    if not measured:
        missing = "no forced alignment of its test utterances was given (--alignments)"
        return _unmeasured(claim, run.label, missing)
    holds, lines = [], []
    for split, tolerance, kinds in measured:
        gains = kinds["chunks"]["f1_over"]
        holds.append(all(low > 0 for low, _ in gains.values()))
        parts = [
            f"over {kind} ({kinds[kind]['f1']:.3f}) by {low:+.3f} to {high:+.3f}"
            for kind, (low, high) in gains.items()
        ]
        lines.append(f"{split}, {tolerance} ms: F1 {kinds['chunks']['f1']:.3f}, {', '.join(parts)}")
    return Claim(claim, run.label, _verdict(holds), tuple(lines))
