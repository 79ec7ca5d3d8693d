"""Manifests: what is written is read back, and bad ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmamba_asr.data.manifest import ManifestRow, read_manifest, read_transcripts, write_manifest

HEADER = "ID,duration,wav,wrd\n"


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "m.csv"
    rows = [
        ManifestRow("b", Path("x/b.flac"), 2.5, 'SHE SAID "NO", TWICE'),
        ManifestRow("a", Path("x/a.flac"), 1.0, "YES"),
    ]
    write_manifest(path, [(row, "speaker") for row in rows])
    assert path.read_text().splitlines()[:2] == [
        "ID,duration,wav,spk_id,wrd",
        "a,1.000000,$data_root/x/a.flac,speaker,YES",
    ]
    found = read_manifest(path, data_folder="/corpus")
    assert list(found) == ["a", "b"]
    assert found["b"] == ManifestRow("b", Path("/corpus/x/b.flac"), 2.5, 'SHE SAID "NO", TWICE')


def test_transcripts_have_single_spaces_and_are_not_empty(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("wrd,more\n A  B ,1\n,2\nC\n")
    assert read_transcripts(path) == ["A B", "C"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ID,duration,wav\na,1,x\n", "has no column wrd; give a manifest"),
        ("", "has no column ID"),
        (HEADER + "a,1,x,A\nb,1,x\n", "line 3 has too few cells; prepare the data again"),
        (HEADER + "a,1,x,A\na,1,y,B\n", "line 3 repeats the ID a; prepare the data again"),
        (HEADER + "a,long,x,A\n", "line 2: the duration 'long' is not a number; prepare the data again"),
    ],
)
def test_a_bad_manifest_is_named(tmp_path, content, message):
    path = tmp_path / "m.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"m.csv.*{message}"):
        read_manifest(path)


def test_a_missing_manifest_is_named(tmp_path):
    for read in (read_manifest, read_transcripts):
        with pytest.raises(FileNotFoundError, match="there is no manifest .*m.csv; prepare the data first"):
            read(tmp_path / "m.csv")
