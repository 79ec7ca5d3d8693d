"""From a corpus to manifests: what they hold, what is refused, and when they are made anew."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from hmamba_asr.data import corpus_files, librispeech
from hmamba_asr.data.librispeech import CorpusError, prepare_manifests


def prepare(corpus, splits=("train", "dev"), **options):
    folder = corpus.root.parent / "manifests"
    return prepare_manifests(data_folder=corpus.root, splits=list(splits), manifest_folder=folder, **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def ids(path: Path) -> list[str]:
    return [row["ID"] for row in rows(path)]


@pytest.fixture
def decoded(monkeypatch):
    """Paths that were really decoded."""
    seen = []
    real = librispeech.check_recording

    def spy(data_folder, sample_rate, path):
        seen.append(path)
        return real(data_folder, sample_rate, path)

    monkeypatch.setattr(librispeech, "check_recording", spy)
    return seen


# --- the manifest -------------------------------------------------------------------------------------------


def test_manifest_holds_what_the_corpus_says(tiny_corpus):
    manifests = prepare(tiny_corpus)
    assert list(manifests) == ["train", "dev"]
    assert manifests["train"].read_text(encoding="utf-8") == (
        "ID,duration,wav,spk_id,wrd\n"
        "11-22-0001,0.250000,$data_root/train/11/22/11-22-0001.flac,11,UTTERANCE NUMBER 1\n"
        "11-22-0002,0.500000,$data_root/train/11/22/11-22-0002.flac,11,UTTERANCE NUMBER 2\n"
        "11-22-0003,0.750000,$data_root/train/11/22/11-22-0003.flac,11,UTTERANCE NUMBER 3\n"
        "99-5-0007,0.500000,$data_root/train/99/5/99-5-0007.flac,99,ANOTHER SPEAKER\n"
    )


def test_speechbrain_reads_the_manifest(tiny_corpus):
    dataio = pytest.importorskip("speechbrain.dataio.dataio")
    tiny_corpus.say("train", 8, 'HE SAID "WELL, 1,000" AND LEFT')
    path = prepare(tiny_corpus)["train"]
    data = dataio.load_data_csv(path, {"data_root": str(tiny_corpus.root)})
    assert data["11-22-0008"]["wrd"] == 'HE SAID "WELL, 1,000" AND LEFT'
    audio, _ = soundfile.read(data["11-22-0008"]["wav"])
    assert len(audio) == round(data["11-22-0008"]["duration"] * 16000)


def test_splits_may_lie_in_a_librispeech_folder(tiny_corpus):
    (tiny_corpus.root / "LibriSpeech").mkdir()
    (tiny_corpus.root / "dev").rename(tiny_corpus.root / "LibriSpeech" / "dev")
    manifests = prepare(tiny_corpus)
    assert rows(manifests["dev"])[0]["wav"] == "$data_root/LibriSpeech/dev/11/22/11-22-0000.flac"


def test_links_hidden_files_and_wav_are_handled(tiny_corpus):
    chapter = tiny_corpus.chapter("train")
    (chapter / "._11-22-0001.flac").write_bytes(b"a Mac was here")
    (chapter / "loop").symlink_to(chapter.parent, target_is_directory=True)
    tiny_corpus.say("train", 9, suffix=".wav")
    (tiny_corpus.root / "train-100").symlink_to(tiny_corpus.root / "train", target_is_directory=True)
    manifest = prepare(tiny_corpus, ["train-100"])["train-100"]
    assert ids(manifest) == ["11-22-0001", "11-22-0002", "11-22-0003", "11-22-0009", "99-5-0007"]
    assert rows(manifest)[3]["wav"] == "$data_root/train-100/11/22/11-22-0009.wav"


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tiny_corpus):
    path = tiny_corpus.transcript("train")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert len(ids(prepare(tiny_corpus, ["train"])["train"])) == 4


def test_durations_outside_the_limits_are_left_out_and_are_no_problem(tiny_corpus, caplog):
    caplog.set_level("INFO")
    manifest = prepare(tiny_corpus, ["train"], min_duration=0.3, max_duration=0.6)["train"]
    assert ids(manifest) == ["11-22-0002", "99-5-0007"]
    assert "1 too short, 1 too long; 0 problems" in caplog.text


def test_the_number_of_threads_does_not_change_the_manifest(tiny_corpus):
    for number in range(20, 60):
        tiny_corpus.say("train", number, seconds=0.1 + number / 1000)
    first = prepare(tiny_corpus, num_workers=1)["train"].read_bytes()
    shutil.rmtree(tiny_corpus.root.parent / "manifests")
    assert prepare(tiny_corpus, num_workers=7)["train"].read_bytes() == first
    assert first.count(b"\n") == 45


WORD = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="$"), min_size=1, max_size=6)
SPOKEN = st.tuples(st.integers(1600, 1700), st.lists(WORD, min_size=1))  # number of samples, words


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 9999), SPOKEN, min_size=1, max_size=4))
def test_words_and_durations_survive_the_round_trip(utterances):
    with tempfile.TemporaryDirectory() as folder:
        chapter = Path(folder, "data", "any", "1", "2")
        chapter.mkdir(parents=True)
        with (chapter / "1-2.trans.txt").open("w", encoding="utf-8", newline="") as file:
            for number, (samples, words) in utterances.items():
                soundfile.write(chapter / f"1-2-{number}.flac", np.zeros(samples), 16000)
                file.write(f"1-2-{number}  {'  '.join(words)} \r\n")
        manifest = prepare_manifests(
            data_folder=Path(folder, "data"), splits=["any"], manifest_folder=Path(folder, "m")
        )["any"]
        found = {row["ID"]: (float(row["duration"]) * 16000, row["wrd"]) for row in rows(manifest)}
    expected = {f"1-2-{n}": (pytest.approx(s, abs=0.01), " ".join(w)) for n, (s, w) in utterances.items()}
    assert found == expected


# --- bad data -----------------------------------------------------------------------------------------------


def break_everything(corpus) -> dict[str, str]:
    """Every kind of bad data in two splits; returns a text that the report must contain for each."""
    good = corpus.audio("train", 30, seconds=2.0)
    half = good.stat().st_size // 2
    bad = {}

    truncated = corpus.say("train", 40)
    truncated.write_bytes(good.read_bytes()[:half])
    bad["11-22-0040"] = "corrupt audio"
    good.unlink()
    corpus.say("train", 41).write_bytes(b"<html>404</html>")
    bad["11-22-0041.flac"] = "corrupt audio"
    corpus.say("train", 42).write_bytes(b"")
    bad["11-22-0042"] = "empty audio"
    # A FLAC of no samples: a marker and one metadata block, STREAMINFO (16 kHz, mono, 16 bits, 0 samples).
    streaminfo = bytes.fromhex("10001000000000000000") + bytes.fromhex("03e800f000000000") + bytes(16)
    corpus.say("train", 43).write_bytes(b"fLaC" + bytes([0x80, 0, 0, len(streaminfo)]) + streaminfo)
    bad["11-22-0043.flac: 0 samples"] = "empty audio"
    corpus.say("train", 47, seconds=0.0, suffix=".wav")
    bad["11-22-0047.wav: 0 samples"] = "empty audio"
    corpus.say("train", 44, sample_rate=8000)
    bad["11-22-0044.flac: 8000 Hz, not 16000 Hz"] = "wrong sample rate"
    corpus.say("train", 45, channels=2)
    bad["11-22-0045.flac: 2 channels"] = "not mono"
    wav = corpus.say("train", 46, suffix=".wav")
    wav.write_bytes(wav.read_bytes()[:-500])
    bad["11-22-0046.wav: 500 bytes shorter"] = "corrupt audio"
    corpus.say("dev", 50).unlink()
    bad["no recording of 11-22-0050"] = "transcript without audio"
    corpus.audio("dev", 51)
    bad["dev/11/22/11-22-0051.flac"] = "audio without transcript"
    corpus.say("dev", 52, words="")
    bad["no words for 11-22-0052"] = "empty transcript"
    corpus.say("dev", 53)
    with corpus.transcript("dev").open("ab") as file:
        file.write(b"11-22-0053 THE SAME AGAIN\n")
        file.write(b"11-22-0054 CAF\xe9\n")
        file.write(b"  NO ID HERE\n")
        file.write(b"11-22-0055 FIVE $dollars\n")
    bad["11-22-0053: transcripts"] = "duplicate utterance ID"
    corpus.audio("dev", 54)
    bad["11-22.trans.txt:6: byte 15"] = "transcript is not UTF-8"
    bad["11-22.trans.txt:7: starts with a blank"] = "unreadable transcript line"
    corpus.audio("dev", 55)
    bad["11-22.trans.txt:8: holds '$'"] = "unreadable transcript line"
    corpus.say("dev", 56)
    corpus.audio("dev", 56, suffix=".wav")
    bad["recordings dev/11/22/11-22-0056.flac, dev/11/22/11-22-0056.wav"] = "duplicate utterance ID"
    corpus.transcript("dev", "77", "1").write_text("77-1-0000 SIXTEEN BITS", encoding="utf-16")
    corpus.audio("dev", 0, speaker="77", chapter="1")
    bad["dev/77/1/77-1.trans.txt: it holds zero bytes"] = "transcript is not UTF-8"
    loose = corpus.root / "dev" / "loose-0.flac"
    shutil.copy(corpus.say("dev", 57), loose)
    with corpus.transcript("dev").open("a") as file:
        file.write("loose-0 NOBODY SAID THIS\n")
    bad["dev/loose-0.flac"] = "audio outside a speaker folder"
    return bad


def test_all_problems_of_all_splits_are_reported_together(tiny_corpus):
    bad = break_everything(tiny_corpus)
    with pytest.raises(CorpusError) as refused:
        prepare(tiny_corpus, ["train", "gone", "dev", "lost"])
    report = str(refused.value)
    assert "gone, lost" in report and "Folders there: dev, train." in report
    for where, kind in bad.items():
        section = report.partition(f"{kind} (")[2]
        listed = [line for line in section.splitlines()[1:]]
        until = next(i for i, line in enumerate(listed + ["end"]) if not line.startswith("  "))
        assert any(where in line for line in listed[:until]), f"{where!r} is not under {kind!r} in:\n{report}"
    full = (tiny_corpus.root.parent / "manifests" / "problems.txt").read_text(encoding="utf-8")
    assert full.count("\n  ") == len(bad) == int(full.split()[0])  # each once, and nothing else
    assert "set on_bad_data to 'skip'" in report


def test_skip_keeps_exactly_the_good_utterances(tiny_corpus, caplog):
    bad = break_everything(tiny_corpus)
    manifests = prepare(tiny_corpus, on_bad_data="skip")
    assert ids(manifests["train"]) == ["11-22-0001", "11-22-0002", "11-22-0003", "99-5-0007"]
    assert ids(manifests["dev"]) == ["11-22-0000", "11-22-0057"]
    assert f"{len(bad)} problems" in caplog.text and "corrupt audio (3)" in caplog.text


def test_a_flac_cut_anywhere_is_refused(tiny_corpus):
    path = tiny_corpus.say("dev", 1, seconds=3.0)
    content = path.read_bytes()
    for size in range(1, len(content), len(content) // 25):
        path.write_bytes(content[:size])
        with pytest.raises(CorpusError, match="corrupt audio"):
            prepare(tiny_corpus, ["dev"])
    path.write_bytes(content)
    assert ids(prepare(tiny_corpus, ["dev"])["dev"]) == ["11-22-0000", "11-22-0001"]


def test_a_bit_flipped_in_the_middle_is_found(tiny_corpus):
    path = tiny_corpus.say("dev", 1, seconds=3.0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="11-22-0001"):
        prepare(tiny_corpus, ["dev"])


def test_long_lists_are_cut_on_screen_and_whole_in_the_file(tiny_corpus):
    for number in range(100, 125):
        tiny_corpus.audio("dev", number, seconds=0.1)
    with pytest.raises(CorpusError) as refused:
        prepare(tiny_corpus, ["dev"])
    assert str(refused.value).count("\n  dev/") == 20 and "... and 5 more" in str(refused.value)
    problems = tiny_corpus.root.parent / "manifests" / "problems.txt"
    assert problems.read_text().count("\n  dev/") == 25
    for number in range(100, 125):
        (tiny_corpus.chapter("dev") / f"11-22-{number:04d}.flac").unlink()
    prepare(tiny_corpus, ["dev"])
    assert not problems.exists()


@pytest.mark.parametrize("on_bad_data", ["refuse", "skip"])
def test_a_missing_or_useless_split_is_always_refused(tiny_corpus, on_bad_data):
    with pytest.raises(CorpusError, match="test-clean, test-other"):
        prepare(tiny_corpus, ["dev", "test-clean", "test-other"], on_bad_data=on_bad_data)
    (tiny_corpus.root / "hollow").mkdir()
    with pytest.raises(CorpusError, match="no usable utterance in hollow"):
        prepare(tiny_corpus, ["dev", "hollow"], on_bad_data=on_bad_data)
    with pytest.raises(CorpusError, match="no usable utterance in dev"):
        prepare(tiny_corpus, ["train", "dev"], min_duration=0.5001, on_bad_data=on_bad_data)


def test_a_file_name_that_is_not_utf8_is_a_problem_and_no_crash(tiny_corpus, caplog):
    strange = os.fsencode(tiny_corpus.chapter("dev")) + b"/11-22-\xff.flac"
    try:
        Path(os.fsdecode(strange)).write_bytes(tiny_corpus.audio("dev", 0).read_bytes())
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    with pytest.raises(CorpusError, match="unusable file name") as caught:
        prepare(tiny_corpus, ["dev"])
    assert ids(prepare(tiny_corpus, ["dev"], on_bad_data="skip")["dev"]) == ["11-22-0000"]
    for text in (str(caught.value), caplog.text):  # a log can hold them
        assert "\\udcff" in text and text.encode("utf-8")


@pytest.mark.parametrize(
    "options",
    [
        {"splits": "dev"},
        {"splits": []},
        {"splits": ["../dev"]},
        {"on_bad_data": "ignore"},
        {"sample_rate": 0},
        {"min_duration": 2.0, "max_duration": 1.0},
        {"num_workers": 0},
    ],
)
def test_options_without_sense_are_refused(tiny_corpus, options):
    root = tiny_corpus.root
    arguments = {"data_folder": root, "splits": ["dev"], "manifest_folder": root / "m"}
    with pytest.raises(ValueError, match=next(iter(options))):
        prepare_manifests(**{**arguments, **options})


def test_a_data_folder_that_is_not_there(tmp_path):
    with pytest.raises(CorpusError, match="nowhere' is not a folder"):
        prepare_manifests(data_folder=tmp_path / "nowhere", splits=["dev"], manifest_folder=tmp_path / "m")


# --- reuse --------------------------------------------------------------------------------------------------


def test_an_unchanged_corpus_is_not_decoded_again(tiny_corpus, decoded):
    first = {split: path.read_bytes() for split, path in prepare(tiny_corpus).items()}
    assert len(decoded) == 5
    assert {split: path.read_bytes() for split, path in prepare(tiny_corpus).items()} == first
    assert len(decoded) == 5


def change_audio(corpus, manifests):
    corpus.audio("train", 1, seconds=0.3)


def change_words_keeping_the_size(corpus, manifests):
    path = corpus.transcript("train")
    before = path.stat()
    path.write_text(path.read_text().replace("NUMBER 1", "NUMBER 9"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def change_add(corpus, manifests):
    corpus.say("train", 60)


def change_remove(corpus, manifests):
    corpus.transcript("train", "99", "5").unlink()
    (corpus.chapter("train", "99", "5") / "99-5-0007.flac").unlink()


def change_truncate_csv(corpus, manifests):
    path = manifests["train"]
    path.write_bytes(path.read_bytes()[:-20])


def change_edit_csv(corpus, manifests):
    path = manifests["train"]
    path.write_text(path.read_text().replace("NUMBER 1", "NUMBER 9"))


def change_delete_csv(corpus, manifests):
    manifests["train"].unlink()


def change_delete_summary(corpus, manifests):
    manifests["train"].with_suffix(".json").unlink()


def change_garble_summary(corpus, manifests):
    manifests["train"].with_suffix(".json").write_text('{"fingerprint": ')


def change_old_summary_format(corpus, manifests):
    path = manifests["train"].with_suffix(".json")
    summary = json.loads(path.read_text())
    del summary["too_long"]
    path.write_text(json.dumps(summary))


CHANGES = [value for name, value in list(globals().items()) if name.startswith("change_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_rebuilds_that_manifest_and_no_other(tiny_corpus, decoded, change):
    change(tiny_corpus, prepare(tiny_corpus))
    decoded.clear()
    manifests = prepare(tiny_corpus)
    assert decoded and not any(path.startswith("dev") for path in decoded)
    after = manifests["train"].read_bytes()
    shutil.rmtree(tiny_corpus.root.parent / "manifests")
    assert prepare(tiny_corpus)["train"].read_bytes() == after  # the same as from scratch


def test_other_options_rebuild(tiny_corpus, decoded):
    prepare(tiny_corpus)
    decoded.clear()
    prepare(tiny_corpus, max_duration=9.0)
    assert len(decoded) == 5


def test_a_run_killed_between_its_two_files_leaves_nothing_to_trust(tiny_corpus, decoded, monkeypatch):
    prepare(tiny_corpus, ["train"])
    tiny_corpus.say("train", 60)
    real = librispeech.write_atomically

    def killed(path):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(librispeech, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_corpus, ["train"])
    (tiny_corpus.chapter("train") / "11-22-0060.flac").unlink()
    tiny_corpus.transcript("train").write_text(
        "".join(f"11-22-000{n} UTTERANCE NUMBER {n}\n" for n in (3, 1, 2)), encoding="utf-8"
    )
    decoded.clear()
    assert "11-22-0060" not in ids(prepare(tiny_corpus, ["train"])["train"])
    assert decoded


def test_problems_are_remembered_without_decoding_again(tiny_corpus, decoded, caplog):
    tiny_corpus.audio("dev", 51)
    with pytest.raises(CorpusError, match="11-22-0051"):
        prepare(tiny_corpus)
    decoded.clear()
    assert ids(prepare(tiny_corpus, on_bad_data="skip")["dev"]) == ["11-22-0000"]
    assert "11-22-0051" in caplog.text  # skipping is never silent, reused or not
    with pytest.raises(CorpusError, match="11-22-0051"):
        prepare(tiny_corpus)
    assert not decoded


def test_no_temporary_file_stays(tiny_corpus, monkeypatch):
    monkeypatch.setattr(librispeech.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        prepare(tiny_corpus)
    assert list((tiny_corpus.root.parent / "manifests").iterdir()) == []


def test_recordings_are_counted_at_any_depth(tiny_corpus):
    assert corpus_files.count_recordings(tiny_corpus.root) == 5
