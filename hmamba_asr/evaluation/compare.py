"""Comparison of two runs: what differs in their YAMLs, which one makes fewer errors, and whether that is
significant."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from hmamba_asr.config.difference import yaml_difference
from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.evaluation.results import EfficiencyRecord
from hmamba_asr.evaluation.significance import matched_pairs, paired_bootstrap
from hmamba_asr.system.tables import WIDTH, text_table

ALPHA = 0.05  # a difference is significant if both tests have a p-value below


def compare(a: FinishedRun, b: FinishedRun) -> dict[str, Any]:
    """Compare two runs on every split and search that both have. The tests are those of `significance`.

    Returns
    -------
    dict
        Only types of JSON. `a` and `b`: folder, name, overrides, seed and commit. `yaml`: {key: [in a, in
        b]}. `scores`: an item for each split and search, with `split`, `search`, `wer` [a, b], `better` ("a",
        "b" or None) and `verdict`. If both runs have transcripts of the same utterances, it also has
        `difference` (b - a in percentage points), `interval_95`, `p_bootstrap`, `segments` and
        `p_matched_pairs`. If both were timed, it also has `rtf` [a, b] and `same_hardware`: RTFs of different
        hardware or batches do not compare.

    Raises
    ------
    ValueError
        If the runs have no split and search in common.
    """
    entries = {(split, search): entry for split, search, entry in b.scored()}
    scores = []
    for split, search, entry in a.scored():
        if (split, search) in entries:
            other = entries[split, search]
            scores.append(
                {
                    "split": split,
                    "search": search,
                    "wer": [entry.wer.rate, other.wer.rate],
                    **_test(a, b, split, search),
                    **_speed(entry.efficiency, other.efficiency),
                }
            )
    if not scores:
        raise ValueError(
            f"{a.folder} and {b.folder} have no split and search in common; evaluate both with the same ones."
        )
    return {
        "a": _identity(a),
        "b": _identity(b),
        "yaml": yaml_difference(a.results.hparams, b.results.hparams),
        "scores": scores,
    }


def _identity(run: FinishedRun) -> dict[str, Any]:
    git = run.results.environment.git
    return {
        "folder": str(run.folder),
        "name": run.results.name,
        "overrides": run.results.overrides,
        "seed": run.results.seed,
        "commit": git.commit if git else None,
    }


def _speed(a: EfficiencyRecord | None, b: EfficiencyRecord | None) -> dict[str, Any]:
    if a is None or b is None or a.rtf is None or b.rtf is None:
        return {}
    return {"rtf": [a.rtf, b.rtf], "same_hardware": (a.hardware, a.batch) == (b.hardware, b.batch)}


def _test(a: FinishedRun, b: FinishedRun, split: str, search: str) -> dict[str, Any]:
    try:
        aligned = [run.aligned(split, search) for run in (a, b)]
        pairs = matched_pairs(*aligned)
    except (FileNotFoundError, ValueError) as error:
        return {"better": None, "verdict": f"cannot be tested: {error}"}
    errors = [[item.errors for item in utterances] for utterances in aligned]
    bootstrap = paired_bootstrap(errors[0], errors[1], [item.words for item in aligned[0]])
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


def render_comparison(found: Mapping[str, Any]) -> str:
    """Return what `compare` found as text."""
    lines = []
    for side in ("a", "b"):
        run = found[side]
        overrides = "".join(f" --{key} {value}" for key, value in run["overrides"].items())
        text = f"{side.upper()}: {run['name']}{overrides}, seed {run['seed']}, {run['folder']}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="   ", break_long_words=False)
    lines.append("")
    if found["yaml"]:
        lines.append("YAML, A -> B:")
        lines += [
            f"  {key}: {_shown(before)} -> {_shown(after)}" for key, (before, after) in found["yaml"].items()
        ]
    else:
        lines.append("The YAMLs are alike.")
    headers = [
        "split",
        "search",
        "WER A",
        "WER B",
        "B - A (95% interval)",
        "p bootstrap",
        "p MAPSSWE",
        "verdict",
    ]
    sides = ("left", "left", "right", "right", "left", "right", "right", "left")
    lines += [
        "",
        "WER in percent:",
        text_table([_row(score) for score in found["scores"]], headers, align=sides),
    ]
    for score in found["scores"]:
        if "difference" not in score:
            text = f"{score['split']}, {score['search']}: {score['verdict']}."
            lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False)
    if timed := [_speed_row(score) for score in found["scores"] if "rtf" in score]:
        headers = ["split", "search", "RTF A", "RTF B", ""]
        lines += ["", text_table(timed, headers, align=("left", "left", "right", "right", "left"))]
    lines += [
        "",
        f"A difference counts if both p are below {ALPHA:g}: those of the paired bootstrap and of matched "
        "pairs (MAPSSWE).",
        "The tests are about these two trained models, not about other seeds.",
    ]
    return "\n".join(lines)


def _row(score: Mapping[str, Any]) -> list[str | None]:
    tests: list[str | None] = [None, None, None]
    if "difference" in score:
        low, high = score["interval_95"]
        tests = [
            f"{score['difference']:+.2f} ({low:+.2f} to {high:+.2f})",
            format_p(score["p_bootstrap"]),
            format_p(score["p_matched_pairs"]),
        ]
    return [
        score["split"],
        score["search"],
        *(f"{rate:.2f}" for rate in score["wer"]),
        *tests,
        score["verdict"] if "difference" in score else "not tested",
    ]


def _speed_row(score: Mapping[str, Any]) -> list[str]:
    remark = "" if score["same_hardware"] else "other hardware or batches: they do not compare"
    return [score["split"], score["search"], *(f"{rtf:.3g}" for rtf in score["rtf"]), remark]


def _shown(value: str | None) -> str:
    return "(none)" if value is None else value


def format_p(p: float | None) -> str:
    """Return a p-value with the digits that matter."""
    return "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
