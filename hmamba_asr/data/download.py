"""Download LibriSpeech, Mini LibriSpeech and AN4: resumable, checked, and unpacked all or nothing.

LibriSpeech is https://www.openslr.org/12, Mini LibriSpeech https://www.openslr.org/31, AN4
https://www.speech.cs.cmu.edu/databases/an4/. Small splits (:mod:`hmamba_asr.data.subsets`) are made from the
splits that contain them.
"""

from __future__ import annotations

import difflib
import errno
import gzip
import hashlib
import http.client
import logging
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hmamba_asr.data.an4 import AN4_URL, convert_an4
from hmamba_asr.data.an4 import SPLITS as AN4_SPLITS
from hmamba_asr.data.scan import count_recordings, find_split
from hmamba_asr.data.subsets import SUBSETS, make_subset

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes
_TIMEOUT = 60.0  # seconds without a byte
_TRY_LATER = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers that may be different the next time


class DownloadError(OSError):
    """A split could not be downloaded or unpacked. The message says why and what to do."""


@dataclass(frozen=True)
class Archive:
    """One ``<split>.tar.gz``: its OpenSLR resource, the MD5 published there, its number of recordings."""

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
    """Fetch splits into ``dest/LibriSpeech/<split>``.

    Run the same call again after any interruption: a partial ``<split>.tar.gz.part`` is continued, and a
    split that is there with all its recordings is skipped. An archive ``dest/<split>.tar.gz`` that you put
    there yourself is used and kept; a downloaded one is removed once it is unpacked.

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
        The folder of each split.

    Raises
    ------
    ValueError
        For an unknown split name, or no split.
    DownloadError
        For an error of the network, the disk or the checksum. What has come stays, except an archive with a
        wrong checksum.
    """
    if isinstance(splits, str) or not splits:
        raise ValueError(f"splits must be a list of at least one split name, not {splits!r}.")
    known = sorted([*archives, *SUBSETS, "an4"])
    for split in splits:
        if split not in known:
            close = difflib.get_close_matches(split, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"Unknown split '{split}'.{hint} Known splits: {', '.join(known)}.")
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError("This Python cannot unpack archives safely; use 3.10.12, 3.11.4 or a newer one.")

    folders, network = {}, (retries, retry_wait, progress)
    for split in dict.fromkeys(splits):
        with _disk_errors(Path(dest)):
            if split == "an4":
                folders.update(_download_an4(an4_url, Path(dest), *network))
                continue
            source = SUBSETS.get(split, split)
            if source == split or find_split(Path(dest), source) is None:
                archive = archives[source]
                url = f"{_resource_url(base_url, archive)}/{source}.tar.gz"
                folders[source] = _download_split(source, archive, url, Path(dest), *network)
            if source != split:
                folders[split] = make_subset(split, dest)
    return folders


def _resource_url(base_url: str, archive: Archive) -> str:
    root = base_url.rstrip("/")
    return f"{root[:-3]}/{archive.resource}" if root.endswith("/12") else root


def _download_an4(url: str, dest: Path, retries: int, retry_wait: float, progress: bool) -> dict[str, Path]:
    if all(len(list((dest / split).glob("*/*/*.flac"))) == count for split, count in AN4_SPLITS.items()):
        logger.info(f"an4: already in {dest}")
        return {split: dest / split for split in AN4_SPLITS}
    dest.mkdir(parents=True, exist_ok=True)
    own, partial = dest / "an4_sphere.tar.gz", dest / "an4_sphere.tar.gz.part"
    if not own.is_file():
        _fetch(url, partial, "an4", retries, retry_wait, progress)
    try:
        folders = convert_an4(own if own.is_file() else partial, dest)
    except ValueError as error:
        partial.unlink(missing_ok=True)
        raise DownloadError(str(error)) from error
    partial.unlink(missing_ok=True)
    return folders


def _download_split(
    split: str, archive: Archive, url: str, dest: Path, retries: int, retry_wait: float, progress: bool
) -> Path:
    folder = dest / "LibriSpeech" / split
    if folder.is_dir():
        there = count_recordings(folder)
        if there == archive.recordings:
            logger.info(f"{split}: already in {folder} ({there} recordings)")
            return folder
        raise DownloadError(
            f"'{folder}' holds {there} recordings instead of {archive.recordings}: not a complete {split}."
            " Move or delete that folder, then run the same command again."
        )
    dest.mkdir(parents=True, exist_ok=True)
    own = dest / f"{split}.tar.gz"
    partial = dest / f"{split}.tar.gz.part"
    if own.is_file():
        if _md5(own, split, progress) != archive.md5:
            raise DownloadError(
                f"'{own}' is damaged or incomplete (its MD5 is not {archive.md5})."
                " Delete it and run the same command again to download it."
            )
        _unpack(own, split, folder, progress)
        return folder

    _fetch(url, partial, split, retries, retry_wait, progress)
    found = _md5(partial, split, progress)
    if found != archive.md5:
        partial.unlink()
        raise DownloadError(
            f"The download of {url} was damaged (MD5 {found}, not {archive.md5}) and has been deleted."
            " Run the same command again; if it happens twice, choose a mirror with --base_url."
        )
    _unpack(partial, split, folder, progress)
    partial.unlink()
    return folder


def _fetch(url: str, partial: Path, split: str, retries: int, retry_wait: float, progress: bool) -> None:
    """Download to ``partial``, from where it ends, until it is whole."""
    best = _size(partial)
    failures = 0
    while True:
        try:
            if _fetch_once(url, partial, split, progress):
                return
            reason = "the connection was cut"
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            if error.code not in _TRY_LATER:
                raise DownloadError(
                    f"The server refuses {url} ({error.code} {error.reason}); check --base_url."
                ) from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        # A long download over a bad line may be cut often: only attempts that bring nothing new count.
        failures = 0 if _size(partial) > best else failures + 1
        best = max(best, _size(partial))
        if failures > retries:
            raise DownloadError(
                f"Cannot download {url}: {reason}. Check the network and run the same command again:"
                f" it goes on from the {best / 1e6:.0f} MB that are there."
            )
        wait = min(60.0, retry_wait * 2 ** max(0, failures - 1))
        logger.warning(f"{split}: {reason}; trying again in {wait:.0f} s")
        time.sleep(wait)


def _fetch_once(url: str, partial: Path, split: str, progress: bool) -> bool:
    """One request. True when the file is whole; False when the connection ended too early."""
    have = _size(partial)
    headers = {"User-Agent": "hmamba-asr", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # "Range not satisfiable": either the file was whole already, or it is longer than the server's.
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return True
        partial.unlink()
        return False
    with closing(response):
        start, total = _range_of(response)
        if response.status == 206 and start != have:  # another part than the one asked for
            partial.unlink()
            return False
        if total is not None:
            _check_space(partial, total - start)
        with _disk_errors(partial):  # unbuffered: every byte that has come is kept, whatever happens next
            file = open(partial, "ab" if start else "wb", buffering=0)  # noqa: SIM115
        with file, _bar(total, split, progress, start) as bar:
            while block := response.read(_BLOCK):
                rest = memoryview(block)
                while rest:  # on a full disk only a part is written
                    with _disk_errors(partial):
                        rest = rest[file.write(rest) :]
                start += len(block)
                bar.update(len(block))
    return total is None or start == total


def _range_of(response: Any) -> tuple[int, int | None]:
    """Where in the file the body starts, and the file's size (None when the server does not say)."""
    if response.status == 206:  # Content-Range: bytes 100-199/200
        span, _, total = response.headers.get("Content-Range", "").partition("/")
        first = span.removeprefix("bytes").strip().partition("-")[0]
        return int(first) if first.isdigit() else -1, int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says into one sentence."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"The disk of '{path}' is full. Free some space, then run the same command again to go on."
        else:
            text = f"Cannot use '{error.filename or path}': {error.strerror or error}."
        raise DownloadError(text) from error


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DownloadError(
            f"Not enough room in '{path.parent}': {needed / 1e9:.1f} GB still to come, {free / 1e9:.1f} GB"
            " are free, and unpacking takes as much again. Free some space or choose another --dest."
        )


def _md5(path: Path, split: str, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with _bar(_size(path), f"{split}: checking", progress) as bar, path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _bar(total: int | None, title: str, progress: bool, initial: int = 0) -> tqdm:
    """A progress bar in bytes; a log file (Slurm) gets a line every half minute."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit="B",
        unit_scale=True,
        mininterval=interval,
        maxinterval=60,
        disable=not progress,
    )


def _unpack(archive: Path, split: str, folder: Path, progress: bool) -> None:
    """Unpack beside the final place and rename in the end: a split's folder is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{split}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
    try:
        with (
            _bar(_size(archive), f"{split}: unpacking", progress) as bar,
            archive.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:gz") as tar,
        ):
            for member in tar:
                tar.extract(member, temporary, filter="data")  # refuses paths that lead outside
                bar.update(file.tell() - bar.n)
        unpacked = temporary / "LibriSpeech"
        if not (unpacked / split).is_dir():
            raise DownloadError(f"'{archive}' holds no folder LibriSpeech/{split}: it is another archive.")
        for other in unpacked.iterdir():  # README.TXT, SPEAKERS.TXT and so on, alike in every archive
            if other.name != split and not (folder.parent / other.name).exists():
                os.replace(other, folder.parent / other.name)
        os.replace(unpacked / split, folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        advice = "Delete it and run the same command again."
        raise DownloadError(f"Cannot unpack '{archive}': {error}. {advice}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
