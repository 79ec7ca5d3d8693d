"""Where chunks begin, and whether those are the boundaries of phones and words.

A chunk that begins at frame t begins half-way between the centres of frames t - 1 and t: that is where
something new was seen. The first chunk of an utterance has no choice, so its start is not scored; nor are the
utterance's ends in the alignment, nor boundaries between two silences.

A found boundary is a hit if it lies within the tolerance of a true one, each used once, with as many hits as
are possible. Over many utterances hits add. R-value: O. Räsänen, U. Laine and T. Altosaar, "An improved
speech segmentation quality measure: the R-value", Interspeech 2009; unlike F1 it is not raised by boundaries
everywhere.
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

Seconds = float
TOLERANCES = (0.02, 0.04)  # seconds
SILENCES = frozenset(
    {"", "sil", "sp", "<eps>"}
)  # of the Montreal Forced Aligner and its kin; spn is a word they do not know
RANDOM_DRAWS = 20
KINDS = ("chunks", "random", "uniform")
RESAMPLES = 2000  # of utterances, for the intervals of differences
_ROUNDING = 1e-6  # seconds: a boundary exactly at the tolerance is a hit


@dataclass(frozen=True)
class Segmentation:
    """The chunks of one utterance of `frames` encoder frames; frame t begins at `first + step * t` seconds.

    `starts`: for each chunking stage, outermost first, the frames at which its chunks begin, the first one 0.
    """

    id: str
    frames: int
    first: Seconds
    step: Seconds
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Segmentation:
        """Make one of what JSON holds: lists instead of tuples."""
        return cls(**{**record, "starts": tuple(tuple(starts) for starts in record["starts"])})

    def seconds(self, frames: Any) -> np.ndarray:
        """When these frames begin."""
        return self.first + self.step * np.asarray(frames, dtype=float)

    def boundaries(self, stage: int = 0) -> np.ndarray:
        """Starts of a stage's chunks in seconds, without the first one."""
        return self.seconds(self.starts[stage][1:])

    def durations(self, stage: int = 0) -> np.ndarray:
        """Of a stage's chunks, in seconds."""
        return self.step * np.diff([*self.starts[stage], self.frames])


def write_segmentations(path: str | Path, chunks: Iterable[Segmentation]) -> None:
    """One JSON object a line, sorted by ID."""
    with write_atomically(path) as stream:
        for item in sorted(chunks, key=lambda item: item.id):
            stream.write(json.dumps(vars(item)) + "\n")


def read_segmentations(path: str | Path) -> list[Segmentation]:
    """What `write_segmentations` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no {path}; only runs that chunk have one. Evaluate an older run again (the same command with --test_only)."
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
    """Intervals (start, end, label) of an utterance in seconds, by tier: "phones" and "words" of a TextGrid,
    or "tokens" and "words" where a CTC aligned them, which knows no silence."""

    tiers: Mapping[str, Sequence[tuple[Seconds, Seconds, str]]]

    def boundaries(self, tier: str) -> np.ndarray:
        """Times at which one interval gives way to another, not both of them silent."""
        intervals = self.tiers[tier]
        pairs = zip(intervals[:-1], intervals[1:], strict=True)
        return np.array(
            [after[0] for before, after in pairs if not (_silent(before[2]) and _silent(after[2]))]
        )

    def silent(self, times: Sequence[Seconds]) -> np.ndarray:
        """Whether each of these times lies in silence, of an alignment with phones."""
        pauses = [(start, end) for start, end, label in self.tiers["phones"] if _silent(label)]
        instants = np.asarray(times, dtype=float)
        inside = np.zeros(len(instants), dtype=bool)
        for start, end in pauses:
            inside |= (instants >= start) & (instants < end)
        return inside

    @property
    def silent_seconds(self) -> Seconds:
        """Silence altogether."""
        return sum(end - start for start, end, label in self.tiers["phones"] if _silent(label))

    @property
    def seconds(self) -> Seconds:
        """From the first to the last interval's end."""
        return self.tiers["phones"][-1][1] - self.tiers["phones"][0][0]


def _silent(label: str) -> bool:
    return label.strip().lower() in SILENCES


def read_alignment(path: str | Path) -> Alignment:
    """Tiers "phones" and "words" of a Praat TextGrid. Needs praatio.

    Raises:
        ValueError: it is no TextGrid, or lacks one of the tiers.
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
    """Alignments of those utterances that have an `ID.TextGrid` somewhere below `folder`.

    Raises:
        FileNotFoundError: the folder has none of them.
        ValueError: see `read_alignment`.
    """
    wanted = set(ids)
    files = {path.stem: path for path in sorted(Path(folder).rglob("*.TextGrid")) if path.stem in wanted}
    if not files:
        raise FileNotFoundError(
            f"{folder} has no ID.TextGrid of any of the {len(wanted)} utterances; give their alignments' folder."
        )
    return {key: read_alignment(path) for key, path in files.items()}


@dataclass(frozen=True)
class Agreement:
    """Found boundaries against true ones: how many there are of each, and how many of them are hits (a mean
    for random ones)."""

    true: int
    found: int
    hits: float

    @property
    def precision(self) -> float:
        """Share of found boundaries that are hits; NaN without any."""
        return self.hits / self.found if self.found else math.nan

    @property
    def recall(self) -> float:
        """Share of true boundaries that were hit; NaN without any."""
        return self.hits / self.true if self.true else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        return 2 * self.hits / (self.true + self.found) if self.true + self.found else math.nan

    @property
    def r_value(self) -> float:
        """1 where every boundary is hit and none is superfluous; can be negative."""
        if not self.true:
            return math.nan
        surplus = self.found / self.true - 1
        to_ideal = math.hypot(1 - self.recall, surplus)
        to_line = (self.recall - 1 - surplus) / math.sqrt(2)
        return 1 - (to_ideal + abs(to_line)) / 2

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.true + other.true, self.found + other.found, self.hits + other.hits)

    def to_dict(self) -> dict[str, float]:
        """Counts and measures, as fractions."""
        return {
            **vars(self),
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "r_value": self.r_value,
        }


def hits(true: Sequence[Seconds], found: Sequence[Seconds], tolerance: Seconds) -> int:
    """Pairs of a true and a found boundary at most `tolerance` apart, each in one pair; both in rising
    order."""
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
    """A stage's boundaries in seconds ("chunks"), and as many on the same frames, the first one apart:
    `RANDOM_DRAWS` draws ("random"), and evenly spaced ones ("uniform")."""
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
    true: Sequence[Seconds], drawn: Mapping[str, Sequence[np.ndarray]], tolerance: Seconds
) -> dict[str, Agreement]:
    """Of each kind of `candidates` with the true boundaries of an utterance; the mean over draws."""
    return {
        kind: Agreement(
            len(true), len(draws[0]), float(np.mean([hits(true, one, tolerance) for one in draws]))
        )
        for kind, draws in drawn.items()
    }


def summarise(by_utterance: Sequence[Mapping[str, Agreement]], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{kind: `Agreement.to_dict()`} of all utterances together; of "chunks" also `f1_over` {other kind: [low,
    high]}, the 95% bootstrap interval, over utterances, of its F1 less the other's."""
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
    chunks: Sequence[Segmentation], alignments: Mapping[str, Alignment], *, stage: int = 0, seed: int = 0
) -> dict[str, Any]:
    """How a stage's boundaries agree with the alignments, beside as many random and evenly spaced ones on the
    same frames.

    Returns what JSON can hold: `utterances` that have an alignment; `agreement` {tier: {tolerance in ms: what
    `summarise` returns}}; `silence`, the share of boundaries in silence and that of the time, None without a
    tier of phones; `durations` of chunks, the number of chunks by their length in frames, and `frame_ms`.

    Raises:
        ValueError: no utterance has an alignment, or there is no such stage.
    """
    aligned = [item for item in chunks if item.id in alignments]
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
        "without_alignment": len(chunks) - len(aligned),
        "agreement": agreement,
        "silence": _silence(aligned, alignments, stage) if "phones" in tiers else None,
        "frame_ms": 1000 * aligned[0].step,
        "durations": dict(zip(*(x.tolist() for x in np.unique(durations, return_counts=True)), strict=True)),
    }


def check_stage(chunks: Sequence[Segmentation], stage: int) -> None:
    """Refuse a stage that these chunks do not have.

    Raises:
        ValueError: there is no such stage.
    """
    if not 0 <= stage < len(chunks[0].starts):
        raise ValueError(
            f"there is no chunking stage {stage}; these chunks have {len(chunks[0].starts)}, counted from 0."
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


def render_agreement(agreement: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> list[str]:
    """Lines of a table: `agreement` by row name, tolerance in ms and kind."""
    width = max(map(len, [*agreement, title])) + 2
    lines = [
        f"{title:<{width}}{'within':>6}  {'boundaries':<10}{'precision':>10}{'recall':>8}{'F1':>8}{'R-value':>9}"
    ]
    for name, by_tolerance in agreement.items():
        for tolerance, kinds in by_tolerance.items():
            for kind in KINDS:
                figures = [kinds[kind][key] for key in ("precision", "recall", "f1", "r_value")]
                shown = "".join(
                    f"{value:>{wide}.3f}" for value, wide in zip(figures, (10, 8, 8, 9), strict=True)
                )
                lines.append(f"{name:<{width}}{tolerance + ' ms':>6}  {kind:<10}{shown}")
    return lines


def _source_lines(source: Mapping[str, Any]) -> list[str]:
    if source["kind"] != "CTC":
        return [f"Forced alignments in {source['folder']}"]
    lines = [
        f"No forced alignment: tokens and words of the reference where the CTC of {source['folder']} has them. These are a",
        "model's own, without phones and silences, a token lasting until the next one starts.",
    ]
    if source["chunk_rate"]:
        lines += [
            "That CTC has its steps at the chunks of its encoder: every token starts where a chunk starts, or at an equal part",
            "of one, so that agreement with its own chunks means nothing. Give --aligner a run whose CTC reads frames.",
        ]
    return lines


def render_boundaries(found: Mapping[str, Any]) -> str:
    """What `describe_boundaries` found, and the `source` of its alignments, for people."""
    without = f", {found['without_alignment']} without alignment" if found["without_alignment"] else ""
    lines = [f"{found['utterances']} utterances{without}", *_source_lines(found["source"]), ""]
    lines += render_agreement(found["agreement"], "tier")
    if silence := found["silence"]:
        shares = f"{silence['boundaries']:.1%} of the boundaries, {silence['time']:.1%} of the time"
        lines += ["", f"In silence: {shares}."]
    lines += ["", "Chunks by length:"]
    total = sum(found["durations"].values())
    for frames, count in found["durations"].items():
        lines.append(f"{frames * found['frame_ms']:>7.0f} ms {count:>7} {'#' * round(50 * count / total)}")
    return "\n".join(lines)
