"""CMU AN4 (https://www.speech.cs.cmu.edu/databases/an4/) in LibriSpeech's layout.

AN4 has 948 training utterances of 74 speakers: spelled names, numbers and commands, 0.7 h. The split here is
ours: every seventh speaker, from the fourth on, is in ``an4-dev`` (128 utterances) and the others are in
``an4-train`` (820). Speakers are numbered from 1001 and their utterances from 0, both in AN4's own order.
AN4's test set (130 utterances) becomes ``an4-test``, with speakers from 2001 on.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import soundfile

AN4_URL = "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
SPLITS = {"an4-train": 820, "an4-dev": 128, "an4-test": 130}
"""Number of utterances of each split."""

_LISTS = {"train": 1001, "test": 2001}  # AN4's own lists, and the number of the first speaker
_LINE = re.compile(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\(([^()\s]+)\)\s*")


def convert_an4(archive: str | Path, dest: str | Path) -> dict[str, Path]:
    """Unpack ``an4_sphere.tar.gz`` into ``dest/an4-train``, ``dest/an4-dev`` and ``dest/an4-test``.

    Each split appears whole or not at all.

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
    ValueError
        If the archive is not AN4, or one of its files is missing or damaged.
    """
    dest = Path(dest)
    temporary = dest / f".an4.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _unpack(Path(archive), temporary)
        counts = {split: len(list((temporary / split).glob("*/*/*.flac"))) for split in SPLITS}
        if counts != SPLITS:
            raise ValueError(
                f"{archive} is not AN4: it gives {counts} utterances instead of {SPLITS}; download it again."
            )
        for split in SPLITS:
            shutil.rmtree(dest / split, ignore_errors=True)
            os.replace(temporary / split, dest / split)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {split: dest / split for split in SPLITS}


def _unpack(archive: Path, target: Path) -> None:
    try:
        with tarfile.open(archive, mode="r:gz") as tar:
            # All at once, 100 MB: reading a compressed archive in another order would unpack it again and
            # again.
            files = {
                member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None
            }
        for name, first_speaker in _LISTS.items():
            _convert_list(files, name, first_speaker, target)
    except KeyError as error:
        raise ValueError(f"{archive} is not AN4: it lacks {error}; download it again.") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError, soundfile.SoundFileError) as error:
        raise ValueError(f"{archive} cannot be unpacked as AN4 ({error}); download it again.") from error


def _convert_list(files: Mapping[str, bytes], name: str, first_speaker: int, target: Path) -> None:
    """Write the utterances of one of AN4's lists into the splits they belong to."""
    texts = {}
    for line in files[f"an4/etc/an4_{name}.transcription"].decode("ascii").splitlines():
        if match := _LINE.fullmatch(line):
            texts[match[2]] = match[1]
    speakers: dict[str, list[str]] = {}
    for path in files[f"an4/etc/an4_{name}.fileids"].decode("ascii").split():
        speakers.setdefault(path.split("/")[-2], []).append(path)
    for index, paths in enumerate(speakers.values()):
        speaker = first_speaker + index
        split = "an4-test" if name == "test" else "an4-dev" if index % 7 == 3 else "an4-train"
        folder = target / split / str(speaker) / "1"
        folder.mkdir(parents=True)
        lines = []
        for number, path in enumerate(paths):
            utterance = f"{speaker}-1-{number:04d}"
            samples, rate = soundfile.read(io.BytesIO(files[f"an4/wav/{path}.sph"]), dtype="int16")
            soundfile.write(folder / f"{utterance}.flac", samples, rate, subtype="PCM_16")
            lines.append(f"{utterance} {texts[path.split('/')[-1]]}\n")
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines), encoding="utf-8")
