"""A seeded synthetic speech corpus in LibriSpeech's layout, spoken by espeak-ng (the ``demo`` extra).

It is for trying the recipes on a laptop: about 90 words, 3 to 8 of them a sentence, that a small model learns
in minutes. WERs on it say that training works, nothing about real speech.

Splits. As in LibriSpeech no speaker is in two splits, and no sentence is either. A speaker is a voice (an
accent and a voice variant of espeak-ng) with a pitch, intonation range and rate of its own.

* ``train``: the voices of ``SEEN_VOICES``.
* ``dev-clean``, ``test-clean``: new speakers with voices of the same list (one half each), at another pitch,
  range and rate.
* ``test-other``: the voices of ``UNSEEN_VOICES``, in a reverberant room (decaying-noise response, RT60 0.2 to
  0.4 s, direct-to-reverberant ratio 5 to 10 dB) with pink noise at 12 to 22 dB signal-to-noise ratio.

Every file has white background noise at -60 dBFS; speech lies at -26 to -20 dBFS.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from hmamba_asr.system.hardware import usable_cores

SAMPLE_RATE = 16_000  # Hz
MARKER = "demo_corpus.json"
_FORMAT = 1  # to be raised with every change that alters text or audio
_CHAPTER_UTTERANCES = 50

SEEN_VOICES = (  # each half has all accents and both sexes
    *("en-us+m1", "en-gb-x-rp+f1", "en-gb-scotland+m2", "en-029+f2"),
    *("en-us+f3", "en-gb-x-rp+m3", "en-gb-scotland+f4", "en-029+m4"),
    *("en-us+m2", "en-gb-x-rp+f2", "en-gb-scotland+m3", "en-029+f3"),
    *("en-us+f4", "en-gb-x-rp+m4", "en-gb-scotland+f1", "en-029+m1"),
)
UNSEEN_VOICES = (
    *("en-us+m7", "en-gb-x-rp+f5", "en-gb-scotland+m6"),
    *("en-us-nyc+m5", "en-gb-x-gbclan+f5", "en-gb-x-gbcwmd+m8"),
)
# The first speaker number of each split, and its speakers' voices.
_SPLITS = {
    "train": (1001, SEEN_VOICES),
    "dev-clean": (2001, SEEN_VOICES[:8]),
    "test-clean": (3001, SEEN_VOICES[8:]),
    "test-other": (4001, UNSEEN_VOICES),
}

# Lower case: a rule; upper case: a word. No two words sound alike (no TO and TWO, no RED and READ).
_GRAMMAR = {
    "sentence": (
        *("thing moved where", "name moved where", "name moved where when", "name got thing"),
        *("name got goods when", "name AND name got goods", "name WILL act thing when"),
        *("act thing", "act goods where", "PLEASE act thing NOW", "PLEASE act goods AGAIN"),
    ),
    "thing": ("det object", "det adjective object"),
    "goods": ("number items", "number adjective items"),
    "where": ("preposition THE place", "preposition THE adjective place"),
    "when": ("TODAY", "YESTERDAY", "ON MONDAY", "ON FRIDAY"),
    "name": ("ANNA", "PETER", "MARIA", "DAVID", "LUCY", "OLIVER"),
    "det": ("THE", "A", "MY", "HIS", "THIS"),
    "adjective": (
        *("RED", "BLUE", "GREEN", "YELLOW", "BLACK", "WHITE"),
        *("OLD", "NEW", "SMALL", "HEAVY", "QUIET", "BROKEN"),
    ),
    "object": (
        *("BOAT", "LAMP", "BOOK", "TABLE", "HORSE", "CAT"),
        *("BIRD", "BOX", "LETTER", "CLOCK", "DOOR", "WINDOW"),
    ),
    "items": ("APPLES", "COINS", "BOTTLES", "FLOWERS"),
    "place": ("TOWN", "RIVER", "GARDEN", "KITCHEN", "BRIDGE", "STATION", "HARBOR", "FOREST"),
    "moved": ("CAME", "WENT", "RAN", "WALKED"),
    "preposition": ("TO", "FROM", "NEAR", "BEHIND", "UNDER"),
    "got": ("BOUGHT", "FOUND", "SOLD", "LOST", "PAINTED", "CARRIED"),
    "act": ("TOUCH", "HIDE", "BRING", "MOVE", "WASH", "LEAVE"),
    "number": ("THREE", "FIVE", "SIX", "SEVEN", "NINE", "TWENTY"),
}


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A voice of espeak-ng with its own prosody: pitch and range from 0 to 99, rate in words per minute."""

    id: int
    split: str
    voice: str
    rate: int
    pitch: int
    pitch_range: int


def build_demo_corpus(
    *,
    dest: str | Path,
    seed: int = 1234,
    num_train: int = 1000,
    num_dev_clean: int = 100,
    num_test_clean: int = 120,
    num_test_other: int = 120,
    num_workers: int | None = None,
) -> Path:
    """Build the corpus in ``dest/LibriSpeech``, or reuse the one that stands there.

    For given versions of espeak-ng and NumPy the samples are a function of ``seed`` and the counts alone, not
    of ``num_workers``. The folder appears complete or not at all.

    Args:
        dest: folder that receives ``LibriSpeech``; created when missing.
        seed: of sentences, speakers, prosody, noise and rooms.
        num_train, num_dev_clean, num_test_clean, num_test_other: utterances per split, about 2 s each; 0
            leaves the split out.
        num_workers: processes at a time; None: one per CPU.

    Returns:
        ``dest/LibriSpeech``, the folder that holds the splits.

    Raises:
        ModuleNotFoundError: ``espeakng-loader`` is not installed.
        FileExistsError: ``dest/LibriSpeech`` holds something else than this corpus.
        ValueError: a negative count or no utterance at all.
        RuntimeError: espeak-ng fails.
    """
    counts = {
        "train": num_train,
        "dev-clean": num_dev_clean,
        "test-clean": num_test_clean,
        "test-other": num_test_other,
    }
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or seed < 0:
        raise ValueError(f"Counts and seed must be >= 0, one utterance at least: got {counts}, seed {seed}.")
    settings = {"format": _FORMAT, "seed": seed, "utterances": counts}
    dest = Path(dest)
    corpus = dest / "LibriSpeech"
    if _is_built(corpus, settings):
        return corpus
    _require_espeak()

    dest.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(dir=dest, prefix=".demo-corpus-"))
    try:
        folder = workspace / "LibriSpeech"  # made here, not by mkdtemp, so that it has ordinary permissions
        folder.mkdir()
        seconds = _render_all(_plan(seed, counts), folder, seed, num_workers or usable_cores())
        _write_speakers(folder / "SPEAKERS.TXT", seconds)
        (folder / MARKER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(folder, corpus)
        except OSError:
            # Another process may have built the same corpus meanwhile; anything else is a true failure.
            if not _is_built(corpus, settings):
                raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return corpus


def _is_built(corpus: Path, settings: Mapping[str, object]) -> bool:
    if not corpus.exists():
        return False
    advice = "choose another destination or delete that folder"
    try:
        found = json.loads((corpus / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(f"{corpus} exists and is not a demo corpus: {advice}.") from None
    if found != settings:
        raise FileExistsError(f"{corpus} holds a demo corpus of {found}, not of {settings}: {advice}.")
    return True


def _require_espeak() -> None:
    if importlib.util.find_spec("espeakng_loader") is None:
        extra = "hmamba_asr[demo]"
        raise ModuleNotFoundError(f'The demo corpus needs espeakng-loader: run `pip install "{extra}"`.')


# ---- What is said, and by whom ---------------------------------------------------------------


def _plan(seed: int, counts: Mapping[str, int]) -> list[tuple[Speaker, list[str]]]:
    """Speakers and their sentences; the sentences of all splits are distinct."""
    taken: set[str] = set()
    plan = []
    # The test sets come first: a longer or shorter train split leaves them as they are.
    for split in ("test-clean", "test-other", "dev-clean", "train"):
        first_id, voices = _SPLITS[split]
        rng = np.random.default_rng([seed, first_id])
        sentences = []
        while len(sentences) < counts[split]:
            sentence = _sentence(rng)
            if sentence not in taken:
                taken.add(sentence)
                sentences.append(sentence)
        for i, voice in enumerate(voices):
            rng = np.random.default_rng([seed, first_id + i, 0])
            speaker = Speaker(
                id=first_id + i,
                split=split,
                voice=voice,
                rate=int(rng.integers(145, 190)),
                pitch=int(rng.integers(35, 66)),
                pitch_range=int(rng.integers(35, 66)),
            )
            if lines := sentences[i :: len(voices)]:
                plan.append((speaker, lines))
    return plan


def _sentence(rng: np.random.Generator) -> str:
    def expand(symbol: str) -> list[str]:
        if symbol not in _GRAMMAR:
            return [symbol]
        alternatives = _GRAMMAR[symbol]
        chosen = alternatives[rng.integers(len(alternatives))]
        return [word for part in chosen.split() for word in expand(part)]

    words = expand("sentence")
    pairs = zip(words, [*words[1:], ""], strict=True)
    return " ".join("AN" if word == "A" and following[0] in "AEIOU" else word for word, following in pairs)


# ---- Rendering: one fresh process per speaker ------------------------------------------------
#
# espeak-ng keeps state from one utterance to the next (flutter, resonators, noise) that no call resets. In a
# process of its own, with its own seed, a speaker sounds the same whoever else is rendered beside it.


def _render_all(
    plan: list[tuple[Speaker, list[str]]], folder: Path, seed: int, num_workers: int
) -> dict[Speaker, float]:
    """Render all speakers, ``num_workers`` at a time; returns their seconds of audio."""
    seconds = {}
    total = sum(len(sentences) for _, sentences in plan)
    progress = tqdm(total=total, desc="Demo corpus", unit="utt", disable=None)
    with ThreadPoolExecutor(num_workers) as pool, progress:
        futures = {pool.submit(_render_in_process, *job, folder, seed): job for job in plan}
        try:
            for future in as_completed(futures):
                speaker, sentences = futures[future]
                seconds[speaker] = future.result()
                progress.update(len(sentences))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return seconds


def _render_in_process(speaker: Speaker, sentences: list[str], folder: Path, seed: int) -> float:
    job = {"speaker": asdict(speaker), "sentences": sentences, "folder": str(folder.resolve()), "seed": seed}
    root = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # Not multiprocessing: it would import the caller's main script, and with it PyTorch, once per speaker.
    child = subprocess.run(
        [sys.executable, "-c", "from hmamba_asr.data.demo import _child_main; _child_main()"],
        input=json.dumps(job),
        env={**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise RuntimeError(f"Demo speaker {speaker.id} ({speaker.voice}) could not be rendered: {reason}")
    return float(child.stdout)


def _child_main() -> None:
    job = json.load(sys.stdin)
    print(_render_speaker(Speaker(**job["speaker"]), job["sentences"], Path(job["folder"]), job["seed"]))


def _render_speaker(speaker: Speaker, sentences: list[str], folder: Path, seed: int) -> float:
    """Write the speaker's FLAC files and transcripts; returns seconds of audio. Call it once in a process."""
    espeak = _Espeak(seed=seed + speaker.id)
    room = _room(np.random.default_rng([seed, speaker.id, 1])) if speaker.split == "test-other" else None
    num_samples = 0
    transcripts: dict[Path, list[str]] = {}
    for index, sentence in enumerate(sentences):
        rng = np.random.default_rng([seed, speaker.id, 2, index])
        speech = espeak.say(
            sentence.lower(),
            voice=speaker.voice,
            rate=speaker.rate + int(rng.integers(-8, 9)),
            pitch=speaker.pitch + int(rng.integers(-3, 4)),
            pitch_range=speaker.pitch_range + int(rng.integers(-5, 6)),
        )
        samples = _record(_resample(speech, espeak.sample_rate, SAMPLE_RATE), room, rng)
        chapter = f"{speaker.id}{index // _CHAPTER_UTTERANCES:02d}"
        utterance = f"{speaker.id}-{chapter}-{index % _CHAPTER_UTTERANCES:04d}"
        path = folder / speaker.split / str(speaker.id) / chapter / f"{utterance}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        transcript = path.parent / f"{speaker.id}-{chapter}.trans.txt"
        transcripts.setdefault(transcript, []).append(f"{utterance} {sentence}\n")
        num_samples += len(samples)
    for transcript, lines in transcripts.items():
        transcript.write_text("".join(lines), encoding="utf-8")
    return num_samples / SAMPLE_RATE


def _write_speakers(path: Path, seconds: Mapping[Speaker, float]) -> None:
    lines = ["; Synthetic speakers of the demo corpus\n", ";ID  |SEX| SUBSET     |MINUTES| NAME\n"]
    for speaker in sorted(seconds, key=lambda s: s.id):
        sex = speaker.voice.partition("+")[2][0].upper()
        minutes = seconds[speaker] / 60
        lines.append(f"{speaker.id} | {sex} | {speaker.split:10} | {minutes:5.2f} | {speaker.voice}\n")
    path.write_text("".join(lines), encoding="utf-8")


# ---- Sound -----------------------------------------------------------------------------------


class _Espeak:
    """espeak-ng through its C interface (speak_lib.h), text in, samples out."""

    _RETRIEVAL_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
    _RATE, _PITCH, _RANGE = 1, 3, 4

    def __init__(self, *, seed: int) -> None:
        import espeakng_loader

        data = espeakng_loader.get_data_path()
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        # It returns -1, or ends the process if we let it, when it cannot read its data.
        self.sample_rate: int = self._library.espeak_Initialize(
            self._RETRIEVAL_SYNCHRONOUS, 0, os.fsencode(data), self._DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise RuntimeError(
                f"espeak-ng cannot read its data in {data}: reinstall espeakng-loader, in a folder of a "
                "shorter name if this one has more than 150 characters."
            )
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._blocks: list[np.ndarray] = []
        samples_type = ctypes.POINTER(ctypes.c_short)
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, samples_type, ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._receive)  # kept here: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, *, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speech without espeak-ng's silence at the ends: (samples,) at ``sample_rate``, full scale 1."""
        encoded = text.encode()
        self._blocks.clear()
        status = [self._library.espeak_SetVoiceByName(voice.encode())]
        for parameter, value in ((self._RATE, rate), (self._PITCH, pitch), (self._RANGE, pitch_range)):
            status.append(self._library.espeak_SetParameter(parameter, value, 0))
        status.append(self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self._UTF8, None, None))
        status.append(self._library.espeak_Synchronize())
        speech = np.concatenate([np.zeros(1), *self._blocks]) / 2**15
        loud = np.flatnonzero(np.abs(speech) > 1e-3)
        if any(status) or loud.size == 0:
            raise RuntimeError(f"espeak-ng did not say {text!r} with the voice {voice} (status {status}).")
        return speech[loud[0] : loud[-1] + 1]


def _resample(x: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Downsample (samples,) in the frequency domain, with a smooth edge below the new Nyquist frequency."""
    divisor = math.gcd(rate_in, rate_out)
    down, up = rate_in // divisor, rate_out // divisor
    x = np.pad(x, (0, -len(x) % down + down))  # whole periods, and zeros for the filter's wrapped-around ends
    size = len(x) // down * up
    spectrum = np.fft.rfft(x)[: size // 2 + 1]
    edge = np.clip((np.linspace(0, 1, len(spectrum)) - 0.95) / 0.05, 0, 1)  # 7.6 to 8 kHz at 16 kHz
    return np.fft.irfft(spectrum * np.cos(edge * np.pi / 2) ** 2, n=size) * (up / down)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response of a speaker's room: the direct sound, then noise that falls by 60 dB in RT60."""
    rt60 = rng.uniform(0.2, 0.4)  # s
    direct_to_reverberant = rng.uniform(5, 10)  # dB
    t = np.arange(round(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60)
    tail[: round(0.003 * SAMPLE_RATE)] = 0  # the first reflection comes 3 ms after the direct sound
    tail *= 10 ** (-direct_to_reverberant / 20) / np.linalg.norm(tail)
    tail[0] = 1
    return tail


def _record(speech: np.ndarray, room: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Set level, ends, room and noise: (samples,) of full scale 1 -> int16 (samples,)."""
    speech = speech * (10 ** (rng.uniform(-26, -20) / 20) / _rms(speech))
    ends = [round(seconds * SAMPLE_RATE) for seconds in rng.uniform(0.1, 0.25, size=2)]
    signal = np.pad(speech, ends)
    n = len(signal)
    if room is not None:
        size = n + len(room)
        signal = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(room, size), size)[:n]
        bins = np.arange(n // 2 + 1)
        pink = 1 / np.sqrt(np.maximum(bins, 50 * n / SAMPLE_RATE))  # power as 1/f above 50 Hz
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * pink, n)
        signal += noise * (_rms(speech) / _rms(noise) * 10 ** (-rng.uniform(12, 22) / 20))
    signal += rng.standard_normal(n) * 10 ** (-60 / 20)
    signal *= min(1.0, 0.99 / np.abs(signal).max())
    return np.round(signal * (2**15 - 1)).astype(np.int16)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))
