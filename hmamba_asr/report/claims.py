"""What runs say about the claims that are made for hierarchical encoders: each supported, not supported, or
not measured.

The rules, fixed before any run is looked at; a claim is supported if its rule holds wherever it was tested:

- The same WER as the first run's or a lower one: the 95% interval of the difference in WER (paired bootstrap)
  ends below 5% of the first run's WER. That no difference was found would not do: few utterances find none.
- Faster than the first run: of the RTFs that `hmamba-asr efficiency` measured of both on the same machine and
  utterances, the slowest pass is faster than the first run's fastest. Without those, the RTFs of
  results.json, each measured once, by more than 10%.
- Better than a fixed stride, of chunks that follow the speech: fewer errors by both paired tests of
  `compare`, with a kept fraction of at most 1.1 times the other's.
- Boundaries at phones: F1 against forced alignments above that of as many random and evenly spaced
  boundaries, at each tolerance with a 95% interval (bootstrap over utterances) above 0. This is more than
  chance; how much more, the figures say.

Where the first run, or the one with a fixed stride, has a WER above 90%, errors say nothing about either
claim, and it is not measured. All of it is about the trained models at hand: other seeds may differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmamba_asr.evaluation.compare import RunFolder
from hmamba_asr.evaluation.speed import WAYS, format_spread

SUPPORTED, NOT_SUPPORTED, NOT_MEASURED = "supported", "not supported", "not measured"
WER_MARGIN = 0.05  # of the first run's WER
USELESS_WER = 90.0  # percent: above it there is nothing to lose
RTF_MARGIN = 0.1  # of the first run's RTF, where each was measured once
RATE_MARGIN = 0.1  # of the fixed stride's kept fraction
LEARNED, FIXED = {"DynamicChunker", "CTCChunker", "HNetChunker"}, {"FixedStrideChunker"}

Comparison = Callable[[RunFolder, RunFolder], Mapping[str, Any]]  # `compare`, or one that remembers


@dataclass(frozen=True)
class Claim:
    """What is claimed, of which run against which, the verdict, and the figures or what is missing."""

    claim: str
    runs: str
    verdict: str
    evidence: tuple[str, ...]


def check_claims(
    runs: Sequence[RunFolder],
    *,
    compare: Comparison,
    agreement: Mapping[str, Mapping[str, Mapping[str, Any]]],
    speed: Mapping[str, Mapping[str, Any]],
) -> list[Claim]:
    """Every claim about these runs; ``agreement`` {label: {split: `describe_boundaries`}} and ``speed``
    {label: what `hmamba-asr efficiency` measured} of the runs that have them. A claim that no run bears on is
    there once, as not measured."""
    first, *others = runs
    learned, fixed = ([run for run in runs if chunkers(run) & kinds] for kinds in (LEARNED, FIXED))
    same = [_same_wer(first, run, compare) for run in others]
    faster = [_faster(first, run, compare, speed) for run in others]
    better = [_better_than_fixed(one, other, compare) for one in learned for other in fixed]
    phones = [_at_phones(run, agreement.get(run.label, {})) for run in learned]
    missing = "one run was given, and nothing to set it beside"
    no_pair = "no run has a fixed stride, or none chunks that follow the speech"
    return [
        *(same or [_unmeasured("the same WER or a lower one", first.label, missing)]),
        *(faster or [_unmeasured("faster", first.label, missing)]),
        *(better or [_unmeasured("better than a fixed stride", "", no_pair)]),
        *(phones or [_unmeasured("boundaries at phones", "", "no run has chunks that follow the speech")]),
    ]


def chunkers(run: RunFolder) -> set[str]:
    """The classes of our chunkers that a run's YAML names."""
    return set(re.findall(rf"!new:\S*\.({'|'.join(sorted(LEARNED | FIXED))})\b", run.results["hparams"]))


def _unmeasured(claim: str, runs: str, *why: str) -> Claim:
    return Claim(claim, runs, NOT_MEASURED, why)


def _verdict(holds: Sequence[bool]) -> str:
    return SUPPORTED if all(holds) else NOT_SUPPORTED


def _scores(a: RunFolder, b: RunFolder, compare: Comparison) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Scores of both that were tested, and why others were not."""
    try:
        scores = compare(a, b)["scores"]
    except ValueError as error:
        return [], [str(error)]
    useless = [score for score in scores if score["wer"][0] > USELESS_WER]
    tested = [score for score in scores if "difference" in score and score not in useless]
    why = [f"{s['split']}, {s['search']}: {s['verdict']}" for s in scores if "difference" not in s]
    return tested, [
        *why,
        *(f"{s['split']}, {s['search']}: {a.label} has a WER of {s['wer'][0]:.2f}" for s in useless),
    ]


def _difference(score: Mapping[str, Any]) -> str:
    low, high = score["interval_95"]
    rates = "{:.2f} -> {:.2f}".format(*score["wer"])
    return f"{score['split']}, {score['search']}: WER {rates}, {score['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


def _same_wer(first: RunFolder, run: RunFolder, compare: Comparison) -> Claim:
    claim, names = "the same WER or a lower one", f"{run.label} as {first.label}"
    tested, untested = _scores(first, run, compare)
    if not tested:
        return _unmeasured(claim, names, *untested)
    margins = [WER_MARGIN * score["wer"][0] for score in tested]
    holds = [score["interval_95"][1] <= margin for score, margin in zip(tested, margins, strict=True)]
    lines = [
        f"{_difference(score)}, {'at most' if within else 'may be more than'} {margin:+.2f}"
        for score, margin, within in zip(tested, margins, holds, strict=True)
    ]
    return Claim(claim, names, _verdict(holds), (*lines, *untested))


def _faster(
    first: RunFolder, run: RunFolder, compare: Comparison, speed: Mapping[str, Mapping[str, Any]]
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
    holds = [score["rtf"][1] < (1 - RTF_MARGIN) * score["rtf"][0] for score in alike]
    lines = [
        "{}, {}: RTF {:.3g} -> {:.3g}, each measured once".format(s["split"], s["search"], *s["rtf"])
        for s in alike
    ]
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
            lines.append(
                f"{search}, batch {batch}: RTF {format_spread(before)} -> {format_spread(after)}, {outcome}"
            )
    return Claim(
        claim, names, _verdict(holds), (*lines, f"{a['split']}, {a['protocol']['utterances']} utterances")
    )


def _kept(run: RunFolder) -> dict[str, list[float]]:
    """Kept fractions of the stages by split."""
    return {
        split: [stage["kept"] for stage in entry["stages"]]
        for split, _, entry in run.scored()
        if entry.get("stages")
    }


def _better_than_fixed(learned: RunFolder, fixed: RunFolder, compare: Comparison) -> Claim:
    claim, names = "better than a fixed stride", f"{learned.label} than {fixed.label}"
    tested, untested = _scores(fixed, learned, compare)
    if not tested:
        return _unmeasured(claim, names, *untested)
    ours, theirs = _kept(learned), _kept(fixed)
    rates = [(split, mine, theirs[split]) for split, mine in ours.items() if split in theirs]
    shown = [
        f"{split}: kept {_fractions(mine)}, fixed stride {_fractions(other)}" for split, mine, other in rates
    ]
    within = [
        len(mine) == len(other) and all(x <= (1 + RATE_MARGIN) * y for x, y in zip(mine, other, strict=True))
        for _, mine, other in rates
    ]
    if not rates or not all(within):
        return _unmeasured(claim, names, "their kept fractions do not compare", *shown)
    outcome = {"b": "better", "a": "worse", None: "no significant difference"}
    lines = [f"{_difference(score)}, {outcome[score['better']]}" for score in tested]
    return Claim(
        claim, names, _verdict([score["better"] == "b" for score in tested]), (*lines, *shown, *untested)
    )


def _fractions(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def _at_phones(run: RunFolder, by_split: Mapping[str, Mapping[str, Any]]) -> Claim:
    claim = "boundaries at phones"
    measured = [
        (split, tolerance, kinds)
        for split, found in by_split.items()
        for tolerance, kinds in found["agreement"].get("phones", {}).items()
    ]
    if not measured:
        return _unmeasured(
            claim, run.label, "no forced alignment of its test utterances was given (--alignments)"
        )
    holds, lines = [], []
    for split, tolerance, kinds in measured:
        over = kinds["chunks"]["f1_over"]
        holds.append(all(low > 0 for low, _ in over.values()))
        parts = [
            f"over {kind} ({kinds[kind]['f1']:.3f}) by {low:+.3f} to {high:+.3f}"
            for kind, (low, high) in over.items()
        ]
        lines.append(f"{split}, {tolerance} ms: F1 {kinds['chunks']['f1']:.3f}, {', '.join(parts)}")
    return Claim(claim, run.label, _verdict(holds), tuple(lines))
