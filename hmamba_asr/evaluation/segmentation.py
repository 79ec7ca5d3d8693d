"""Segmentations into chunks, and how well their boundaries agree with those of phones and words.

A chunk that begins at frame t begins half-way between the centres of frames t - 1 and t. The first chunk
always begins at frame 0, so its start is not scored. Nor are the utterance's ends in the alignment, or
boundaries between two silences.

A found boundary is a hit if it lies within the tolerance of a true one. Each boundary is in at most one such
pair, and the pairs are as many as possible. Hits are summed over utterances. R-value: O. Räsänen, U. Laine
and T. Altosaar, "An improved speech segmentation quality measure: the R-value", Interspeech 2009. Unlike F1,
it does not rise when boundaries are placed everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.tables import text_table

Seconds = float
Times = Sequence[Seconds] | np.ndarray
TOLERANCES = (0.02, 0.04)  # seconds
# Labels of silence of the Montreal Forced Aligner and similar ones; spn, an unknown word, is not among them.
SILENCES = frozenset({"", "sil", "sp", "<eps>"})
RANDOM_DRAWS = 20
KINDS = ("chunks", "random", "uniform")
MEASURES = ("precision", "recall", "f1", "r_value")
RESAMPLES = 2000  # resamples of the utterances, for the intervals of differences
_ROUNDING = 1e-6  # seconds: a boundary exactly at the tolerance is a hit


@dataclass(frozen=True)
class Segmentation:
    """Where the chunks of one utterance begin.

    Attributes
    ----------
    id
        The utterance.
    frames
        Its number of encoder frames.
    first, step
        Seconds: frame t begins at `first + step * t`.
    starts
        For each chunking stage, outermost first, the frames at which its chunks begin. The first one is 0.
    """

    id: str
    frames: int
    first: Seconds
    step: Seconds
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Segmentation:
        """Make a segmentation from its JSON object."""
        return cls(**{**record, "starts": tuple(tuple(starts) for starts in record["starts"])})

    def seconds(self, frames: Any) -> np.ndarray:
        """Return when frames begin."""
        return self.first + self.step * np.asarray(frames, dtype=float)

    def boundaries(self, stage: int = 0) -> np.ndarray:
        """Return the starts of a stage's chunks in seconds, without the first one."""
        return self.seconds(self.starts[stage][1:])

    def durations(self, stage: int = 0) -> np.ndarray:
        """Return the durations of a stage's chunks in seconds."""
        return self.step * np.diff([*self.starts[stage], self.frames])


def write_segmentations(path: str | Path, items: Iterable[Segmentation]) -> None:
    """Write each utterance's segmentation as a line with a JSON object, sorted by ID."""
    with write_atomically(path) as stream:
        for item in sorted(items, key=lambda item: item.id):
            stream.write(json.dumps(vars(item)) + "\n")


def read_segmentations(path: str | Path) -> list[Segmentation]:
    """Read a file of `write_segmentations`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is not such an object.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no {path}; only runs that chunk have one. Evaluate an older run again (the same "
            "command with --test_only)."
        )
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(Segmentation.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number} does not describe an utterance's chunks ({error})."
            ) from error
    return found


@dataclass(frozen=True)
class Alignment:
    """Intervals (start, end, label) of an utterance, in seconds.

    A TextGrid has the tiers "phones" and "words". A CTC's alignment has "tokens" and "words", and no silence.
    """

    tiers: Mapping[str, Sequence[tuple[Seconds, Seconds, str]]]

    def boundaries(self, tier: str) -> np.ndarray:
        """Return the times between two intervals, unless both are silent."""
        intervals = self.tiers[tier]
        pairs = zip(intervals[:-1], intervals[1:], strict=True)
        return np.array(
            [after[0] for before, after in pairs if not (_silent(before[2]) and _silent(after[2]))]
        )

    def silent(self, times: Times) -> np.ndarray:
        """Return whether each time lies in silence. Needs the tier "phones"."""
        pauses = [(start, end) for start, end, label in self.tiers["phones"] if _silent(label)]
        instants = np.asarray(times, dtype=float)
        inside = np.zeros(len(instants), dtype=bool)
        for start, end in pauses:
            inside |= (instants >= start) & (instants < end)
        return inside

    @property
    def silent_seconds(self) -> Seconds:
        """Total duration of silence. Needs the tier "phones"."""
        return sum(end - start for start, end, label in self.tiers["phones"] if _silent(label))

    @property
    def seconds(self) -> Seconds:
        """Time from the first interval's start to the last one's end. Needs the tier "phones"."""
        return self.tiers["phones"][-1][1] - self.tiers["phones"][0][0]


def _silent(label: str) -> bool:
    return label.strip().lower() in SILENCES


def read_alignment(path: str | Path) -> Alignment:
    """Read the tiers "phones" and "words" of a Praat TextGrid. Needs praatio.

    Raises
    ------
    ValueError
        If the file is no TextGrid, or lacks one of the tiers.
    """
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
        tiers = {name: tuple(map(tuple, grid.getTier(name).entries)) for name in ("phones", "words")}
    except (PraatioException, KeyError, ValueError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} is not a TextGrid with the tiers phones and words ({' '.join(str(error).split())})."
        ) from error
    if not all(tiers.values()):
        raise ValueError(f"{path} has a tier without intervals; align this utterance again.")
    return Alignment(tiers)


def read_alignments(folder: str | Path, ids: Iterable[str]) -> dict[str, Alignment]:
    """Read the alignments of utterances that have an `ID.TextGrid` in `folder` or below.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        As `read_alignment`.
    """
    wanted = set(ids)
    files = {path.stem: path for path in sorted(Path(folder).rglob("*.TextGrid")) if path.stem in wanted}
    if not files:
        raise FileNotFoundError(
            f"{folder} has no ID.TextGrid of any of the {len(wanted)} utterances; give their alignments' "
            "folder."
        )
    return {key: read_alignment(path) for key, path in files.items()}


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
    items: Sequence[Segmentation], alignments: Mapping[str, Alignment], *, stage: int = 0, seed: int = 0
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
    tiers = list(alignments[aligned[0].id].tiers)
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


def check_stage(items: Sequence[Segmentation], stage: int) -> None:
    """Refuse a stage that these segmentations do not have.

    Raises
    ------
    ValueError
        If there is no such stage.
    """
    if not 0 <= stage < len(items[0].starts):
        raise ValueError(
            f"there is no chunking stage {stage}; these chunks have {len(items[0].starts)}, counted from 0."
        )


def _silence(
    aligned: Sequence[Segmentation], alignments: Mapping[str, Alignment], stage: int
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
