"""Small splits out of large ones, and AN4 in LibriSpeech's layout."""

from __future__ import annotations

import errno
import gzip
import shutil

import numpy as np
import pytest
import soundfile

from hmamba_asr.data import an4, subsets
from hmamba_asr.data.subsets import SUBSETS, make_subset, read_ids


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source split of two chapters, and a subset that lists three of its five utterances."""
    monkeypatch.setattr(subsets, "SUBSETS", {"small": "large"})
    monkeypatch.setattr(subsets, "read_ids", lambda subset: ["1-2-0000", "1-2-0002", "3-4-0001"])
    for speaker, chapter, count in (("1", "2", 3), ("3", "4", 2)):
        folder = tmp_path / "LibriSpeech" / "large" / speaker / chapter
        folder.mkdir(parents=True)
        names = [f"{speaker}-{chapter}-{number:04d}" for number in range(count)]
        for name in names:
            (folder / f"{name}.flac").write_bytes(name.encode())
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(f"{n} WORDS OF {n}\n" for n in names))
    return tmp_path


def test_a_subset_has_the_listed_utterances_with_their_words(source):
    folder = make_subset("small", source)
    assert folder == source / "LibriSpeech" / "small"
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.flac")}
    assert found == {
        "1/2/1-2-0000.flac": b"1-2-0000",
        "1/2/1-2-0002.flac": b"1-2-0002",
        "3/4/3-4-0001.flac": b"3-4-0001",
    }
    assert (folder / "1/2/1-2.trans.txt").read_text() == (
        "1-2-0000 WORDS OF 1-2-0000\n1-2-0002 WORDS OF 1-2-0002\n"
    )
    assert make_subset("small", source) == folder  # nothing to do
    (folder / "1/2/1-2-0000.flac").unlink()
    assert len(list(make_subset("small", source).rglob("*.flac"))) == 3  # made whole again


def test_a_subset_needs_its_source_whole(source, tmp_path):
    (source / "LibriSpeech/large/3/4/3-4-0001.flac").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"3-4-0001\.flac is missing, which small needs; download large"
    ):
        make_subset("small", source)
    assert sorted(path.name for path in (source / "LibriSpeech").iterdir()) == ["large"]
    with pytest.raises(FileNotFoundError, match="small is a part of large, which is not in"):
        make_subset("small", tmp_path / "elsewhere")


def test_a_subset_needs_the_words_of_each_utterance(source):
    (source / "LibriSpeech/large/1/2/1-2.trans.txt").write_text("1-2-0000 WORDS\n1-2-00021 OTHER WORDS\n")
    with pytest.raises(
        FileNotFoundError, match=r"the line of 1-2-0002 in .*1-2\.trans\.txt is missing, which small"
    ):
        make_subset("small", source)
    assert sorted(path.name for path in (source / "LibriSpeech").iterdir()) == ["large"]


def test_a_subset_lies_beside_its_source_and_needs_it_no_more(source):
    folder = make_subset("small", source / "LibriSpeech")  # the data folder that holds the splits themselves
    assert folder == source / "LibriSpeech" / "small"
    shutil.rmtree(source / "LibriSpeech" / "large")
    assert make_subset("small", source) == make_subset("small", source / "LibriSpeech").resolve() == folder


@pytest.mark.parametrize("foreign", ["1/2/1-2-0001.flac", "9/9/9-9.trans.txt"])
def test_a_folder_of_the_users_own_is_neither_trusted_nor_touched(source, foreign):
    own = make_subset("small", source) / foreign
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(b"mine")
    for lost in (None, "3/4/3-4-0001.flac"):  # neither a whole one nor one that lacks a file
        if lost:
            (source / "LibriSpeech/small" / lost).unlink()
        with pytest.raises(
            FileExistsError, match=f"holds {foreign}, which is no part of small; move or delete"
        ):
            make_subset("small", source)
        assert own.read_bytes() == b"mine"


def test_remains_of_a_killed_run_do_not_matter(source):
    remains = source / "LibriSpeech" / ".small.unfinished" / "1" / "2"
    remains.mkdir(parents=True)
    (remains / "1-2-0009.flac").write_bytes(b"half")
    assert len(list(make_subset("small", source).rglob("*.flac"))) == 3
    assert sorted(path.name for path in (source / "LibriSpeech").iterdir()) == ["large", "small"]


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_a_disk_without_links_gets_copies(source, monkeypatch, error):
    def refuse(*args: object) -> None:
        raise OSError(error, "no link")

    monkeypatch.setattr(subsets.os, "link", refuse)
    recording = make_subset("small", source) / "1/2/1-2-0002.flac"
    assert recording.read_bytes() == b"1-2-0002" and recording.stat().st_nlink == 1


def test_a_source_of_symbolic_links_gives_recordings(source, tmp_path):
    recording = source / "LibriSpeech/large/1/2/1-2-0002.flac"
    recording.rename(source / "LibriSpeech/large/elsewhere.flac")
    recording.symlink_to("../../elsewhere.flac")
    shutil.move(make_subset("small", source), tmp_path / "moved")
    found = tmp_path / "moved" / "1/2/1-2-0002.flac"
    assert found.read_bytes() == b"1-2-0002" and not found.is_symlink()


def test_the_lists_of_this_package():
    assert {name: len(read_ids(name)) for name in SUBSETS} == {"dev-clean-mini": 752, "test-clean-mini": 629}
    for name in SUBSETS:
        ids = read_ids(name)
        assert ids == sorted(set(ids)) and all(len(i.split("-")) == 3 for i in ids)
    assert {i.split("-")[0] for i in read_ids("dev-clean-mini")} == {
        "26",
        "27",
        "4088",
        "4406",
        "5652",
        "8226",
    }
    assert len({i.split("-")[0] for i in read_ids("test-clean-mini")}) == 10


def test_an4_in_librispeechs_layout(tmp_path, monkeypatch, an4_archive):
    monkeypatch.setattr(an4, "SPLITS", {"an4-train": 14, "an4-dev": 2, "an4-test": 2})
    archive = tmp_path / "an4.tar.gz"
    archive.write_bytes(an4_archive({"train": list("hgfedcba"), "test": ["x"]}))
    folders = an4.convert_an4(archive, tmp_path / "data")
    assert {split: len(list(folder.rglob("*.flac"))) for split, folder in folders.items()} == an4.SPLITS
    assert [path.name for path in folders["an4-dev"].iterdir()] == ["1004"]  # the fourth in AN4's order
    assert (
        folders["an4-dev"] / "1004/1/1004-1.trans.txt"
    ).read_text() == "1004-1-0000 AN1 3\n1004-1-0001 CEN2 3\n"
    assert (
        folders["an4-test"] / "2001/1/2001-1.trans.txt"
    ).read_text() == "2001-1-0000 AN1 0\n2001-1-0001 CEN2 0\n"
    samples, rate = soundfile.read(folders["an4-dev"] / "1004/1/1004-1-0000.flac", dtype="int16")
    assert rate == 16000 and (samples == (1000 * np.sin(np.arange(803))).astype("int16")).all()


def test_what_is_not_an4_leaves_nothing(tmp_path, an4_archive):
    archive = tmp_path / "an4.tar.gz"
    whole = an4_archive({"train": ["a"], "test": ["b"]})
    tar = bytearray(gzip.decompress(whole))
    tar[tar.index(b"NIST_1A")] ^= 0xFF
    damaged = gzip.compress(bytes(tar))
    for content, reason in (
        (b"no archive", "cannot be unpacked as AN4"),
        (b"", "cannot be unpacked as AN4"),
        (whole[: len(whole) // 2], "cannot be unpacked as AN4"),
        (whole[:-8] + bytes(8), "cannot be unpacked as AN4 .*CRC"),  # the checksum stands at the very end
        (damaged, "holds damaged files"),
        (an4_archive({"train": ["a"]}), "is not AN4: it lacks"),
        (whole, "is not AN4: it gives"),
    ):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            an4.convert_an4(archive, tmp_path / "data")
        assert not list(tmp_path.glob("data/*")) and not list(tmp_path.glob("data/.*"))
    archive.unlink()
    with pytest.raises(FileNotFoundError):
        an4.convert_an4(archive, tmp_path / "data")
