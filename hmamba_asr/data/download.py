"""Download LibriSpeech, Mini LibriSpeech and AN4: resumable, checked, and unpacked all or nothing.

LibriSpeech is https://www.openslr.org/12, Mini LibriSpeech https://www.openslr.org/31, AN4
https://www.speech.cs.cmu.edu/databases/an4/. Small splits (:mod:`hmamba_asr.data.subsets`) are made from the
splits that contain them.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import logging
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmamba_asr.data.an4 import AN4_URL, convert_an4, missing_an4_splits
from hmamba_asr.data.an4 import SPLITS as AN4_SPLITS
from hmamba_asr.data.corpus_files import count_recordings, find_split
from hmamba_asr.data.fetch import BLOCK, DownloadError, Patience, byte_bar, disk_errors, fetch, file_size
from hmamba_asr.data.subsets import SUBSETS, find_subset, make_subset
from hmamba_asr.system.files import unfinished_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A ``<split>.tar.gz`` of OpenSLR.

    Attributes
    ----------
    resource
        The number of its OpenSLR resource.
    md5
        The MD5 that is published there.
    recordings
        Its number of recordings.
    """

    resource: int
    md5: str
    recordings: int


ARCHIVES: Mapping[str, Archive] = {
    "dev-clean": Archive(12, "42e2234ba48799c1f50f24a7926300a1", 2703),
    "dev-other": Archive(12, "c8d0bcc9cca99d4f8b62fcc847357931", 2864),
    "test-clean": Archive(12, "32fa31d27d2e1cad72775fee3f4849a9", 2620),
    "test-other": Archive(12, "fb5a50374b501bb3bac4815ee91d3135", 2939),
    "train-clean-100": Archive(12, "2a93770f6d5c6c964bc36631d331a522", 28539),
    "train-clean-360": Archive(12, "c0e676e450a7ff2f54aeade5171606fa", 104014),
    "train-other-500": Archive(12, "d1a0fd59409feb2c614ce4d30c387708", 148688),
    "dev-clean-2": Archive(31, "6d7ab67ac6a1d2c993d050e16d61080d", 1089),
    "train-clean-5": Archive(31, "5df7d4e78065366204ca6845bb08f490", 1519),
}
"""The splits of LibriSpeech and Mini LibriSpeech."""


def download(
    *,
    splits: Sequence[str],
    dest: str | os.PathLike[str],
    base_url: str = "https://www.openslr.org/resources/12",
    retries: int = 5,
    progress: bool = True,
    retry_wait: float = 2.0,
    archives: Mapping[str, Archive] = ARCHIVES,
    an4_url: str = AN4_URL,
) -> dict[str, Path]:
    """Download splits into ``dest/LibriSpeech/<split>``.

    Run the same call again after any interruption: a partial ``<split>.tar.gz.part`` is continued, and a
    split that is there with all its recordings is skipped. An archive ``dest/<split>.tar.gz`` (of AN4
    ``dest/an4_sphere.tar.gz``) that you put there yourself is used and kept; a downloaded one is removed once
    it is unpacked.

    Parameters
    ----------
    splits
        Names of ``archives``; names of ``SUBSETS``, whose source split is downloaded first where it is
        missing; or "an4", which gives ``dest/an4-train``, ``dest/an4-dev`` and ``dest/an4-test``.
    dest
        The folder for the splits, made if it is missing. It needs room for the archive and the unpacked split
        together.
    base_url
        Where LibriSpeech's archives lie, for example a mirror's ``.../resources/12``. If it ends in ``/12``,
        Mini LibriSpeech is taken from ``/31`` beside it.
    retries
        How often in a row to try again without getting one new byte.
    progress
        Show progress bars.
    retry_wait
        Seconds before the first retry. The wait doubles with each retry, up to a minute.
    archives
        The known splits.
    an4_url
        Where AN4's archive lies.

    Returns
    -------
    dict
        The folder of each split that was asked for.

    Raises
    ------
    ValueError
        For an unknown split name, or no split.
    DownloadError
        For an error of the network, the disk, an archive, or a folder that is there and holds something else.
        What has come stays, except an archive that is wrong.
    """
    if isinstance(splits, str) or not splits:
        raise ValueError(f"splits must be a list of at least one split name, not {splits!r}.")
    known = sorted([*archives, *SUBSETS, "an4"])
    for split in splits:
        if split not in known:
            close = difflib.get_close_matches(split, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ValueError(f"unknown split '{split}'{hint} Known splits: {', '.join(known)}.")
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError("this Python cannot unpack archives safely; use 3.10.12, 3.11.4 or a newer one.")

    dest = Path(dest)
    patience = Patience(retries=retries, retry_wait=retry_wait, progress=progress)

    def download_split(split: str) -> Path:
        archive = archives[split]
        url = f"{_resource_url(base_url, archive)}/{split}.tar.gz"
        return _download_split(split, archive, url, dest, patience)

    folders: dict[str, Path] = {}
    for split in dict.fromkeys(splits):
        with disk_errors(dest):
            if split == "an4":
                folders.update(_download_an4(an4_url, dest, patience))
            elif split in archives:
                folders[split] = download_split(split)
            else:
                if find_subset(split, dest) is None and find_split(dest, SUBSETS[split]) is None:
                    download_split(SUBSETS[split])
                folders[split] = make_subset(split, dest)
    return folders


def _resource_url(base_url: str, archive: Archive) -> str:
    root = base_url.rstrip("/")
    return f"{root[:-3]}/{archive.resource}" if root.endswith("/12") else root


def _download_an4(url: str, dest: Path, patience: Patience) -> dict[str, Path]:
    own, partial = dest / "an4_sphere.tar.gz", dest / "an4_sphere.tar.gz.part"
    if not missing_an4_splits(dest):
        logger.info("an4: already in %s", dest)
        partial.unlink(missing_ok=True)  # left by a run that was killed at its end
        return {split: dest / split for split in AN4_SPLITS}
    dest.mkdir(parents=True, exist_ok=True)
    if own.is_file():
        try:
            return convert_an4(own, dest)
        except ValueError as error:
            raise DownloadError(str(error)) from error
    fetch(url, partial, "an4", patience, refused=f"get AN4's archive elsewhere and put it at {own}")
    try:
        folders = convert_an4(partial, dest)
    except ValueError as error:
        partial.unlink()
        raise DownloadError(f"{error} (It has been deleted.)") from error
    partial.unlink()
    return folders


def _download_split(split: str, archive: Archive, url: str, dest: Path, patience: Patience) -> Path:
    folder = dest / "LibriSpeech" / split
    own, partial = dest / f"{split}.tar.gz", dest / f"{split}.tar.gz.part"
    if folder.is_dir():
        there = count_recordings(folder)
        if there != archive.recordings:
            raise DownloadError(
                f"'{folder}' holds {there} recordings instead of {archive.recordings} and is no complete "
                f"{split}; move or delete that folder, then run the same command again."
            )
        logger.info("%s: already in %s (%d recordings)", split, folder, there)
        partial.unlink(missing_ok=True)  # left by a run that was killed at its end
        return folder
    dest.mkdir(parents=True, exist_ok=True)
    if own.is_file():
        if _md5(own, split, patience.progress) != archive.md5:
            raise DownloadError(
                f"'{own}' is damaged or incomplete (its MD5 is not {archive.md5}); delete it and run the "
                "same command again to download it."
            )
        _unpack(own, split, folder, patience.progress)
        return folder

    fetch(url, partial, split, patience, refused="check --base_url")
    found = _md5(partial, split, patience.progress)
    if found != archive.md5:
        partial.unlink()
        raise DownloadError(
            f"the download of {url} was damaged (MD5 {found}, not {archive.md5}) and has been deleted; run "
            "the same command again, and if it happens twice, choose a mirror with --base_url."
        )
    _unpack(partial, split, folder, patience.progress)
    partial.unlink()
    return folder


def _md5(path: Path, split: str, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with byte_bar(file_size(path), f"{split}: checking", progress) as bar, path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _unpack(archive: Path, split: str, folder: Path, progress: bool) -> None:
    """Unpack beside the final place and rename in the end: a split's folder is there whole or not at all."""
    with unfinished_folder(folder.parent, split) as temporary:
        try:
            with (
                byte_bar(file_size(archive), f"{split}: unpacking", progress) as bar,
                archive.open("rb") as file,
                tarfile.open(fileobj=file, mode="r:gz") as tar,
            ):
                for member in tar:
                    tar.extract(member, temporary, filter="data")  # refuses paths that lead outside
                    bar.update(file.tell() - bar.n)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DownloadError(
                f"cannot unpack '{archive}' ({error}); delete it and run the same command again."
            ) from error
        unpacked = temporary / "LibriSpeech"
        if not (unpacked / split).is_dir():
            raise DownloadError(
                f"'{archive}' holds no folder LibriSpeech/{split}; delete it and run the same command again."
            )
        for other in unpacked.iterdir():  # README.TXT, SPEAKERS.TXT and so on, alike in every archive
            if other.name != split and not (folder.parent / other.name).exists():
                os.replace(other, folder.parent / other.name)
        os.replace(unpacked / split, folder)
