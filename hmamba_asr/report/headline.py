"""The first sentences of the page: who makes fewer errors, whether that is significant, and who is faster."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.report.claims import FASTER, NOT_MEASURED, SUPPORTED, Claim
from hmamba_asr.report.seeds import Model, pair_runs, training_flags

NAMED = 3  # other models that get a sentence each; more are counted

Test = Callable[[FinishedRun, FinishedRun, str, str], Mapping[str, Any] | None]


def summarise(models: Sequence[Model], claims: Sequence[Claim], test: Test) -> list[str]:
    """Say in a few sentences what the runs show, one paragraph for each model but the first.

    The sentences are about one search: the last one that most models have.

    Parameters
    ----------
    models
        The others are compared with the first one.
    claims
        What `check_claims` found about them.
    test
        Tests two runs on a split with a search: the score that `compare` returns, or None.
    """
    places = _places(models)
    first, *others = models
    if not places:
        one = f"{first.label} was" if not others else "These models were"
        return [f"{one} not evaluated on any test set."]
    (split, search), *_ = places
    if not others:
        rates = _list(f"{_wer(first, *place)} on {place[0]}" for place in places if first.rates(*place))
        name, mean = _named(first, split, search), " mean" if first.several else ""
        alone = "No other model was given to compare it with."
        return [f"{name} has a{mean} WER of {rates} ({search}). {alone}"]
    if len(others) > NAMED:
        return _count(models, split, search, test)
    paragraphs = []
    for model in others:
        sentences = [_compare(first, model, split, search, test)]
        sentences += _further(first, model, places[1:], test)
        sentences.append(_speed(model, claims))
        if flags := training_flags(first, model):
            sentences.append(f"The comparison is not fair: {'; '.join(flags)}.")
        paragraphs.append(" ".join(sentence for sentence in sentences if sentence))
    return paragraphs


def _places(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Return the splits with the search that the sentences are about; those of most models come first."""
    having: dict[str, Counter[str]] = {}
    for model in models:
        for split, search in dict.fromkeys(scored[:2] for run in model.runs for scored in run.scored()):
            having.setdefault(search, Counter())[split] += 1
    if not having:
        return []
    most = max(max(counts.values()) for counts in having.values())
    search = [name for name, counts in having.items() if max(counts.values()) == most][-1]
    order = dict.fromkeys(
        split for model in models for run in model.runs for split, name, _ in run.scored() if name == search
    )
    return [(split, search) for split in sorted(order, key=lambda split: -having[search][split])]


def _wer(model: Model, split: str, search: str) -> str:
    """Write the WER without an interval: `2.31%`, or mean and standard deviation over seeds."""
    rates = model.rates(split, search)
    if len(rates) == 1:
        return f"{rates[0]:.2f}%"
    return f"{statistics.mean(rates):.2f} ± {statistics.stdev(rates):.2f}%"


def _named(model: Model, split: str, search: str) -> str:
    """Name a model, and the number of its seeds that were evaluated so, if there are several."""
    seeds = len(model.rates(split, search))
    return f"{model.label} ({seeds} seeds)" if seeds > 1 else model.label


def _compare(first: Model, model: Model, split: str, search: str, test: Test) -> str:
    mine, theirs = model.rates(split, search), first.rates(split, search)
    if not mine or not theirs:
        lacks, has = (model, first) if theirs else (first, model)
        if not has.rates(split, search):
            return f"{model.label} and {first.label} were not evaluated on {split} with {search}."
        known = f"{_named(has, split, search)} has a WER of {_wer(has, split, search)} on {split} ({search})"
        return f"{known}; {lacks.label} was not evaluated there."
    rates = [_wer(item, split, search) for item in (model, first)]
    names = [_named(item, split, search) for item in (model, first)]
    mean = " mean" if len(mine) > 1 else ""
    found = _significance(_outcomes(first, model, split, search, test))
    return (
        f"{names[0]} has a{mean} WER of {rates[0]} on {split} ({search}) where {names[1]} has {rates[1]};"
        f" {found}."
    )


def _outcomes(first: Model, model: Model, split: str, search: str, test: Test) -> Counter[str]:
    """Count the pairs of seeds where the model is better, worse, not different, or not tested."""
    words = {"a": "worse", "b": "better", None: "same"}
    outcomes: Counter[str] = Counter()
    for pair in pair_runs(first, model):
        score = test(*pair, split, search)
        tested = score is not None and "difference" in score
        outcomes[words[score["better"]] if score is not None and tested else "untested"] += 1
    return outcomes


def _significance(outcomes: Counter[str]) -> str:
    untested = outcomes.pop("untested", 0)
    tested = sum(outcomes.values())
    if not tested:
        return "the difference was not tested"
    rest = f" ({untested} more not tested)" if untested else ""
    if tested == 1:
        found = "not significant" if outcomes["same"] else "significant"
        return f"the difference is {found}{rest}"
    if outcomes["same"] == tested:
        return f"none of {tested} pairs of seeds differs significantly{rest}"
    parts = [f"{word} for {outcomes[word]}" for word in ("better", "worse") if outcomes[word]]
    return f"it is significantly {' and '.join(parts)} of {tested} pairs of seeds{rest}"


def _further(first: Model, model: Model, places: Sequence[tuple[str, str]], test: Test) -> list[str]:
    """Say the same about the other splits, in a sentence each."""
    sentences = []
    for split, search in places:
        if model.rates(split, search) and first.rates(split, search):
            rates = f"{_wer(model, split, search)} against {_wer(first, split, search)}"
            found = _significance(_outcomes(first, model, split, search, test))
            sentences.append(f"On {split} it has {rates}; {found}.")
    return sentences


def _speed(model: Model, claims: Sequence[Claim]) -> str:
    claim = next((item for item in claims if item.kind == FASTER and item.model == model.label), None)
    if claim is None or claim.verdict == NOT_MEASURED:
        return "Its speed was not compared."
    if claim.verdict == SUPPORTED:
        return "It is faster in these runs."
    if claim.held:
        return f"It is faster in {claim.held} of {claim.checked} measurements."
    return "It is not faster in these runs."


def _count(models: Sequence[Model], split: str, search: str, test: Test) -> list[str]:
    """Name the model with the lowest WER, and count how the others compare with the first."""
    first, *others = models
    scored = [model for model in models if model.rates(split, search)]
    best = min(scored, key=lambda model: statistics.mean(model.rates(split, search)))
    where = f"on {split} ({search})"
    lowest = f"{best.label} has the lowest WER {where}: {_wer(best, split, search)}."
    if best is first:
        sentences = [lowest]
    elif first.rates(split, search):
        sentences = [f"{lowest} {first.label} has {_wer(first, split, search)}."]
    else:
        return [f"{lowest} {first.label} was not evaluated there, and no model was compared with it."]
    kinds: Counter[str] = Counter()
    for model in others:
        outcomes = _outcomes(first, model, split, search, test) if model.rates(split, search) else Counter()
        outcomes.pop("untested", None)
        tested = sum(outcomes.values())
        whole = next((word for word, count in outcomes.items() if count == tested), "mixed")
        kinds[whole if tested else "untested"] += 1
    words = {
        "better": "significantly better",
        "worse": "significantly worse",
        "same": "not significantly different",
        "mixed": "different for some pairs of seeds only",
        "untested": "not tested",
    }
    counts = _list(f"{kinds[kind]} {text}" for kind, text in words.items() if kinds[kind])
    sentences.append(f"Compared with {first.label}, {len(others)} models are: {counts}.")
    unfair = sum(bool(training_flags(first, model)) for model in others)
    if unfair:
        verb = "has" if unfair == 1 else "have"
        sentences.append(f"{unfair} of them {verb} other training data or epochs than {first.label}.")
    return [" ".join(sentences)]


def _list(texts: Any) -> str:
    *rest, last = list(texts)
    return f"{', '.join(rest)} and {last}" if rest else last
