"""The demo corpus: its layout, its sound, its sentences, and that a seed gives the same bytes again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re

import numpy as np
import pytest
import soundfile

from hmamba_asr.data import demo
from hmamba_asr.data.demo import build_demo_corpus, sentences, sound
from hmamba_asr.data.demo.sentences import SEEN_VOICES, UNSEEN_VOICES, make_sentence, plan_corpus

COUNTS = dict(num_train=20, num_dev_clean=4, num_test_clean=4, num_test_other=6)
needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="needs the demo extra (espeakng-loader)"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_demo_corpus(dest=tmp_path_factory.mktemp("demo"), num_workers=2, **COUNTS)


def contents(corpus):
    return {
        str(p.relative_to(corpus)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in corpus.rglob("*")
        if p.is_file()
    }


def transcripts(corpus, split):
    lines = [
        line for p in sorted((corpus / split).rglob("*.trans.txt")) for line in p.read_text().splitlines()
    ]
    return dict(line.split(" ", 1) for line in lines)


def voices(corpus, split):
    rows = [re.split(r"\s*\|\s*", line) for line in (corpus / "SPEAKERS.TXT").read_text().splitlines()]
    return {row[4] for row in rows if row[0][0] != ";" and row[2] == split}


@needs_espeak
def test_layout_and_transcripts_agree(corpus):
    assert corpus.name == "LibriSpeech"
    splits = {"train": 20, "dev-clean": 4, "test-clean": 4, "test-other": 6}
    assert {p.name for p in corpus.iterdir() if p.is_dir()} == set(splits)
    for split, count in splits.items():
        audio = {p.stem: p for p in (corpus / split).rglob("*.flac")}
        assert set(transcripts(corpus, split)) == set(audio)
        assert len(audio) == count
        for utterance, path in audio.items():
            speaker, chapter, number = utterance.split("-")
            assert path.relative_to(corpus).parts[:-1] == (split, speaker, chapter)
            assert re.fullmatch(r"\d{4}", number)


@needs_espeak
def test_audio_is_speech_of_the_stated_level(corpus):
    for path in corpus.rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "FLAC", "PCM_16")
        samples, _ = soundfile.read(path, dtype="float64")
        assert 0.8 < len(samples) / 16000 < 6
        assert -30 < 20 * math.log10(np.sqrt(np.mean(samples**2))) < -17
        assert 0.05 < np.abs(samples).max() <= 0.991
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
        floor = 20 * np.log10(np.sqrt((frames**2).mean(axis=1)).min())
        assert floor > -63, "digital silence"
        split = path.relative_to(corpus).parts[0]
        if split == "test-other":
            assert floor > -55, "noise and room fill the pauses"
        else:
            assert floor < -58, "the pauses hold the background noise alone"


@needs_espeak
def test_splits_share_neither_sentences_nor_speakers(corpus):
    spoken = [
        text
        for split in ("train", "dev-clean", "test-clean", "test-other")
        for text in transcripts(corpus, split).values()
    ]
    assert len(set(spoken)) == len(spoken) == 34
    assert all(re.fullmatch(r"[A-Z]+( [A-Z]+){2,7}", text) for text in spoken)
    speakers = [p.name for p in corpus.glob("*/*") if p.is_dir()]
    assert len(set(speakers)) == len(speakers)


@needs_espeak
def test_voices_of_test_other_are_unseen(corpus):
    assert voices(corpus, "train") == set(SEEN_VOICES)
    assert voices(corpus, "test-clean") | voices(corpus, "dev-clean") <= set(SEEN_VOICES)
    assert voices(corpus, "test-other") == set(UNSEEN_VOICES)


def test_voice_lists():
    assert len(set(SEEN_VOICES)) == len(SEEN_VOICES) >= 12
    variants = {voice.partition("+")[2] for voice in SEEN_VOICES}
    assert not variants & {voice.partition("+")[2] for voice in UNSEEN_VOICES}


@needs_espeak
def test_same_seed_same_bytes_for_any_number_of_workers(tmp_path, monkeypatch):
    # Two speakers per split, so with several utterances each: espeak-ng's state must not leak anywhere.
    for split, (first_id, voices) in list(sentences.SPEAKERS.items()):
        monkeypatch.setitem(sentences.SPEAKERS, split, (first_id, voices[:2]))
    one = build_demo_corpus(dest=tmp_path / "1", num_workers=1, **COUNTS)
    many = build_demo_corpus(dest=tmp_path / "2", num_workers=4, **COUNTS)
    assert contents(one) == contents(many)
    assert len(contents(one)) == 34 + 8 + 2
    assert [p.name for p in (tmp_path / "1").iterdir()] == ["LibriSpeech"]  # the building site is cleared


@needs_espeak
def test_more_training_data_leaves_the_test_sets_alone(corpus, tmp_path):
    other = build_demo_corpus(dest=tmp_path, **{**COUNTS, "num_train": 0})
    assert not (other / "train").exists()
    for split in ("dev-clean", "test-clean", "test-other"):
        assert contents(other / split) == contents(corpus / split)


def test_no_sentence_is_said_twice():
    counts = dict.fromkeys(("train", "dev-clean", "test-clean", "test-other"), 1000)
    spoken = [s for _, lines in plan_corpus(1, counts) for s in lines]
    assert len(set(spoken)) == len(spoken) == 4000


def test_another_seed_says_other_things():
    counts = {"train": 30, "dev-clean": 0, "test-clean": 10, "test-other": 0}
    one, two = plan_corpus(1, counts), plan_corpus(2, counts)
    assert one == plan_corpus(1, counts)
    assert not {s for _, lines in one for s in lines} & {s for _, lines in two for s in lines}
    assert [speaker for speaker, _ in one] != [speaker for speaker, _ in two]


def test_sentences_use_every_word_and_the_right_article():
    rng = np.random.default_rng(0)
    made = [make_sentence(rng) for _ in range(3000)]
    parts = {w for alternatives in sentences.GRAMMAR.values() for a in alternatives for w in a.split()}
    words = {w for w in parts if w.isupper()} | {"AN"}
    assert {w for sentence in made for w in sentence.split()} == words
    assert 60 <= len(words) <= 100
    assert {len(sentence.split()) for sentence in made} == set(range(3, 9))
    text = "\n".join(made)
    assert re.search(r"\bAN O", text)
    assert not re.search(r"\bA [AEIOU]|\bAN [^AEIOU]", text)


@needs_espeak
def test_reuse_and_refusal(corpus, tmp_path, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in corpus.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_render_all", None)  # reuse renders nothing, and needs no espeak-ng
        patch.setattr(demo, "require_espeak", None)
        assert build_demo_corpus(dest=corpus.parent, **COUNTS) == corpus
        with pytest.raises(
            FileExistsError, match=r"'seed': 1234.* not of .*'seed': 5.*choose another destination"
        ):
            build_demo_corpus(dest=corpus.parent, seed=5, **COUNTS)
        (tmp_path / "LibriSpeech" / "dev-clean").mkdir(parents=True)  # somebody's real LibriSpeech
        with pytest.raises(FileExistsError, match="is not a demo corpus"):
            build_demo_corpus(dest=tmp_path, **COUNTS)
    assert {p: p.stat().st_mtime_ns for p in corpus.rglob("*")} == before
    assert json.loads((corpus / demo.MARKER).read_text())["utterances"]["train"] == 20


def test_missing_espeak_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hmamba_asr\[demo\]"'):
        build_demo_corpus(dest=tmp_path / "new", **COUNTS)
    assert not (tmp_path / "new").exists()


@needs_espeak
def test_failure_leaves_nothing_and_names_the_voice(tmp_path, monkeypatch):
    monkeypatch.setitem(sentences.SPEAKERS, "train", (1001, ("no-such-voice+m1",)))
    with pytest.raises(
        RuntimeError, match=r"speaker 1001 \(no-such-voice\+m1\) could not be rendered: .*did not say"
    ):
        build_demo_corpus(dest=tmp_path, **{**dict.fromkeys(COUNTS, 0), "num_train": 2})
    assert list(tmp_path.iterdir()) == []


def test_bad_counts(tmp_path):
    with pytest.raises(ValueError, match="one utterance at least"):
        build_demo_corpus(dest=tmp_path, **dict.fromkeys(COUNTS, 0))
    with pytest.raises(ValueError, match="counts and seed must be >= 0"):
        build_demo_corpus(dest=tmp_path, num_train=-1)


def test_resampling_keeps_a_tone_and_removes_what_would_alias():
    t = np.arange(22050) / 22050
    low, high = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 9000 * t)
    y = sound.resample(low + high, 22050, 16000)
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(y)) / 16000)
    middle = slice(400, 15600)
    assert np.abs(y[middle] - expected[middle]).max() < 1e-3


def test_room_has_the_stated_energies():
    for seed in range(5):
        response = sound.make_room(np.random.default_rng(seed))
        assert response[0] == 1
        ratio = -10 * math.log10(np.sum(response[1:] ** 2))
        assert 5 - 1e-6 < ratio < 10 + 1e-6
        third = len(response) // 3
        fall = 10 * math.log10(np.sum(response[48:third] ** 2) / np.sum(response[2 * third :] ** 2))
        assert 34 < fall < 46, "60 dB over the whole, so 40 dB over two thirds"
