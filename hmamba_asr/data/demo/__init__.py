"""A seeded synthetic speech corpus in LibriSpeech's layout, spoken by espeak-ng (the ``demo`` extra).

It is for trying the recipes on a laptop. It has about 90 words, 3 to 8 in a sentence, and a small model
learns it in minutes. Its WERs say that training works; they say nothing about real speech.

As in LibriSpeech, no speaker and no sentence is in two splits. A speaker is a voice (an accent and a voice
variant of espeak-ng) with a pitch, intonation range and rate of its own.

* ``train``: the voices of ``SEEN_VOICES``.
* ``dev-clean``, ``test-clean``: new speakers with voices of the same list (one half each), at another pitch,
  range and rate.
* ``test-other``: the voices of ``UNSEEN_VOICES``, in a reverberant room (decaying-noise response, RT60 0.2 to
  0.4 s, direct-to-reverberant ratio 5 to 10 dB) with pink noise at 12 to 22 dB signal-to-noise ratio.

Every file has white background noise at -60 dBFS; speech lies at -26 to -20 dBFS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hmamba_asr.data.audio import write_flac
from hmamba_asr.data.demo.espeak import Espeak, require_espeak
from hmamba_asr.data.demo.sentences import Speaker, plan_corpus
from hmamba_asr.data.demo.sound import SAMPLE_RATE, make_room, record, resample
from hmamba_asr.system.hardware import usable_cores

MARKER = "demo_corpus.json"
"""The file in the corpus' folder that says how it was made."""

_FORMAT = 1  # to be raised with every change that alters text or audio
_CHAPTER_UTTERANCES = 50


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
    """Build the corpus in ``dest/LibriSpeech``, or reuse the one that is there.

    For given versions of espeak-ng and NumPy the samples are a function of ``seed`` and the counts alone, not
    of ``num_workers``. The folder appears whole or not at all.

    Parameters
    ----------
    dest
        The folder for ``LibriSpeech``, made if it is missing.
    seed
        Of sentences, speakers, prosody, noise and rooms.
    num_train, num_dev_clean, num_test_clean, num_test_other
        Utterances of each split, about 2 s each. 0 leaves the split out.
    num_workers
        Processes at a time. None takes one for each core that this process may use.

    Returns
    -------
    Path
        ``dest/LibriSpeech``, the folder that holds the splits.

    Raises
    ------
    ModuleNotFoundError
        If ``espeakng-loader`` is not installed.
    FileExistsError
        If ``dest/LibriSpeech`` holds something else than this corpus.
    ValueError
        If a count is negative or there is no utterance at all.
    RuntimeError
        If espeak-ng fails.
    """
    counts = {
        "train": num_train,
        "dev-clean": num_dev_clean,
        "test-clean": num_test_clean,
        "test-other": num_test_other,
    }
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or seed < 0:
        raise ValueError(
            f"counts and seed must be >= 0, with one utterance at least; got {counts}, seed {seed}."
        )
    settings = {"format": _FORMAT, "seed": seed, "utterances": counts}
    dest = Path(dest)
    corpus = dest / "LibriSpeech"
    if _is_built(corpus, settings):
        return corpus
    require_espeak()

    dest.mkdir(parents=True, exist_ok=True)
    # A name of its own for each process: several may build the same corpus at a time.
    with tempfile.TemporaryDirectory(
        dir=dest, prefix=".demo-corpus-", ignore_cleanup_errors=True
    ) as workspace:
        folder = (
            Path(workspace) / "LibriSpeech"
        )  # the temporary folder itself has permissions for its owner only
        folder.mkdir()
        seconds = _render_all(plan_corpus(seed, counts), folder, seed, num_workers or usable_cores())
        _write_speakers(folder / "SPEAKERS.TXT", seconds)
        (folder / MARKER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(folder, corpus)
        except OSError:
            # Another process may have built the same corpus meanwhile; anything else is a true failure.
            if not _is_built(corpus, settings):
                raise
    return corpus


def _is_built(corpus: Path, settings: Mapping[str, object]) -> bool:
    """Tell whether the corpus is there already, and refuse anything else in its place."""
    if not corpus.exists():
        return False
    advice = "choose another destination or delete that folder"
    try:
        found = json.loads((corpus / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(f"{corpus} exists and is not a demo corpus; {advice}.") from None
    if found != settings:
        raise FileExistsError(f"{corpus} holds a demo corpus of {found}, not of {settings}; {advice}.")
    return True


# Each speaker is rendered by a fresh process with a seed of its own. So a speaker sounds the same whoever
# else is rendered beside it.


def _render_all(
    plan: list[tuple[Speaker, list[str]]], folder: Path, seed: int, num_workers: int
) -> dict[Speaker, float]:
    """Render all speakers, ``num_workers`` at a time. Returns their seconds of audio."""
    seconds: dict[Speaker, float] = {}
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
    root = str(Path(__file__).resolve().parents[3])
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
        raise RuntimeError(f"demo speaker {speaker.id} ({speaker.voice}) could not be rendered: {reason}")
    return float(child.stdout)


def _child_main() -> None:
    """Render the speaker that is described on standard input, in a process for this alone."""
    job = json.load(sys.stdin)
    seconds = _render_speaker(Speaker(**job["speaker"]), job["sentences"], Path(job["folder"]), job["seed"])
    sys.stdout.write(f"{seconds}\n")


def _render_speaker(speaker: Speaker, sentences: list[str], folder: Path, seed: int) -> float:
    """Write the speaker's recordings and transcripts. Returns seconds of audio. Call it once in a process."""
    espeak = Espeak(seed=seed + speaker.id)
    room = make_room(np.random.default_rng([seed, speaker.id, 1])) if speaker.split == "test-other" else None
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
        samples = record(resample(speech, espeak.sample_rate, SAMPLE_RATE), room, rng)
        chapter = f"{speaker.id}{index // _CHAPTER_UTTERANCES:02d}"
        utterance = f"{speaker.id}-{chapter}-{index % _CHAPTER_UTTERANCES:04d}"
        path = folder / speaker.split / str(speaker.id) / chapter / f"{utterance}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flac(path, samples, SAMPLE_RATE)
        transcript = path.parent / f"{speaker.id}-{chapter}.trans.txt"
        transcripts.setdefault(transcript, []).append(f"{utterance} {sentence}\n")
        num_samples += len(samples)
    for transcript, lines in transcripts.items():
        transcript.write_text("".join(lines), encoding="utf-8")
    return num_samples / SAMPLE_RATE


def _write_speakers(path: Path, seconds: Mapping[Speaker, float]) -> None:
    """Write the list of speakers as LibriSpeech does."""
    lines = ["; Synthetic speakers of the demo corpus\n", ";ID  |SEX| SUBSET     |MINUTES| NAME\n"]
    for speaker in sorted(seconds, key=lambda s: s.id):
        sex = speaker.voice.partition("+")[2][0].upper()
        minutes = seconds[speaker] / 60
        lines.append(f"{speaker.id} | {sex} | {speaker.split:10} | {minutes:5.2f} | {speaker.voice}\n")
    path.write_text("".join(lines), encoding="utf-8")
