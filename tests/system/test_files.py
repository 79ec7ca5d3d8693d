"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os

import pytest

from hmamba_asr.system.files import flush_to_disk, unfinished_folder, write_atomically


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as stream:
        stream.write("half")
        stream.flush()
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


def test_a_file_is_exchanged_not_overwritten(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with path.open() as reader:
        with write_atomically(path) as stream:
            stream.write("new")
        assert reader.read() == "old"  # who reads meanwhile sees one whole file
    assert path.read_text() == "new"


def test_missing_parent_folders_are_created(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with write_atomically(str(path)) as stream:
        stream.write("new")
    assert path.read_text() == "new"


def test_bytes_and_text_are_written_as_they_are(tmp_path):
    path = tmp_path / "file"
    with write_atomically(path, binary=True) as stream:
        stream.write(b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"
    with write_atomically(path) as stream:
        stream.write("\u00dc\r\n\n" + os.fsdecode(b"\xff"))  # a file name that is not UTF-8
    assert path.read_bytes() == "\u00dc\r\n\n\\udcff".encode()


def test_a_file_that_cannot_take_its_place_leaves_nothing(tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"), write_atomically(tmp_path / "folder") as stream:
        stream.write("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_unfinished_folder_starts_empty_and_goes_at_the_end(tmp_path):
    remains = tmp_path / "new" / ".split.unfinished" / "left by a killed process"
    remains.mkdir(parents=True)
    with unfinished_folder(tmp_path / "new", "split") as folder:
        assert folder.parent == tmp_path / "new" and not list(folder.iterdir())
        (folder / "done").mkdir()
        os.replace(folder / "done", tmp_path / "new" / "split")
    with pytest.raises(KeyboardInterrupt), unfinished_folder(tmp_path / "new", "other") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["split"]


def test_files_and_folders_are_flushed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("content")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    for path in (tmp_path / "file", tmp_path):
        flush_to_disk(path)
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
    with pytest.raises(FileNotFoundError):
        flush_to_disk(tmp_path / "gone")
