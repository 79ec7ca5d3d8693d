"""Look into a corpus in LibriSpeech's layout: list a split's files, read transcripts, decode recordings.

Bad data raises nothing here: whatever is wrong comes back as a `Problem`, for one report in the end.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile

_AUDIO_SUFFIXES = (".flac", ".wav")
_TRANSCRIPT_SUFFIX = ".trans.txt"
_READ_BLOCK = 1 << 18  # samples decoded at a time, to bound the memory for long recordings
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f$]")  # control characters break the CSV, SpeechBrain replaces $names


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a corpus.

    Attributes
    ----------
    kind
        What is wrong, for example "corrupt audio".
    where
        The file, relative to the data folder, or the utterance ID.
    detail
        What was seen.
    """

    kind: str
    where: str
    detail: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.detail}" if self.detail else self.where
        # Names that are not UTF-8 are escaped, because no log or terminal could show them.
        return text.encode("utf-8", "backslashreplace").decode()


@dataclass
class Listing:
    """What a walk finds without opening a file. Paths are relative to the data folder, with slashes.

    Attributes
    ----------
    audio, transcripts
        Paths of the recordings and of the transcripts.
    stats
        "path size mtime_ns" of every recording and transcript.
    problems
        What is wrong.
    folders
        Subfolders that were not entered.
    """

    audio: list[str] = field(default_factory=list)
    transcripts: list[str] = field(default_factory=list)
    stats: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


@dataclass
class Transcript:
    """The content of one ``.trans.txt`` file.

    Attributes
    ----------
    lines
        The good lines: (ID, "file:line number", words).
    named
        The IDs on any line, good or bad.
    problems
        What is wrong.
    unreadable
        The file cannot be read at all.
    """

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    unreadable: bool = False


def find_split(data_folder: Path, split: str) -> Path | None:
    """Return ``data_folder/<split>`` or ``data_folder/LibriSpeech/<split>``, or None if neither is a
    folder."""
    candidates = (data_folder / split, data_folder / "LibriSpeech" / split)
    return next((folder for folder in candidates if folder.is_dir()), None)


def count_recordings(folder: Path) -> int:
    """Return the number of audio files under a folder. No file is opened."""
    return len(list_files(folder, folder).audio)


def list_split(pool: Executor, data_folder: Path, folder: Path) -> Listing:
    """List a split, its speakers in parallel. (On a network disk each file's status takes a round trip.)

    Parameters
    ----------
    pool
        Where the speakers are listed.
    data_folder
        What the paths are relative to.
    folder
        The folder of the split.

    Returns
    -------
    Listing
        The recordings and transcripts, sorted.
    """
    whole = list_files(data_folder, folder, recurse=False)
    for part in pool.map(partial(list_files, data_folder), whole.folders):
        for name in ("audio", "transcripts", "stats", "problems"):
            getattr(whole, name).extend(getattr(part, name))
    for name in ("audio", "transcripts", "stats"):
        getattr(whole, name).sort()  # the disk's order is not the same everywhere
    whole.problems.sort(key=str)
    return whole


def list_files(data_folder: Path, folder: Path, recurse: bool = True) -> Listing:
    """Walk a folder. Links are followed. Hidden files (such as macOS's ``._*.flac``) do not count.

    Parameters
    ----------
    data_folder
        What the paths are relative to.
    folder
        The folder to walk.
    recurse
        Enter the subfolders. Otherwise the listing names them.
    """
    listing = Listing()
    pending = [folder]
    while pending:
        current = pending.pop()
        where = current.relative_to(data_folder).as_posix()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            listing.problems.append(Problem("unreadable folder", where, error.strerror or str(error)))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below, here = Path(entry.path), current.resolve()
                # A link to a folder above itself would be walked for ever.
                if not (entry.is_symlink() and below.resolve() in (here, *here.parents)):
                    (pending if recurse else listing.folders).append(below)
                continue
            is_audio = entry.name.lower().endswith(_AUDIO_SUFFIXES)
            if not is_audio and not entry.name.endswith(_TRANSCRIPT_SUFFIX):
                continue
            relative = f"{where}/{entry.name}"  # by hand: paths are slow, and a corpus has 300,000 files
            (listing.audio if is_audio else listing.transcripts).append(relative)
            try:
                status = entry.stat()
                listing.stats.append(f"{relative} {status.st_size} {status.st_mtime_ns}")
            except OSError:  # a dangling link: reported when it is opened
                listing.stats.append(f"{relative} unreadable")
    return listing


def read_transcript(data_folder: Path, path: str) -> Transcript:
    """Read one ``.trans.txt`` file of lines ``UTTERANCE-ID WORDS...``. Blank lines and a BOM do no harm."""
    transcript = Transcript()
    try:
        content = (data_folder / path).read_bytes()
    except OSError as error:
        transcript.problems.append(Problem("unreadable transcript", path, error.strerror or str(error)))
        transcript.unreadable = True
        return transcript
    if b"\0" in content:  # UTF-16, or no text at all: one report instead of one per line
        transcript.problems.append(Problem("transcript is not UTF-8", path, "it holds zero bytes"))
        transcript.unreadable = True
        return transcript

    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        fields = line.decode("utf-8", errors="replace").split()
        if not fields:
            continue
        utterance, words = fields[0], " ".join(fields[1:])
        where = f"{path}:{number}"
        transcript.named.add(utterance)
        problem = None
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = Problem("transcript is not UTF-8", where, f"byte {error.start + 1} of the line")
        if problem is None and line[:1].isspace():
            problem = Problem("unreadable transcript line", where, "starts with a blank, not with an ID")
        if problem is None and _UNUSABLE.search(utterance + words):
            problem = Problem("unreadable transcript line", where, "holds '$' or a control character")
        if problem is None and not words:
            problem = Problem("empty transcript", where, f"no words for {utterance}")
        if problem is None:
            transcript.lines.append((utterance, where, words))
        else:
            transcript.problems.append(problem)
    return transcript


def check_recording(data_folder: Path, sample_rate: int, path: str) -> tuple[int, list[Problem]]:
    """Decode one recording to its end.

    Returns
    -------
    tuple
        The number of samples, and what is wrong with the recording.
    """
    if _UNUSABLE.search(path) or not _is_utf8(path):
        detail = "holds '$', a control character or bytes that are not UTF-8"
        return 0, [Problem("unusable file name", repr(path), detail)]
    full_path = data_folder / path
    problems: list[Problem] = []
    samples = 0
    try:
        if full_path.stat().st_size == 0:
            return 0, [Problem("empty audio", path, "the file has 0 bytes")]
        with soundfile.SoundFile(full_path) as audio:
            if audio.samplerate != sample_rate:
                detail = f"{audio.samplerate} Hz, not {sample_rate} Hz"
                problems.append(Problem("wrong sample rate", path, detail))
            if audio.channels != 1:
                problems.append(Problem("not mono", path, f"{audio.channels} channels"))
            block = np.empty((_READ_BLOCK, audio.channels), dtype=np.int16)
            while (count := len(audio.read(out=block))) > 0:
                samples += count
            promised = audio.frames
        missing_bytes = _missing_wav_bytes(full_path)
    except (soundfile.SoundFileError, OSError) as error:
        # To libsndfile a FLAC without samples is as unknown a format as a file that is no audio at all.
        if _is_flac_without_samples(full_path):
            return 0, [Problem("empty audio", path, "0 samples")]
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        return 0, [Problem("corrupt audio", path, reason.removeprefix("Error : ").rstrip("."))]
    if missing_bytes > 0:
        problems.append(Problem("corrupt audio", path, f"{missing_bytes} bytes shorter than its header says"))
    elif samples != promised:
        detail = f"the header promises {promised} samples, {samples} are there"
        problems.append(Problem("corrupt audio", path, detail))
    elif samples == 0:
        problems.append(Problem("empty audio", path, "0 samples"))
    return samples, problems


def utterance_id(path: str) -> str:
    """Return the name of a file without its last ending."""
    return PurePosixPath(path).stem


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_flac_without_samples(path: Path) -> bool:
    """Tell whether a FLAC's header says 0 samples and no audio follows the metadata blocks (RFC 9639)."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"fLaC":
                return False
            total_samples, last = None, False
            while not last:
                header = file.read(4)
                if len(header) < 4:
                    return False
                last, size = bool(header[0] & 0x80), int.from_bytes(header[1:], "big")
                body = file.read(size)
                if header[0] & 0x7F == 0:  # STREAMINFO: the total is the low 36 bits of bytes 10 to 17
                    total_samples = int.from_bytes(body[10:18], "big") & ((1 << 36) - 1)
            return total_samples == 0 and not file.read(1)
    except OSError:
        return False


def _missing_wav_bytes(path: Path) -> int:
    """Count the bytes that a RIFF file lacks of what its header says. (libsndfile does not report them.)"""
    with path.open("rb") as file:
        header = file.read(8)
    promised = int.from_bytes(header[4:], "little")
    if header[:4] != b"RIFF" or promised in (0, 0xFFFFFFFF):  # written to a pipe: the length was not known
        return 0
    return promised + 8 - path.stat().st_size
