"""Manifests of any corpus in LibriSpeech's layout: the CSV files that SpeechBrain reads.

Layout: ``<data_folder>[/LibriSpeech]/<split>/<speaker>/<chapter>/<utterance>.flac`` (or ``.wav``), with
transcripts in ``*.trans.txt`` files of lines ``UTTERANCE-ID WORDS...``. Any split names will do: LibriSpeech,
Mini LibriSpeech, AN4 in this layout and the demo corpus all go through here.

Every recording is decoded once, because a truncated FLAC still has a good header. Everything that is wrong in
any split is collected first and reported together: a corpus is repaired in one round, not in twenty.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from hmamba_asr.data.corpus_files import (
    Listing,
    Problem,
    Transcript,
    check_recording,
    find_split,
    list_split,
    read_transcript,
    utterance_id,
)
from hmamba_asr.data.manifest import ManifestRow, write_manifest
from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.hardware import usable_cores
from hmamba_asr.system.screen import Progress, say

logger = logging.getLogger(__name__)

Seconds = float

_FORMAT_VERSION = 1  # raise it when the same corpus gives another manifest: the old ones are then rebuilt
_LISTED_PER_KIND = 20
_FILES_PER_TASK = 16
_LINE_EVERY = 60.0  # seconds, where there is no terminal for a bar


class CorpusError(ValueError):
    """The corpus cannot be used as it is. The message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class _Options:
    """What a manifest depends on, besides the corpus."""

    sample_rate: int
    min_duration: Seconds
    max_duration: Seconds | None


@dataclass(frozen=True)
class _Summary:
    """Stands beside the CSV as JSON: from which corpus and options it was made, and what was left out."""

    fingerprint: str
    csv_sha256: str
    utterances: int
    hours: float
    too_short: int
    too_long: int
    problems: list[Problem]


def prepare_manifests(
    *,
    data_folder: str | os.PathLike[str],
    splits: Sequence[str],
    manifest_folder: str | os.PathLike[str],
    sample_rate: int = 16000,
    on_bad_data: Literal["refuse", "skip"] = "refuse",
    min_duration: Seconds = 0.1,
    max_duration: Seconds | None = None,
    num_workers: int | None = None,
) -> dict[str, Path]:
    """Scan and validate the splits, and write a manifest ``<split>.csv`` for each.

    The speaker of an utterance is the first folder under the split. A manifest is reused, and nothing is
    decoded, when the paths, sizes and modification times of the split's files, the options and the CSV are
    those of the last run. Under torchrun, call it on one rank.

    Parameters
    ----------
    data_folder
        The folder that holds ``<split>/`` or ``LibriSpeech/<split>/``.
    splits
        Names of the split folders. Any names will do.
    manifest_folder
        The folder for the CSV files, a ``.json`` beside each, and ``problems.txt``. It is made if it is
        missing.
    sample_rate
        The rate in Hz that every recording must have.
    on_bad_data
        "refuse" raises when anything is wrong. The good utterances are still written, so that the next run
        need not decode them again. "skip" warns and goes on with the good ones.
    min_duration, max_duration
        Limits in seconds. Utterances outside are counted and left out, which is no problem of the corpus.
    num_workers
        Number of decoding threads. By default one for each CPU core that this process may use, at most 32.

    Returns
    -------
    dict
        The path of each split's CSV.

    Raises
    ------
    CorpusError
        For bad data under "refuse". Always for a split that is missing or has no good utterance.
    ValueError
        If an option makes no sense.
    """
    _check_options(splits, sample_rate, on_bad_data, min_duration, max_duration, num_workers)
    data_folder, manifest_folder = Path(data_folder), Path(manifest_folder)
    if not data_folder.is_dir():
        raise CorpusError(f"data_folder '{data_folder}' is not a folder; give the one that has {splits[0]}/.")
    manifest_folder.mkdir(parents=True, exist_ok=True)

    folders = {split: find_split(data_folder, split) for split in splits}
    absent = [split for split, folder in folders.items() if folder is None]
    missing = _describe_missing(data_folder, absent)
    if missing and len(absent) < len(folders):
        say(f"{', '.join(absent)}: no such folder; the other splits are checked before the command ends")

    options = _Options(sample_rate, min_duration, max_duration)
    summaries: dict[str, _Summary] = {}
    # Threads, not processes: libsndfile decodes outside Python's lock, and threads need no __main__ guard.
    pool = ThreadPoolExecutor(num_workers or min(32, usable_cores()))
    try:
        for split, folder in folders.items():
            if folder is not None:
                csv_path = manifest_folder / f"{split}.csv"
                summaries[split] = _prepare_split(pool, data_folder, folder, csv_path, options)
    finally:
        pool.shutdown(cancel_futures=True)

    refusals = [missing] if missing else []
    problems = [problem for summary in summaries.values() for problem in summary.problems]
    list_path = manifest_folder / "problems.txt"
    if problems:
        with write_atomically(list_path) as stream:
            stream.write(_describe_problems(problems, limit=None))
        report = f"{_describe_problems(problems, limit=_LISTED_PER_KIND)}The full list is in {list_path}."
        if on_bad_data == "refuse":
            refusals.append(f"{report} Repair or remove these files, or set on_bad_data to 'skip'.")
        else:
            logger.warning("%s These utterances are skipped.", report)
    else:
        list_path.unlink(missing_ok=True)  # it would name files that are good by now
    empty = [split for split, summary in summaries.items() if not summary.utterances]
    if empty:
        refusals.append(
            f"no usable utterance in {', '.join(empty)}; check the duration limits, and that the folder is "
            "unpacked, as <split>/<speaker>/<chapter>/<utterance>.flac with *.trans.txt beside."
        )
    if refusals:
        raise CorpusError("\n".join(refusals))
    return {split: manifest_folder / f"{split}.csv" for split in splits}


def _prepare_split(
    pool: ThreadPoolExecutor, data_folder: Path, folder: Path, csv_path: Path, options: _Options
) -> _Summary:
    """Reuse or rebuild one manifest. The CSV holds the good utterances; the summary names all others."""
    listing = list_split(pool, data_folder, folder)
    found = [listing.stats, [asdict(problem) for problem in listing.problems]]
    identity = json.dumps([_FORMAT_VERSION, asdict(options), *found])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    summary = _load_summary(csv_path)
    verdict = "reused (the corpus has not changed)"
    if summary is None or summary.fingerprint != fingerprint:
        summary = _rebuild(pool, data_folder, folder, listing, csv_path, options, fingerprint)
        verdict = "written"
    logger.info(
        "%s: %d utterances, %.2f h; left out: %d too short, %d too long; %d problems; %s %s",
        csv_path.stem,
        summary.utterances,
        summary.hours,
        summary.too_short,
        summary.too_long,
        len(summary.problems),
        csv_path,
        verdict,
    )
    return summary


def _rebuild(
    pool: ThreadPoolExecutor,
    data_folder: Path,
    folder: Path,
    listing: Listing,
    csv_path: Path,
    options: _Options,
    fingerprint: str,
) -> _Summary:
    """Read and decode a split anew, and write its manifest and summary."""
    transcripts = list(pool.map(partial(read_transcript, data_folder), listing.transcripts))
    words, problems = _match(listing, transcripts)
    problems += listing.problems

    rows: list[tuple[ManifestRow, str]] = []
    seconds = 0.0
    too_short = too_long = 0
    check = partial(check_recording, data_folder, options.sample_rate)
    checked = _run(pool, check, listing.audio, title=f"checking {csv_path.stem}")
    for path, (samples, found) in zip(listing.audio, checked, strict=True):
        speaker, *rest = PurePosixPath(path).relative_to(folder.relative_to(data_folder).as_posix()).parts
        if not rest:
            found = [*found, Problem("audio outside a speaker folder", path)]
        problems += found
        utterance = utterance_id(path)
        if found or utterance not in words:
            continue
        duration = samples / options.sample_rate
        if duration < options.min_duration:
            too_short += 1
        elif options.max_duration is not None and duration > options.max_duration:
            too_long += 1
        else:
            seconds += duration
            rows.append((ManifestRow(utterance, Path(path), duration, words[utterance]), speaker))

    # The CSV first: if the run dies between the two, the old summary's hash does not fit and both are redone.
    write_manifest(csv_path, rows)
    digest = hashlib.sha256(csv_path.read_bytes()).hexdigest()
    problems.sort(key=lambda problem: (problem.kind, problem.where, problem.detail))
    summary = _Summary(fingerprint, digest, len(rows), seconds / 3600, too_short, too_long, problems)
    with write_atomically(csv_path.with_suffix(".json")) as stream:
        stream.write(json.dumps(asdict(summary), indent=1))
    return summary


def _match(listing: Listing, transcripts: list[Transcript]) -> tuple[dict[str, str], list[Problem]]:
    """Bring recordings and transcript lines together by utterance ID.

    Returns
    -------
    tuple
        The words of every ID that has exactly one recording and one good line, and the problems.
    """
    recordings = collections.defaultdict(list)
    for path in listing.audio:
        recordings[utterance_id(path)].append(path)
    lines = collections.defaultdict(list)
    named: set[str] = set()  # a bad line is reported once, not again as a recording without transcript
    unread: set[PurePosixPath] = set()  # likewise for the folder of a transcript that cannot be read at all
    problems: list[Problem] = []
    for path, transcript in zip(listing.transcripts, transcripts, strict=True):
        problems += transcript.problems
        named |= transcript.named
        if transcript.unreadable:
            unread.add(PurePosixPath(path).parent)
        for utterance, where, text in transcript.lines:
            lines[utterance].append((where, text))

    for utterance, found in lines.items():
        places = [where for where, _ in found]
        if len(places) > 1:
            problems.append(Problem("duplicate utterance ID", utterance, "transcripts " + ", ".join(places)))
        if utterance not in recordings:
            problems.append(Problem("transcript without audio", places[0], f"no recording of {utterance}"))
    for utterance, paths in recordings.items():
        if len(paths) > 1:
            problems.append(Problem("duplicate utterance ID", utterance, "recordings " + ", ".join(paths)))
        if utterance not in named:
            lonely = [path for path in paths if PurePosixPath(path).parent not in unread]
            problems += [Problem("audio without transcript", path) for path in lonely]

    words = {
        utterance: lines[utterance][0][1]
        for utterance, paths in recordings.items()
        if len(paths) == 1 and utterance in lines and len(lines[utterance]) == 1
    }
    return words, problems


def _load_summary(csv_path: Path) -> _Summary | None:
    """Return the summary beside a CSV, or None unless both are there, whole, and belong together."""
    try:
        raw = json.loads(csv_path.with_suffix(".json").read_text(encoding="utf-8"))
        summary = _Summary(**{**raw, "problems": [Problem(**problem) for problem in raw["problems"]]})
        digest = hashlib.sha256(csv_path.read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return summary if digest == summary.csv_sha256 else None


def _run(
    pool: ThreadPoolExecutor, function: Callable[[str], Any], paths: list[str], title: str
) -> Iterable[Any]:
    """Yield the results of ``function`` for all paths, in their order, and show how far it is."""

    def run_some(start: int) -> list[Any]:  # a task of several files costs less than several tasks
        return [function(path) for path in paths[start : start + _FILES_PER_TASK]]

    with Progress(title, len(paths), "files", every=_LINE_EVERY) as progress:
        for results in pool.map(run_some, range(0, len(paths), _FILES_PER_TASK)):
            progress.advance(len(results))
            yield from results


def _describe_problems(problems: list[Problem], limit: int | None) -> str:
    by_kind = collections.defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    text = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the corpus:"]
    for kind, found in sorted(by_kind.items()):
        text.append(f"{kind} ({len(found)}):")
        text += [f"  {problem}" for problem in found[:limit]]
        if limit is not None and len(found) > limit:
            text.append(f"  ... and {len(found) - limit} more")
    return "\n".join(text) + "\n"


def _describe_missing(data_folder: Path, missing: list[str]) -> str:
    if not missing:
        return ""
    places = [place for place in (data_folder, data_folder / "LibriSpeech") if place.is_dir()]
    folders = sorted(p for place in places for p in place.iterdir() if p.is_dir() and p.name[0] != ".")
    names = [folder.relative_to(data_folder).as_posix() for folder in folders]
    return (
        f"missing in data_folder '{data_folder}': {', '.join(missing)} (looked for <split>/ and "
        f"LibriSpeech/<split>/). Folders there: {', '.join(names[:50]) or 'none'}."
    )


def _check_options(
    splits: Sequence[str],
    sample_rate: int,
    on_bad_data: str,
    min_duration: float,
    max_duration: float | None,
    num_workers: int | None,
) -> None:
    if isinstance(splits, str) or not splits:
        raise ValueError(f"splits must be a list of at least one split name, not {splits!r}.")
    for split in splits:
        if not split or split.startswith(".") or "/" in split or "\\" in split:
            raise ValueError(f"splits: {split!r} is not a folder name; give names like dev-clean, no paths.")
    if on_bad_data not in ("refuse", "skip"):
        raise ValueError(f"on_bad_data must be 'refuse' or 'skip', not {on_bad_data!r}.")
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be a number of Hz above 0, not {sample_rate}.")
    if min_duration < 0 or (max_duration is not None and max_duration <= min_duration):
        raise ValueError(f"need 0 <= min_duration < max_duration (s), got {min_duration} and {max_duration}.")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}.")
