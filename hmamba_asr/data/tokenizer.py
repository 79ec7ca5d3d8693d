"""SentencePiece tokenizers trained from CSV manifests.

Ids follow SpeechBrain's LibriSpeech Transformer recipes, so that their published ``tokenizer.ckpt`` and ours
are interchangeable: ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2 and no padding piece. Id 0 serves as CTC blank and as
padding too. Training text never gives ``<unk>``, since all its characters are in the vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from hmamba_asr.data.manifest import read_transcripts
from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.run_layout import tokenizer_name

logger = logging.getLogger(__name__)

UNK_ID = 0
BOS_ID = 1
EOS_ID = 2
MODEL_TYPES = ("unigram", "bpe", "char")

_MAX_PIECE_LENGTH = 10  # characters; SpeechBrain's default, and that of its published tokenizers
_MAX_SENTENCE_BYTES = 1 << 20  # SentencePiece drops longer lines without a word: its default is 4192


def train_tokenizer(
    *,
    manifest: str | Path | Sequence[str | Path],
    output_folder: str | Path,
    vocab_size: int | None,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
) -> Path:
    """Train a SentencePiece model on the ``wrd`` column of one or more CSV manifests.

    The result depends on the transcripts, not on their order. It is reused when ``output_folder`` already
    holds a model of the same text and settings, and trained anew (with a warning) when the text has changed.

    Parameters
    ----------
    manifest
        A CSV file, or several, with a ``wrd`` column.
    output_folder
        The folder for ``<model_type><vocab_size>.model`` and a ``.json``. It is made if it is missing.
    vocab_size
        The number of pieces, the three special ones included. A "char" tokenizer has as many pieces as the
        text has characters (space included) plus three: give that number or None.
    model_type
        "unigram", "bpe" or "char".
    character_coverage
        The share of the text's characters that the pieces cover. Other characters become ``<unk>``.

    Returns
    -------
    Path
        The ``.model`` file.

    Raises
    ------
    FileNotFoundError
        If a manifest does not exist.
    ValueError
        If the ``model_type`` is unknown, there is no text, or the text cannot give ``vocab_size`` pieces (the
        message names the nearest size that it can give).
    """
    if model_type not in MODEL_TYPES:
        choices = ", ".join(MODEL_TYPES)
        raise ValueError(f"unknown tokenizer model_type {model_type!r}; choose one of {choices}.")
    if not 0.0 < character_coverage <= 1.0:
        raise ValueError(f"character_coverage is {character_coverage}; it must lie in (0, 1].")
    if vocab_size is None and model_type != "char":
        raise ValueError(f"a {model_type} tokenizer needs a vocab_size; only char takes it from the text.")
    if vocab_size is not None and (not isinstance(vocab_size, int) or vocab_size < 1):
        raise ValueError(f"the tokenizer's vocab_size is {vocab_size!r}; it must be a positive integer.")

    manifests = [Path(m) for m in ([manifest] if isinstance(manifest, (str, Path)) else manifest)]
    sentences = _read_sentences(manifests)
    if vocab_size is None or model_type == "char":
        vocab_size = _char_vocab_size(sentences, vocab_size, character_coverage)
    fingerprint = _fingerprint(sentences, model_type, vocab_size, character_coverage)

    path = Path(output_folder) / tokenizer_name(model_type, vocab_size)
    if _is_current(path, fingerprint):
        return path
    if path.exists():
        logger.warning(
            "The text or settings of the tokenizer %s changed. It is trained anew, and models trained with "
            "the old one do not fit it.",
            path,
        )
    model = _train(sentences, model_type, vocab_size, character_coverage)
    with write_atomically(path, binary=True) as stream:
        stream.write(model)
    record = {
        "fingerprint": fingerprint,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "manifests": [str(m) for m in manifests],
        "sentences": len(sentences),
        "sentencepiece": sentencepiece.__version__,
    }
    with write_atomically(_record_path(path)) as stream:
        stream.write(json.dumps(record, indent=2) + "\n")
    return path


def load_tokenizer(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model, ours or SpeechBrain's ``tokenizer.ckpt``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is a Git LFS pointer, is no SentencePiece model, or has other special ids than the models
        expect (``<unk>`` 0, ``<s>`` 1, ``</s>`` 2).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no tokenizer file {path}; train one or correct the path.")
    model = path.read_bytes()
    if model.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not a tokenizer; fetch the file with `git lfs pull`.")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        vocab_size = processor.get_piece_size()
    except (RuntimeError, ValueError, TypeError):
        vocab_size = 0
    if vocab_size == 0:
        raise ValueError(
            f"{path} ({len(model)} bytes) is not a SentencePiece model or is damaged; train or download it "
            "again."
        )
    ids = {"<unk>": processor.unk_id(), "<s>": processor.bos_id(), "</s>": processor.eos_id()}
    if ids != {"<unk>": UNK_ID, "<s>": BOS_ID, "</s>": EOS_ID}:
        found = ", ".join(f"{piece} {index}" for piece, index in ids.items())
        raise ValueError(
            f"the tokenizer {path} has the special ids {found} (-1: none), but the models need <unk> "
            f"{UNK_ID}, <s> {BOS_ID}, </s> {EOS_ID}; train it with train_tokenizer."
        )
    return processor


def _read_sentences(manifests: Sequence[Path]) -> list[str]:
    """Read the non-empty transcripts of all manifests, sorted, since the order of rows must not matter."""
    if not manifests:
        raise ValueError("there is no manifest to train the tokenizer on; name at least one.")
    sentences = []
    for manifest in manifests:
        sentences += read_transcripts(manifest)
    if not sentences:
        raise ValueError(
            f"there is no transcript to train a tokenizer on in {', '.join(map(str, manifests))}."
        )
    return sorted(sentences)


def _train(sentences: list[str], model_type: str, vocab_size: int, character_coverage: float) -> bytes:
    try:
        return _run_trainer(sentences, model_type, vocab_size, character_coverage)
    except RuntimeError as error:
        text = f"these {len(sentences)} transcripts"
        request = f"a {model_type} tokenizer of {vocab_size} pieces cannot be made from {text}"
        # SentencePiece knows the bounds only while it trains, and tells them in its message alone.
        if match := re.search(r"Please set it to a value <= (\d+)", str(error)):
            raise ValueError(f"{request}: the largest vocab_size that works is {match[1]}.") from error
        if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise ValueError(f"{request}: the smallest vocab_size that works is {match[1]}.") from error
        raise ValueError(f"{request}: {error}") from error


def _run_trainer(sentences: list[str], model_type: str, vocab_size: int, character_coverage: float) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        character_coverage=character_coverage,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        max_sentencepiece_length=_MAX_PIECE_LENGTH,
        max_sentence_length=_MAX_SENTENCE_BYTES,
        num_threads=4,  # fixed: the threads' partial sums are added, so their number is part of the result
        minloglevel=2,
    )
    return model.getvalue()


def _char_vocab_size(sentences: list[str], asked: int | None, character_coverage: float) -> int:
    """Return the size of the char vocabulary. (SentencePiece silently drops characters to get fewer
    pieces.)"""
    upper_bound = len(set("".join(sentences))) + 16
    model = _run_trainer(sentences, "char", upper_bound, character_coverage)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    if asked not in (None, size):
        raise ValueError(
            f"a char tokenizer of these {len(sentences)} transcripts has exactly {size} pieces, not {asked}; "
            f"set vocab_size to {size}."
        )
    return size


def _fingerprint(sentences: list[str], model_type: str, vocab_size: int, character_coverage: float) -> str:
    settings = [model_type, vocab_size, character_coverage, _MAX_PIECE_LENGTH, UNK_ID, BOS_ID, EOS_ID]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for sentence in sentences:
        digest.update(b"\n" + sentence.encode())
    return digest.hexdigest()


def _record_path(model_path: Path) -> Path:
    return model_path.with_suffix(".json")


def _is_current(path: Path, fingerprint: str) -> bool:
    """Tell whether ``path`` holds the very model that was trained for ``fingerprint``, whole and
    unchanged."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
        model_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return record["fingerprint"] == fingerprint and record["model_sha256"] == model_sha256
    except (OSError, ValueError, KeyError, TypeError):
        return False
