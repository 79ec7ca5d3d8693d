"""Download one file over HTTP, and go on where an interrupted download stopped."""

from __future__ import annotations

import errno
import http.client
import logging
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Bytes that are read at a time."""

_TIMEOUT = 60.0  # seconds without a byte
_TRY_LATER = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers that may be different the next time


class DownloadError(OSError):
    """A file could not be downloaded or unpacked. The message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How a download deals with failures, and whether it shows progress.

    Attributes
    ----------
    retries
        How often in a row to try again without getting one new byte.
    retry_wait
        Seconds before the first retry. The wait doubles with each retry, up to a minute.
    progress
        Show progress bars.
    """

    retries: int
    retry_wait: float
    progress: bool


def fetch(url: str, path: Path, title: str, patience: Patience, *, refused: str) -> None:
    """Download ``url`` to ``path``, from where the file ends, until it is whole.

    Parameters
    ----------
    url
        The address.
    path
        The file. Every byte that comes is kept in it, whatever happens next.
    title
        What the progress bar and the warnings call the file.
    patience
        How to deal with failures.
    refused
        What the user should do if the server refuses the address, as a clause.

    Raises
    ------
    DownloadError
        If the server refuses the address, the connection fails for good, or the disk is full.
    """
    best = file_size(path)
    failures = 0
    while True:
        try:
            if _fetch_once(url, path, title, patience.progress):
                return
            reason = "the connection was cut"
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            if error.code not in _TRY_LATER:
                message = f"the server refuses {url} ({error.code} {error.reason}); {refused}."
                raise DownloadError(message) from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        # A long download over a bad line may be cut often: only attempts that bring nothing new count.
        failures = 0 if file_size(path) > best else failures + 1
        best = max(best, file_size(path))
        if failures > patience.retries:
            raise DownloadError(
                f"cannot download {url}: {reason}; check the network and run the same command again, which "
                f"goes on from the {best / 1e6:.0f} MB that are there."
            )
        wait = min(60.0, patience.retry_wait * 2 ** max(0, failures - 1))
        logger.warning("%s: %s; trying again in %.0f s", title, reason, wait)
        time.sleep(wait)


def file_size(path: Path) -> int:
    """Return the bytes of a file, 0 of one that is not there."""
    return path.stat().st_size if path.exists() else 0


def byte_bar(total: int | None, title: str, progress: bool, initial: int = 0) -> tqdm:
    """Make a progress bar in bytes. A log file (Slurm) gets a line every half minute."""
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


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn every error of the disk in the block into a `DownloadError`."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk of '{path}' is full; free some space and run the same command again to go on."
        elif error.errno is None:  # raised by this package, with a sentence of its own
            text = str(error)
        else:
            text = f"cannot use '{error.filename or path}': {error.strerror or error}."
        raise DownloadError(text) from error


def _fetch_once(url: str, path: Path, title: str, progress: bool) -> bool:
    """Make one request. Returns True when the file is whole, False when the connection ended too early."""
    have = file_size(path)
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
        path.unlink()
        return False
    with closing(response):
        start, total = _content_range(response)
        if response.status == 206 and start != have:  # another part than the one asked for
            path.unlink()
            return False
        if total is not None:
            _check_space(path, total - start)
        with disk_errors(path):  # unbuffered: every byte that has come is kept, whatever happens next
            file = open(path, "ab" if start else "wb", buffering=0)  # noqa: SIM115
        with file, byte_bar(total, title, progress, start) as bar:
            while block := response.read(BLOCK):
                rest = memoryview(block)
                while rest:  # on a full disk only a part is written
                    with disk_errors(path):
                        rest = rest[file.write(rest) :]
                start += len(block)
                bar.update(len(block))
    return total is None or start == total


def _content_range(response: Any) -> tuple[int, int | None]:
    """Return where in the file the body starts, and the file's size (None when the server does not say)."""
    if response.status == 206:  # Content-Range: bytes 100-199/200
        span, _, total = response.headers.get("Content-Range", "").partition("/")
        first = span.removeprefix("bytes").strip().partition("-")[0]
        return int(first) if first.isdigit() else -1, int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DownloadError(
            f"not enough room in '{path.parent}': {needed / 1e9:.1f} GB are still to come and "
            f"{free / 1e9:.1f} GB are free, and unpacking takes as much again; free some space or choose "
            "another --dest."
        )
