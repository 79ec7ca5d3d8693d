"""A tiny corpus in LibriSpeech's layout, built anew for every test that asks for it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile


class TinyCorpus:
    """Writes utterances below ``root/<split>/<speaker>/<chapter>/``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def chapter(self, split: str, speaker: str = "11", chapter: str = "22") -> Path:
        folder = self.root / split / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def transcript(self, split: str, speaker: str = "11", chapter: str = "22") -> Path:
        return self.chapter(split, speaker, chapter) / f"{speaker}-{chapter}.trans.txt"

    def audio(
        self,
        split: str,
        number: int,
        *,
        seconds: float = 0.5,
        sample_rate: int = 16000,
        channels: int = 1,
        suffix: str = ".flac",
        speaker: str = "11",
        chapter: str = "22",
    ) -> Path:
        path = self.chapter(split, speaker, chapter) / f"{speaker}-{chapter}-{number:04d}{suffix}"
        noise = np.random.default_rng(number).normal(scale=0.1, size=(round(seconds * sample_rate), channels))
        soundfile.write(path, noise, sample_rate, subtype="PCM_16")
        return path

    def say(self, split: str, number: int, words: str = "HELLO WORLD", **audio: object) -> Path:
        """One good utterance: a recording and its transcript line."""
        path = self.audio(split, number, **audio)
        place = {key: audio[key] for key in ("speaker", "chapter") if key in audio}
        with self.transcript(split, **place).open("a", encoding="utf-8") as file:
            file.write(f"{path.stem} {words}\n")
        return path


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> TinyCorpus:
    """Two good splits: ``train`` (two speakers, four utterances) and ``dev`` (one)."""
    corpus = TinyCorpus(tmp_path / "corpus")
    for number in (3, 1, 2):
        corpus.say("train", number, f"UTTERANCE NUMBER {number}", seconds=0.25 * number)
    corpus.say("train", 7, "ANOTHER SPEAKER", speaker="99", chapter="5")
    corpus.say("dev", 0)
    return corpus


@pytest.fixture
def an4_archive():
    """Make an archive like AN4's, in small."""

    def make(speakers: dict[str, list[str]]) -> bytes:
        """AN4 in small: {"train" or "test": names of speakers}, two utterances each."""
        files: dict[str, bytes] = {}
        for kind, names in speakers.items():
            folder = "an4_clstk" if kind == "train" else "an4test_clstk"
            ids, lines = [], []
            for number, name in enumerate(names):
                for part in ("an1", "cen2"):
                    identifier = f"{part}-{name}-b"
                    ids.append(f"{folder}/{name}/{identifier}")
                    text = f"{part.upper()} {number}"
                    lines.append(
                        f"<s> {text} </s> ({identifier})" if kind == "train" else f"{text} ({identifier})"
                    )
                    stream = io.BytesIO()
                    tone = (1000 * np.sin(np.arange(800 + number))).astype("int16")
                    soundfile.write(stream, tone, 16000, format="NIST", subtype="PCM_16")
                    files[f"an4/wav/{ids[-1]}.sph"] = stream.getvalue()
            files[f"an4/etc/an4_{kind}.fileids"] = "\n".join(ids).encode()
            files[f"an4/etc/an4_{kind}.transcription"] = "\n".join(lines).encode()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    return make
