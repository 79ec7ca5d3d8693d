"""Small splits: parts of LibriSpeech's splits whose utterances this package lists.

``dev-clean-mini`` holds 6 speakers of train-clean-100 that train-clean-5 does not have, ``test-clean-mini``
10 of test-clean's 40 speakers. The lists lie in ``splits/``, an utterance ID a line.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from hmamba_asr.data.corpus_files import find_split, list_files
from hmamba_asr.system.files import unfinished_folder

SUBSETS: Mapping[str, str] = {"dev-clean-mini": "train-clean-100", "test-clean-mini": "test-clean"}
"""Source split of each subset."""


def read_ids(subset: str) -> list[str]:
    """Read the utterance IDs of a subset, in ascending order."""
    path = Path(__file__).with_name("splits") / f"{subset}.txt"
    return path.read_text(encoding="utf-8").split()


def find_subset(subset: str, data_folder: str | Path) -> Path | None:
    """Return the folder of a subset, or None unless all its recordings and transcripts are there.

    Raises
    ------
    FileExistsError
        If the folder holds recordings or transcripts that do not belong to the subset. It is somebody's own
        then, neither to be trusted nor to be replaced.
    """
    folder = find_split(Path(data_folder), subset)
    if folder is None:
        return None
    wanted, listing = _files(read_ids(subset)), list_files(folder, folder)
    found = {*listing.audio, *listing.transcripts}
    if foreign := found - wanted:
        raise FileExistsError(
            f"{folder} holds {min(foreign)}, which is no part of {subset}; move or delete that folder."
        )
    return folder if found == wanted else None


def make_subset(subset: str, data_folder: str | Path) -> Path:
    """Make the folder of a subset beside its source split.

    The recordings become hard links, or copies where the disk has no links. The folder appears whole or not
    at all. A folder that is there with all its files is left as it is; one that lacks files is made again.

    Parameters
    ----------
    subset
        A key of ``SUBSETS``.
    data_folder
        The folder that holds the source split, as ``<split>/`` or ``LibriSpeech/<split>/``.

    Returns
    -------
    Path
        The folder of the subset.

    Raises
    ------
    FileNotFoundError
        If the source split, one of its recordings or the words of one are missing.
    FileExistsError
        If the folder of the subset holds recordings or transcripts that do not belong to it.
    """
    if folder := find_subset(subset, data_folder):
        return folder
    source = find_split(Path(data_folder), SUBSETS[subset])
    if source is None:
        raise FileNotFoundError(
            f"{subset} is a part of {SUBSETS[subset]}, which is not in {data_folder}; download "
            f"{SUBSETS[subset]} first."
        )
    target = find_split(Path(data_folder), subset) or source.with_name(subset)
    with unfinished_folder(target.parent, subset) as folder:
        for (speaker, chapter), utterances in _chapters(read_ids(subset)).items():
            try:
                _copy_chapter(source / speaker / chapter, folder / speaker / chapter, utterances)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error.filename} is missing, which {subset} needs; download {source.name} again."
                ) from error
        shutil.rmtree(target, ignore_errors=True)  # it lacks files, and the new one holds all of its own
        os.replace(folder, target)
    return target


def _chapters(ids: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Sort utterances by speaker and chapter."""
    chapters: dict[tuple[str, str], list[str]] = defaultdict(list)
    for utterance in ids:
        speaker, chapter, _ = utterance.split("-")
        chapters[speaker, chapter].append(utterance)
    return chapters


def _files(ids: Sequence[str]) -> set[str]:
    """Return the files of a subset, relative to its folder."""
    chapters = _chapters(ids)
    transcripts = {f"{speaker}/{chapter}/{speaker}-{chapter}.trans.txt" for speaker, chapter in chapters}
    recordings = {f"{s}/{c}/{utterance}.flac" for (s, c), found in chapters.items() for utterance in found}
    return transcripts | recordings


def _copy_chapter(source: Path, target: Path, utterances: Sequence[str]) -> None:
    target.mkdir(parents=True)
    transcript = f"{source.parent.name}-{source.name}.trans.txt"
    # Bytes: to choose lines, their words need not be decoded.
    lines = (source / transcript).read_bytes().splitlines()
    words = {line.split(b" ", 1)[0].decode("ascii", errors="replace"): line for line in lines}
    for utterance in utterances:
        _link(source / f"{utterance}.flac", target / f"{utterance}.flac")
        if utterance not in words:
            raise FileNotFoundError(
                errno.ENOENT, "no words", f"the line of {utterance} in {source / transcript}"
            )
    kept = b"".join(words[utterance] + b"\n" for utterance in utterances)
    (target / transcript).write_bytes(kept)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(os.path.realpath(source), target)  # of a symbolic link, the recording itself
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
