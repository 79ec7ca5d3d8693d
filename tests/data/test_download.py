"""Against a real HTTP server on this machine, with the faults that servers and lines have."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import shutil
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hmamba_asr.data import an4, subsets
from hmamba_asr.data import download as module
from hmamba_asr.data import fetch as http
from hmamba_asr.data.download import ARCHIVES, Archive, download
from hmamba_asr.data.fetch import DownloadError


def make_archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


NOISE = b"".join(hashlib.sha256(bytes([i, j])).digest() for i in range(100) for j in range(100))  # 320 kB
TINY = make_archive(
    {
        "LibriSpeech/README.TXT": b"read me",
        "LibriSpeech/tiny/1/2/1-2-0000.flac": NOISE,
        "LibriSpeech/tiny/1/2/1-2-0001.flac": NOISE[::-1],
        "LibriSpeech/tiny/1/2/1-2.trans.txt": b"1-2-0000 A\n1-2-0001 B\n",
    }
)


class Server(ThreadingHTTPServer):
    """Serves ``content``; the attributes say what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = TINY
        self.ranges = True  # honours the Range header
        self.shift = 0  # answers a Range with another part
        self.cut_after: list[int] = []  # bytes after which the next answers break off
        self.status: list[int] = []  # codes of the next answers
        self.asked: list[tuple[str, str | None]] = []  # (path, Range header) of every request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/resources/12"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if server.status:
            self.send_error(server.status.pop(0))
            return
        total, start = len(server.content), 0
        if wanted and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) + server.shift
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = start + server.cut_after.pop(0) if server.cut_after else total
        self.wfile.write(server.content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def archives(**changes) -> dict[str, Archive]:
    values = {"resource": 12, "md5": hashlib.md5(TINY).hexdigest(), "recordings": 2, **changes}
    return {"tiny": Archive(**values)}


def fetch(server, dest, **options):
    arguments = {"base_url": server.url, "progress": False, "retry_wait": 0.0, "archives": archives()}
    return download(**{"splits": ["tiny"], "dest": dest, **arguments, **options})


def assert_complete(dest) -> None:
    chapter = dest / "LibriSpeech" / "tiny" / "1" / "2"
    assert (chapter / "1-2-0000.flac").read_bytes() == NOISE
    assert (chapter / "1-2-0001.flac").read_bytes() == NOISE[::-1]
    assert [p.name for p in (dest / "LibriSpeech" / "tiny").iterdir()] == ["1"]
    assert (dest / "LibriSpeech" / "README.TXT").read_bytes() == b"read me"
    # Nothing else is left: no archive, no partial file, no temporary folder.
    assert sorted(p.name for p in dest.iterdir()) == ["LibriSpeech"]
    assert sorted(p.name for p in (dest / "LibriSpeech").iterdir()) == ["README.TXT", "tiny"]


def test_download_unpacks_and_is_skipped_the_second_time(server, tmp_path):
    assert fetch(server, tmp_path / "new") == {"tiny": tmp_path / "new" / "LibriSpeech" / "tiny"}
    assert_complete(tmp_path / "new")
    fetch(server, tmp_path / "new")
    assert server.asked == [("/resources/12/tiny.tar.gz", None)]


def test_mini_librispeech_lies_beside_librispeech(server, tmp_path):
    fetch(server, tmp_path, archives=archives(resource=31))
    assert server.asked == [("/resources/31/tiny.tar.gz", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_partial_file_is_continued(server, tmp_path, ranges):
    server.ranges = ranges
    (tmp_path / "tiny.tar.gz.part").write_bytes(TINY[:1000])
    fetch(server, tmp_path)
    assert_complete(tmp_path)
    assert server.asked == [("/resources/12/tiny.tar.gz", "bytes=1000-")]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_resumed(server, tmp_path, ranges):
    server.ranges = ranges
    server.cut_after = [1000, 2000, 0, 5000]
    fetch(server, tmp_path)
    assert_complete(tmp_path)
    expected = [None, "bytes=1000-", "bytes=3000-", "bytes=3000-", "bytes=8000-"]
    if not ranges:  # everything comes again each time; the last answer's length is what the file then has
        expected = [None, "bytes=1000-", "bytes=2000-", None, "bytes=5000-"]
    assert [wanted for _, wanted in server.asked] == expected


def test_progress_between_cuts_does_not_use_up_the_retries(server, tmp_path):
    server.cut_after = [100] * 20
    fetch(server, tmp_path, retries=1)
    assert_complete(tmp_path)


def test_without_progress_the_retries_run_out_and_the_part_stays(server, tmp_path):
    server.cut_after = [1000] + [0] * 100
    with pytest.raises(DownloadError, match="connection was cut.*run the same command again"):
        fetch(server, tmp_path, retries=3)
    assert len(server.asked) == 5  # one that brings bytes, then one attempt and three retries that do not
    assert (tmp_path / "tiny.tar.gz.part").read_bytes() == TINY[:1000]


def test_a_whole_partial_file_needs_no_second_download(server, tmp_path):
    (tmp_path / "tiny.tar.gz.part").write_bytes(TINY)
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_a_partial_file_longer_than_the_archive_is_fetched_anew(server, tmp_path):
    (tmp_path / "tiny.tar.gz.part").write_bytes(TINY + b"too much")
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_an_answer_with_another_part_is_not_appended(server, tmp_path):
    server.shift = -10
    (tmp_path / "tiny.tar.gz.part").write_bytes(TINY[:1000])
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_a_busy_server_is_asked_again_a_refusal_is_not(server, tmp_path):
    server.status = [503, 429]
    fetch(server, tmp_path)
    assert_complete(tmp_path)
    server.status, server.asked = [404], []
    with pytest.raises(DownloadError, match="404"):
        fetch(server, tmp_path / "other")
    assert len(server.asked) == 1


def test_a_wrong_checksum_deletes_the_file_and_says_so(server, tmp_path):
    server.content = TINY[:5000] + b"x" + TINY[5001:]
    with pytest.raises(DownloadError, match="damaged.*has been deleted.*run the same command again"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.content = TINY
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_an_archive_of_the_users_own_is_used_and_never_deleted(server, tmp_path):
    own = tmp_path / "tiny.tar.gz"
    own.write_bytes(TINY[:-1])
    with pytest.raises(DownloadError, match="tiny.tar.gz' is damaged or incomplete"):
        fetch(server, tmp_path)
    own.write_bytes(TINY)
    fetch(server, tmp_path)
    assert own.read_bytes() == TINY and not server.asked
    own.unlink()
    assert_complete(tmp_path)


def test_an_incomplete_folder_is_neither_trusted_nor_touched(server, tmp_path):
    fetch(server, tmp_path)
    lost = tmp_path / "LibriSpeech" / "tiny" / "1" / "2" / "1-2-0001.flac"
    lost.unlink()
    with pytest.raises(DownloadError, match="holds 1 recordings instead of 2"):
        fetch(server, tmp_path)
    assert (lost.parent / "1-2-0000.flac").exists()


def test_remains_of_a_killed_unpacking_do_not_matter(server, tmp_path):
    remains = tmp_path / "LibriSpeech" / ".tiny.unfinished" / "LibriSpeech" / "tiny" / "9" / "9"
    remains.mkdir(parents=True)
    (remains / "9-9-0000.flac").write_bytes(b"half")
    fetch(server, tmp_path)
    assert_complete(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"LibriSpeech/tiny/1/2/a.flac": b"a", "../outside.txt": b"escaped"},
        {"LibriSpeech/other/1/2/a.flac": b"a"},
    ],
    ids=["path-outside", "another-split"],
)
def test_a_strange_archive_leaves_nothing_behind(server, tmp_path, files):
    server.content = make_archive(files)
    dest = tmp_path / "dest"
    with pytest.raises(DownloadError, match="tiny.tar.gz.part'"):
        fetch(server, dest, archives=archives(md5=hashlib.md5(server.content).hexdigest()))
    assert list((dest / "LibriSpeech").iterdir()) == []
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_full_disk_is_one_sentence_while_downloading(server, tmp_path, monkeypatch):
    real_open = open

    class FullFile:
        def __init__(self, *args: object, **kwargs: object) -> None:
            self.file = real_open(*args, **kwargs)

        def write(self, data: memoryview) -> int:
            room = 700 - self.file.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data[:room])

        def __enter__(self) -> FullFile:
            return self

        def __exit__(self, *args: object) -> None:
            self.file.close()

    with monkeypatch.context() as patch:
        patch.setattr(http, "open", FullFile, raising=False)
        with pytest.raises(DownloadError, match=r"^the disk of .* is full; free some space.*\.$"):
            fetch(server, tmp_path)
    assert len(server.asked) == 1  # no retry against a full disk
    assert (tmp_path / "tiny.tar.gz.part").read_bytes() == TINY[:700]
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_a_full_disk_is_one_sentence_while_unpacking(server, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "copyfileobj", full)
        with pytest.raises(DownloadError, match="is full"):
            fetch(server, tmp_path)
    assert not (tmp_path / "LibriSpeech" / "tiny").exists()
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_too_little_room_is_said_before_the_first_byte(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": len(TINY) - 1})
    monkeypatch.setattr(http.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="not enough room"):
        fetch(server, tmp_path)
    assert not (tmp_path / "tiny.tar.gz.part").exists()


def test_no_network_is_one_sentence(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/12"
        with pytest.raises(DownloadError, match="^cannot download http.*refused.*check the network"):
            download(
                splits=["tiny"],
                dest=tmp_path,
                base_url=url,
                retries=1,
                retry_wait=0.0,
                progress=False,
                archives=archives(),
            )


def test_a_destination_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot use '.*file.*Not a directory"):
        fetch(server, tmp_path / "file" / "dest")


def test_unknown_splits_are_named_before_anything_is_fetched(tmp_path):
    hint = r"'train-clean100'; did you mean train-clean-100\? Known splits: .*dev-clean"
    with pytest.raises(ValueError, match=hint):
        download(splits=["dev-clean", "train-clean100"], dest=tmp_path / "d")
    with pytest.raises(ValueError, match="at least one"):
        download(splits=[], dest=tmp_path)
    assert not (tmp_path / "d").exists()


def test_the_table_of_archives_is_whole():
    assert len(ARCHIVES) == 9
    assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in ARCHIVES.values())
    assert len({archive.md5 for archive in ARCHIVES.values()}) == 9
    train = [ARCHIVES[f"train-{part}"].recordings for part in ("clean-100", "clean-360", "other-500")]
    assert sum(train) == 281241  # utterances in the 960 hours


def test_an_archive_left_by_a_run_that_was_killed_at_its_end_is_removed(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / "tiny.tar.gz.part").write_bytes(TINY)
    fetch(server, tmp_path)
    assert_complete(tmp_path)


# --- AN4 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_an4(server, tmp_path, monkeypatch, an4_archive):
    """AN4 in small on the server: call it to download."""
    counts = {"an4-train": 14, "an4-dev": 2, "an4-test": 2}
    monkeypatch.setattr(an4, "SPLITS", counts)
    monkeypatch.setattr(module, "AN4_SPLITS", counts)
    server.content = an4_archive({"train": list("hgfedcba"), "test": ["x"]})

    def get():
        url = f"{server.url}/an4.tar.gz"
        return download(splits=["an4"], dest=tmp_path, an4_url=url, progress=False, retry_wait=0.0)

    return get


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an4_is_downloaded_once(server, tmp_path, small_an4):
    folders = small_an4()
    assert sorted(folders) == names(tmp_path) == ["an4-dev", "an4-test", "an4-train"]
    (tmp_path / "an4_sphere.tar.gz.part").write_bytes(b"left by a run that was killed at its end")
    assert small_an4() == folders and len(server.asked) == 1
    assert names(tmp_path) == ["an4-dev", "an4-test", "an4-train"]


def test_an4_goes_on_after_a_kill_between_its_splits(server, tmp_path, small_an4):
    small_an4()
    shutil.rmtree(tmp_path / "an4-dev")
    (tmp_path / "an4_sphere.tar.gz.part").write_bytes(server.content)
    (tmp_path / ".an4.unfinished" / "an4-dev").mkdir(parents=True)
    before = (tmp_path / "an4-train").stat().st_ino
    assert len(list(small_an4()["an4-dev"].rglob("*.flac"))) == 2
    assert (tmp_path / "an4-train").stat().st_ino == before
    assert names(tmp_path) == ["an4-dev", "an4-test", "an4-train"]


def test_an_an4_folder_of_the_users_own_is_neither_trusted_nor_touched(server, tmp_path, small_an4):
    own = tmp_path / "an4-dev" / "1" / "1" / "mine.flac"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="an4-dev holds 1 recordings and an4-dev has 2; move or delete"):
        small_an4()
    assert own.read_bytes() == b"mine" and not server.asked


def test_an_an4_archive_of_the_users_own_is_used_and_never_deleted(server, tmp_path, small_an4):
    own, partial = tmp_path / "an4_sphere.tar.gz", tmp_path / "an4_sphere.tar.gz.part"
    own.write_bytes(server.content[:-100])
    partial.write_bytes(b"a part")
    with pytest.raises(DownloadError, match="an4_sphere.tar.gz cannot be unpacked as AN4"):
        small_an4()
    assert own.exists() and partial.read_bytes() == b"a part"
    own.write_bytes(server.content)
    small_an4()
    assert own.read_bytes() == server.content and not server.asked


def test_a_wrong_an4_archive_is_deleted_and_said_so(server, tmp_path, small_an4):
    whole, server.content = server.content, b"<html>log in first</html>"
    with pytest.raises(DownloadError, match="cannot be unpacked as AN4 .*It has been deleted"):
        small_an4()
    assert names(tmp_path) == []
    server.status = [403]
    with pytest.raises(DownloadError, match="403 .*get AN4's archive elsewhere and put it at .*an4_sphere"):
        small_an4()
    server.content = whole
    small_an4()


def test_a_full_disk_keeps_the_an4_archive(server, tmp_path, small_an4, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(an4, "write_flac", full)
        with pytest.raises(DownloadError, match="is full; free some space"):
            small_an4()
    assert names(tmp_path) == ["an4_sphere.tar.gz.part"]
    small_an4()
    assert names(tmp_path) == ["an4-dev", "an4-test", "an4-train"]


# --- small splits -------------------------------------------------------------------------------------------


@pytest.fixture
def small_split(monkeypatch):
    for target in (module, subsets):
        monkeypatch.setattr(target, "SUBSETS", {"small": "tiny"})
    monkeypatch.setattr(subsets, "read_ids", lambda subset: ["1-2-0001"])


def test_a_small_split_is_made_from_its_source(server, tmp_path, small_split):
    folders = fetch(server, tmp_path, splits=["small"])
    assert list(folders) == ["small"]
    assert [path.name for path in folders["small"].rglob("*.flac")] == ["1-2-0001.flac"]
    assert (tmp_path / "LibriSpeech" / "tiny").is_dir() and len(server.asked) == 1
    shutil.rmtree(tmp_path / "LibriSpeech" / "tiny")
    assert fetch(server, tmp_path, splits=["small"]) == folders
    assert len(server.asked) == 1  # a small split that is there needs its source no more


def test_a_source_that_is_incomplete_is_one_sentence(server, tmp_path, small_split):
    fetch(server, tmp_path)
    (tmp_path / "LibriSpeech" / "tiny" / "1" / "2" / "1-2-0001.flac").unlink()
    with pytest.raises(
        DownloadError, match=r"1-2-0001\.flac is missing, which small needs; download tiny again\.$"
    ):
        fetch(server, tmp_path, splits=["small"])
    assert not (tmp_path / "LibriSpeech" / "small").exists()
