"""Two runs side by side: what differs in their YAMLs, which makes fewer errors where, and whether that is
more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmamba_asr.config.difference import yaml_difference
from hmamba_asr.evaluation.alignment import AlignedUtterance
from hmamba_asr.evaluation.results import load_results
from hmamba_asr.evaluation.significance import matched_pairs, paired_bootstrap
from hmamba_asr.evaluation.wer import align, read_trn

ALPHA = 0.05  # a difference is called significant if both tests have a p-value below


@dataclass(frozen=True)
class RunFolder:
    """A finished run: its output folder and the results in it. `label` tells it apart from others on the
    page."""

    folder: Path
    results: Mapping[str, Any]
    label: str
    _aligned: dict[tuple[str, str], list[AlignedUtterance]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def aligned(self, split: str, search: str) -> list[AlignedUtterance]:
        """Word alignments of what was recognised, kept once they are there.

        Raises:
            FileNotFoundError: the transcripts are not there.
        """
        if (split, search) not in self._aligned:
            self._aligned[split, search] = align(*read_trn(self.folder / "test" / split / search))
        return self._aligned[split, search]

    def scored(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Split, search and entry of everything that was evaluated."""
        for split, searches in self.results["evaluation"].items():
            for search, entry in searches.items():
                yield split, search, entry


def load_run(folder: str | Path, *, label: str | None = None) -> RunFolder:
    """The run in an output folder of `train.py`.

    Raises:
        FileNotFoundError: the folder has no results.json.
        ValueError: that file is not as it should be.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; give the output folder of a run that was evaluated (train.py does so)."
        )
    (results,) = load_results([path])
    return RunFolder(Path(folder), results, label or results["name"])


def compare(a: RunFolder, b: RunFolder) -> dict[str, Any]:
    """What JSON can hold: `a` and `b` (folder, name, overrides, seed, commit), `yaml` {key: [in a, in b]},
    and `scores`.

    A score has split, search, wer [a, b] and verdict; where both runs kept their transcripts of the same
    utterances also difference (b - a in percentage points), interval_95, p_bootstrap, segments and
    p_matched_pairs, and `better`: "a", "b" or None. The tests are those of `significance`. Where both were
    timed also rtf [a, b], and `same_hardware`: only then do they compare.

    Raises:
        ValueError: no split was evaluated with the same search in both runs.
    """
    entries = {(split, search): entry for split, search, entry in b.scored()}
    scores = []
    for split, search, entry in a.scored():
        if (split, search) in entries:
            rates = [entry["wer"]["rate"], entries[split, search]["wer"]["rate"]]
            speed = _speed(entry["efficiency"], entries[split, search]["efficiency"])
            scores.append(
                {"split": split, "search": search, "wer": rates, **_test(a, b, split, search), **speed}
            )
    if not scores:
        raise ValueError(
            f"{a.folder} and {b.folder} have no split and search in common; evaluate both with the same ones."
        )
    return {
        "a": _identity(a),
        "b": _identity(b),
        "yaml": yaml_difference(a.results["hparams"], b.results["hparams"]),
        "scores": scores,
    }


def _identity(run: RunFolder) -> dict[str, Any]:
    git = run.results["environment"]["git"]
    return {
        "folder": str(run.folder),
        "name": run.results["name"],
        "overrides": run.results.get("overrides", {}),
        "seed": run.results["seed"],
        "commit": git["commit"] if git else None,
    }


def _speed(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> dict[str, Any]:
    if not a or not b or a["rtf"] is None or b["rtf"] is None:
        return {}
    return {
        "rtf": [a["rtf"], b["rtf"]],
        "same_hardware": (a["hardware"], a["batch"]) == (b["hardware"], b["batch"]),
    }


def _test(a: RunFolder, b: RunFolder, split: str, search: str) -> dict[str, Any]:
    try:
        aligned = [run.aligned(split, search) for run in (a, b)]
        pairs = matched_pairs(*aligned)
    except (FileNotFoundError, ValueError) as error:
        return {"better": None, "verdict": f"cannot be tested: {error}"}
    errors = [[item.errors for item in utterances] for utterances in aligned]
    bootstrap = paired_bootstrap(*errors, [item.words for item in aligned[0]])
    significant = bootstrap.p < ALPHA and pairs.p is not None and pairs.p < ALPHA
    better = ("a" if bootstrap.difference > 0 else "b") if significant else None
    return {
        "difference": bootstrap.difference,
        "interval_95": list(bootstrap.interval),
        "p_bootstrap": bootstrap.p,
        "segments": pairs.segments,
        "p_matched_pairs": pairs.p,
        "better": better,
        "verdict": f"{better.upper()} is better" if better else "no significant difference",
    }


# ---- Text -------------------------------------------------------------------------------------------------------------


def render_comparison(found: Mapping[str, Any]) -> str:
    """The same for people."""
    lines = []
    for side in ("a", "b"):
        run = found[side]
        overrides = "".join(f" --{key} {value}" for key, value in run["overrides"].items())
        lines.append(f"{side.upper()}: {run['name']}{overrides}, seed {run['seed']}, {run['folder']}")
    lines.append("")
    if found["yaml"]:
        lines.append("YAML, A -> B:")
        lines += [
            f"  {key}: {_shown(before)} -> {_shown(after)}" for key, (before, after) in found["yaml"].items()
        ]
    else:
        lines.append("The YAMLs are alike.")
    lines += [
        "",
        "WER in percent; B - A with its 95% interval; p of the paired bootstrap and of matched pairs (MAPSSWE):",
    ]
    for score in found["scores"]:
        rates = " -> ".join(f"{rate:.2f}" for rate in score["wer"])
        tests = ""
        if "difference" in score:
            low, high = score["interval_95"]
            tests = f"  {score['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
            tests += f"  p = {format_p(score['p_bootstrap'])}, {format_p(score['p_matched_pairs'])}"
        lines.append(f"  {score['split']}, {score['search']}: {rates}{tests}  {score['verdict']}")
        if "rtf" in score:
            before, after = score["rtf"]
            other = "" if score["same_hardware"] else " (other hardware or batches: they do not compare)"
            lines.append(f"    RTF {before:.3g} -> {after:.3g}{other}")
    lines += [
        "",
        "A difference counts if both p are below 0.05. The tests are about these two trained models, not about other seeds.",
    ]
    return "\n".join(lines)


def _shown(value: str | None) -> str:
    return "(none)" if value is None else value


def format_p(p: float | None) -> str:
    """A p-value with as many digits as matter."""
    return "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
