"""How well the boundaries of chunks agree with those of phones, words or other chunks.

The first chunk always begins at frame 0, so its start is not scored. Nor are the utterance's ends in the
alignment, or boundaries between two silences.

A found boundary is a hit if it lies within the tolerance of a true one. Each boundary is in at most one such
pair, and the pairs are as many as possible. Hits are summed over utterances. R-value: O. Räsänen, U. Laine
and T. Altosaar, "An improved speech segmentation quality measure: the R-value", Interspeech 2009. Unlike F1,
it does not rise when boundaries are placed everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hmamba_asr.evaluation.segmentation import Segmentation, check_stage
from hmamba_asr.evaluation.textgrid import Tiers
from hmamba_asr.system.tables import text_table

Seconds = float
Times = Sequence[Seconds] | np.ndarray
TOLERANCES = (0.02, 0.04)  # seconds
RANDOM_DRAWS = 20
KINDS = ("chunks", "random", "uniform")
MEASURES = ("precision", "recall", "f1", "r_value")
RESAMPLES = 2000  # resamples of the utterances, for the intervals of differences
_ROUNDING = 1e-6  # seconds: a boundary exactly at the tolerance is a hit


@dataclass(frozen=True)
class Agreement:
    """Numbers of true and of found boundaries, and of hits. For random boundaries, hits are a mean over
    draws."""

    true: int
    found: int
    hits: float

    @property
    def precision(self) -> float:
        """Share of found boundaries that are hits; NaN without found boundaries."""
        return self.hits / self.found if self.found else math.nan

    @property
    def recall(self) -> float:
        """Share of true boundaries that were hit; NaN without true boundaries."""
        return self.hits / self.true if self.true else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.hits / (self.true + self.found) if self.true + self.found else math.nan

    @property
    def r_value(self) -> float:
        """R-value (Räsänen et al., 2009): 1 if every boundary is hit and none is superfluous; can be
        negative."""
        if not self.true:
            return math.nan
        surplus = self.found / self.true - 1
        to_ideal = math.hypot(1 - self.recall, surplus)
        to_line = (self.recall - 1 - surplus) / math.sqrt(2)
        return 1 - (to_ideal + abs(to_line)) / 2

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.true + other.true, self.found + other.found, self.hits + other.hits)

    def to_dict(self) -> dict[str, float]:
        """Return counts and measures; the measures are fractions."""
        return {
            **vars(self),
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "r_value": self.r_value,
        }


def hits(true: Times, found: Times, tolerance: Seconds) -> int:
    """Count the pairs of a true and a found boundary that are at most `tolerance` apart.

    Both lists rise. No boundary is in two pairs.
    """
    count = i = j = 0
    while i < len(true) and j < len(found):
        if abs(true[i] - found[j]) <= tolerance + _ROUNDING:
            count, i, j = count + 1, i + 1, j + 1
        elif true[i] < found[j]:
            i += 1
        else:
            j += 1
    return count


def candidates(item: Segmentation, stage: int, random: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Return a stage's boundaries in seconds, and baselines with as many boundaries on the same frames.

    Returns
    -------
    dict
        "chunks": the boundaries; "random": `RANDOM_DRAWS` draws; "uniform": evenly spaced ones. Frame 0 is
        never among them.
    """
    boundaries = item.boundaries(stage)
    count = len(boundaries)
    return {
        "chunks": [boundaries],
        "random": [
            item.seconds(1 + np.sort(random.permutation(item.frames - 1)[:count]))
            for _ in range(RANDOM_DRAWS)
        ],
        "uniform": [item.seconds(np.round(np.linspace(0, item.frames, count + 2)[1:-1]))],
    }


def agreements(
    true: Times, drawn: Mapping[str, Sequence[np.ndarray]], tolerance: Seconds
) -> dict[str, Agreement]:
    """Return the agreement of each kind of `candidates` with an utterance's true boundaries, as a mean over
    draws."""
    return {
        kind: Agreement(
            len(true), len(draws[0]), float(np.mean([hits(true, one, tolerance) for one in draws]))
        )
        for kind, draws in drawn.items()
    }


def summarise(by_utterance: Sequence[Mapping[str, Agreement]], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Sum the agreements of utterances.

    Returns
    -------
    dict
        {kind: `Agreement.to_dict()`}. The kind "chunks" also has `f1_over` {other kind: [low, high]}: the 95%
        bootstrap interval, over utterances, of its F1 minus the other's.
    """
    totals = {kind: sum((item[kind] for item in by_utterance), Agreement(0, 0, 0)) for kind in KINDS}
    sides = np.array(
        [sum((item["chunks"].true, item["chunks"].found)) for item in by_utterance]
    )  # alike for all kinds
    won = {kind: np.array([item[kind].hits for item in by_utterance]) for kind in KINDS}
    drawn = np.random.default_rng(seed).integers(len(sides), size=(RESAMPLES, len(sides)))
    result: dict[str, dict[str, Any]] = {kind: total.to_dict() for kind, total in totals.items()}
    result["chunks"]["f1_over"] = {}
    for kind in KINDS[1:]:
        differences = 2 * (won["chunks"] - won[kind])[drawn].sum(1) / np.maximum(sides[drawn].sum(1), 1)
        result["chunks"]["f1_over"][kind] = np.percentile(differences, [2.5, 97.5]).tolist()
    return result


def describe_boundaries(
    items: Sequence[Segmentation], alignments: Mapping[str, Tiers], *, stage: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Compare a stage's boundaries, and the baselines of `candidates`, with alignments.

    Parameters
    ----------
    items
        Segmentations of utterances.
    alignments
        Alignments by utterance ID.
    stage
        Which chunking stage to look at; 0 is the outermost.
    seed
        Seed of random boundaries and resampling.

    Returns
    -------
    dict
        Only types of JSON. `utterances` and `without_alignment`: their numbers; `agreement` {tier: {tolerance
        in ms: what `summarise` returns}}; `silence`: the share of boundaries and of time in silence, None
        without a tier of phones; `durations`: the number of chunks by length in frames; `frame_ms`.

    Raises
    ------
    ValueError
        If no utterance has an alignment, or there is no such stage.
    """
    aligned = [item for item in items if item.id in alignments]
    if not aligned:
        raise ValueError(
            "no utterance of these chunks has an alignment; compare the IDs with the TextGrids' names."
        )
    check_stage(aligned, stage)
    random = np.random.default_rng(seed)
    tiers = list(alignments[aligned[0].id].intervals)
    found: dict[tuple[str, Seconds], list[dict[str, Agreement]]] = {
        (tier, t): [] for tier in tiers for t in TOLERANCES
    }
    for item in aligned:
        drawn = candidates(item, stage, random)
        for tier in tiers:
            true = alignments[item.id].boundaries(tier)
            for tolerance in TOLERANCES:
                found[tier, tolerance].append(agreements(true, drawn, tolerance))
    agreement: dict[str, dict[str, Any]] = {tier: {} for tier in tiers}
    for (tier, tolerance), by_utterance in found.items():
        agreement[tier][f"{1000 * tolerance:.0f}"] = summarise(by_utterance, seed=seed)
    durations = np.concatenate([np.diff([*item.starts[stage], item.frames]) for item in aligned])
    return {
        "utterances": len(aligned),
        "without_alignment": len(items) - len(aligned),
        "agreement": agreement,
        "silence": _silence(aligned, alignments, stage) if "phones" in tiers else None,
        "frame_ms": 1000 * aligned[0].step,
        "durations": dict(zip(*(x.tolist() for x in np.unique(durations, return_counts=True)), strict=True)),
    }


def _silence(
    aligned: Sequence[Segmentation], alignments: Mapping[str, Tiers], stage: int
) -> dict[str, float]:
    inside = np.concatenate([alignments[item.id].silent(item.boundaries(stage)) for item in aligned])
    seconds = sum(alignments[item.id].seconds for item in aligned)
    return {
        "boundaries": float(inside.mean()) if len(inside) else math.nan,
        "time": sum(alignments[item.id].silent_seconds for item in aligned) / seconds,
    }


def render_agreement(agreement: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> str:
    """Return a table of agreements, given by row name, tolerance in ms and kind. `title` says what row names
    are."""
    rows = [
        [name, f"{tolerance} ms", kind, *(f"{kinds[kind][key]:.3f}" for key in MEASURES)]
        for name, by_tolerance in agreement.items()
        for tolerance, kinds in by_tolerance.items()
        for kind in KINDS
    ]
    headers = [title, "within", "boundaries", "precision", "recall", "F1", "R-value"]
    return text_table(rows, headers, align=("left", "right", "left", *["right"] * len(MEASURES)))


def _source_lines(source: Mapping[str, Any]) -> list[str]:
    if source["kind"] != "CTC":
        return [f"Forced alignments in {source['folder']}"]
    lines = [
        f"No forced alignment: the CTC of {source['folder']} aligned tokens and words of the reference. Such "
        "an alignment",
        "is a model's own: it has no phones and no silences, and a token lasts until the next one starts.",
    ]
    if source["chunk_rate"]:
        lines += [
            "The steps of that CTC are the chunks of its encoder. Every token starts where a chunk starts, "
            "or at an equal",
            "part of a chunk, so agreement with its own chunks means nothing. Give --aligner a run whose CTC "
            "reads frames.",
        ]
    return lines


def render_boundaries(found: Mapping[str, Any]) -> str:
    """Return what `describe_boundaries` found, and the `source` of its alignments, as text."""
    without = f", {found['without_alignment']} without alignment" if found["without_alignment"] else ""
    lines = [f"{found['utterances']} utterances{without}", *_source_lines(found["source"]), ""]
    lines.append(render_agreement(found["agreement"], "tier"))
    if silence := found["silence"]:
        shares = f"{silence['boundaries']:.1%} of the boundaries, {silence['time']:.1%} of the time"
        lines += ["", f"In silence: {shares}."]
    total = sum(found["durations"].values())
    rows = [
        [f"{frames * found['frame_ms']:.0f} ms", count, "#" * round(50 * count / total)]
        for frames, count in found["durations"].items()
    ]
    lines += [
        "",
        "Chunks by length:",
        text_table(rows, ["length", "chunks", ""], align=("right", "right", "left")),
    ]
    return "\n".join(lines)
