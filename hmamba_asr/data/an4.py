"""CMU AN4 (https://www.speech.cs.cmu.edu/databases/an4/) in LibriSpeech's layout.

AN4 has 948 training utterances of 74 speakers: spelled names, numbers and commands, 0.7 h. The split here is
ours: every seventh speaker, from the fourth on, is in ``an4-dev`` (128 utterances) and the others are in
``an4-train`` (820). Speakers are numbered from 1001 and their utterances from 0, both in AN4's own order.
AN4's test set (130 utterances) becomes ``an4-test``, with speakers from 2001 on.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import soundfile

from hmamba_asr.data.audio import decode_audio, write_flac
from hmamba_asr.data.corpus_files import count_recordings
from hmamba_asr.system.files import unfinished_folder

AN4_URL = "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
SPLITS = {"an4-train": 820, "an4-dev": 128, "an4-test": 130}
"""Number of utterances of each split."""

_LISTS = {"train": 1001, "test": 2001}  # AN4's own lists, and the number of the first speaker
_LINE = re.compile(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\(([^()\s]+)\)\s*")


def missing_an4_splits(dest: str | Path) -> list[str]:
    """Return which of AN4's splits are not in ``dest`` yet.

    Raises
    ------
    FileExistsError
        If the folder of a split holds another number of recordings than the split has.
    """
    missing = []
    for split, count in SPLITS.items():
        folder = Path(dest) / split
        if not folder.is_dir():
            missing.append(split)
        elif (there := count_recordings(folder)) != count:
            raise FileExistsError(
                f"{folder} holds {there} recordings and {split} has {count}; move or delete that folder."
            )
    return missing


def convert_an4(archive: str | Path, dest: str | Path) -> dict[str, Path]:
    """Unpack ``an4_sphere.tar.gz`` into ``dest/an4-train``, ``dest/an4-dev`` and ``dest/an4-test``.

    Each split appears whole or not at all. A split that is there with all its recordings is left as it is.

    Parameters
    ----------
    archive
        AN4's archive of NIST SPHERE files.
    dest
        Where the splits appear.

    Returns
    -------
    dict
        The folder of each split.

    Raises
    ------
    FileExistsError
        If the folder of a split is there and holds something else.
    ValueError
        If the archive is not AN4, or one of its files is missing or damaged.
    OSError
        If the archive cannot be opened, or the disk is full.
    """
    dest = Path(dest)
    missing = missing_an4_splits(dest)
    files = _read_archive(Path(archive))
    with unfinished_folder(dest, "an4") as folder:
        try:
            for name, first_speaker in _LISTS.items():
                _convert_list(files, name, first_speaker, folder)
        except KeyError as error:
            raise ValueError(f"{archive} is not AN4: it lacks {error}; download it again.") from error
        except (UnicodeDecodeError, soundfile.SoundFileError) as error:
            raise ValueError(f"{archive} holds damaged files ({error}); download it again.") from error
        counts = {split: count_recordings(folder / split) for split in SPLITS}
        if counts != SPLITS:
            raise ValueError(
                f"{archive} is not AN4: it gives {counts} utterances instead of {SPLITS}; download it again."
            )
        for split in missing:
            os.replace(folder / split, dest / split)
    return {split: dest / split for split in SPLITS}


def _read_archive(archive: Path) -> dict[str, bytes]:
    """Return the content of all files at once, 100 MB. To read a compressed archive in another order than its
    own would unpack it again and again."""
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            files = {
                member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None
            }
            while unpacked.read(1 << 20):  # to the end, where gzip compares its checksum
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} cannot be unpacked as AN4 ({error}); download it again.") from error
    return files


def _convert_list(files: Mapping[str, bytes], name: str, first_speaker: int, target: Path) -> None:
    """Write the utterances of one of AN4's lists into the splits they belong to."""
    texts = {}
    for line in files[f"an4/etc/an4_{name}.transcription"].decode("ascii").splitlines():
        if match := _LINE.fullmatch(line):
            texts[match[2]] = match[1]
    speakers: dict[str, list[str]] = {}
    for path in files[f"an4/etc/an4_{name}.fileids"].decode("ascii").split():
        speakers.setdefault(os.path.dirname(path), []).append(path)
    for index, paths in enumerate(speakers.values()):
        speaker = first_speaker + index
        split = "an4-test" if name == "test" else "an4-dev" if index % 7 == 3 else "an4-train"
        folder = target / split / str(speaker) / "1"
        folder.mkdir(parents=True)
        lines = []
        for number, path in enumerate(paths):
            utterance = f"{speaker}-1-{number:04d}"
            samples, rate = decode_audio(files[f"an4/wav/{path}.sph"])
            write_flac(folder / f"{utterance}.flac", samples, rate)
            lines.append(f"{utterance} {texts[os.path.basename(path)]}\n")
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines), encoding="utf-8")
