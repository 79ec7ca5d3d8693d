"""Small splits: parts of LibriSpeech's splits whose utterances this package lists.

``dev-clean-mini`` holds 6 speakers of train-clean-100 that train-clean-5 does not have, ``test-clean-mini``
10 of test-clean's 40 speakers. The lists lie in ``splits/``, an utterance ID a line.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from hmamba_asr.data.scan import find_split

SUBSETS: Mapping[str, str] = {"dev-clean-mini": "train-clean-100", "test-clean-mini": "test-clean"}
"""Source split of each subset."""


def read_ids(subset: str) -> list[str]:
    """Read the utterance IDs of a subset, in ascending order."""
    path = Path(__file__).with_name("splits") / f"{subset}.txt"
    return path.read_text(encoding="utf-8").split()


def make_subset(subset: str, data_folder: str | Path) -> Path:
    """Make ``data_folder/LibriSpeech/<subset>`` out of its source split.

    The recordings become hard links, or copies where the disk has no links. The folder appears whole or not
    at all.

    Parameters
    ----------
    subset
        A key of ``SUBSETS``.
    data_folder
        The folder that holds the source split, as ``<split>/`` or ``LibriSpeech/<split>/``.

    Returns
    -------
    Path
        The folder of the subset. One that is there with all its recordings is left as it is.

    Raises
    ------
    FileNotFoundError
        If the source split or one of its utterances is missing.
    """
    data_folder, source_name, ids = Path(data_folder), SUBSETS[subset], read_ids(subset)
    target = data_folder / "LibriSpeech" / subset
    if target.is_dir() and len(list(target.glob("*/*/*.flac"))) == len(ids):
        return target
    source = find_split(data_folder, source_name)
    if source is None:
        raise FileNotFoundError(
            f"{subset} is a part of {source_name}, which is not in {data_folder}; download {source_name} "
            "first."
        )
    temporary = target.with_name(f".{subset}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, source, ids)
        shutil.rmtree(target, ignore_errors=True)  # incomplete: somebody stopped a copy
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _fill(target: Path, source: Path, ids: list[str]) -> None:
    chapters: dict[tuple[str, str], list[str]] = defaultdict(list)
    for utterance in ids:
        speaker, chapter, _ = utterance.split("-")
        chapters[speaker, chapter].append(utterance)
    for (speaker, chapter), utterances in chapters.items():
        here, there = source / speaker / chapter, target / speaker / chapter
        there.mkdir(parents=True)
        transcript = f"{speaker}-{chapter}.trans.txt"
        try:
            lines = (here / transcript).read_text(encoding="utf-8").splitlines(keepends=True)
            for utterance in utterances:
                _link(here / f"{utterance}.flac", there / f"{utterance}.flac")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error.filename} is missing, which {target.name.split('.')[1]} needs; "
                f"download {source.name} again."
            ) from error
        wanted = set(utterances)
        kept = [line for line in lines if line.split(" ", 1)[0] in wanted]
        (there / transcript).write_text("".join(kept), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
