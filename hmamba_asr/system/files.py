"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def write_atomically(path: str | Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file that takes its place at ``path`` when the block ends without an error.

    Readers see the old file or the whole new one. An error in the block leaves the old file as it was.

    Parameters
    ----------
    path
        Where the file appears. Missing parent folders are created.
    binary
        Write bytes instead of UTF-8 text. Text that UTF-8 cannot encode (file names that are not UTF-8) is
        written with backslash escapes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text: dict[str, Any] = (
        {} if binary else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    )
    try:
        with open(temporary, "wb" if binary else "w", **text) as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def unfinished_folder(parent: str | Path, name: str) -> Iterator[Path]:
    """Make the empty folder ``parent/.<name>.unfinished`` and remove it when the block ends.

    A folder that must appear whole is built in there and moved to its place by ``os.replace``. What a killed
    process left is cleared first. Two processes must not use the same name at a time.

    Parameters
    ----------
    parent
        The folder on whose disk the result is to appear. It is created if it is missing.
    name
        The name of what is built.
    """
    folder = Path(parent) / f".{name}.unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def flush_to_disk(path: str | Path) -> None:
    """Force the content of a file or folder to disk, so that a later rename never overtakes it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
