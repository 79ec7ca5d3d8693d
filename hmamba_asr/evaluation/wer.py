"""Word and character error rates of a split, with alignments and sclite transcripts.

References and hypotheses are mappings from utterance ID to transcript. Both go through `normalise`, the only
change that a text undergoes before it is scored. The edit distance is SpeechBrain's
(`speechbrain.utils.edit_distance`), whose counts of insertions, deletions and substitutions follow Kaldi's
`compute-wer`.

The character error rate follows SpeechBrain's `split_tokens`: words are joined by one space, and every
character counts, the space included. Tools that leave the space out give slightly different figures.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechbrain.dataio.dataio import split_word
from speechbrain.utils.edit_distance import wer_details_for_batch, wer_summary
from speechbrain.utils.metric_stats import ErrorRateStats

from hmamba_asr.evaluation.results import ErrorRates
from hmamba_asr.evaluation.significance import Interval, bootstrap_interval
from hmamba_asr.evaluation.word_alignment import AlignedUtterance
from hmamba_asr.system.files import write_atomically

_NAMED_IDS = 5  # how many utterance IDs an error message spells out
_TRN_LINE = re.compile(r"(?P<words>.*?)\s*\((?P<id>[^()\s]+)\)\s*")


def normalise(text: str) -> list[str]:
    """Return the words of a transcript as they are scored.

    The text gets Unicode's composed form (NFC) and upper case, and is split at white space. Nothing else
    changes: punctuation, apostrophes, hyphens and digits count as they stand.
    """
    return unicodedata.normalize("NFC", text).upper().split()


@dataclass(frozen=True)
class ErrorCounts:
    """Error counts of a corpus. `tokens` counts the reference's words (WER) or characters (CER)."""

    tokens: int
    insertions: int
    deletions: int
    substitutions: int
    sentences: int
    sentence_errors: int

    @property
    def errors(self) -> int:
        """Number of insertions, deletions and substitutions."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """Error rate in percent of the reference tokens. It can exceed 100.

        Raises
        ------
        ValueError
            If the references hold no token.
        """
        if self.tokens == 0:
            raise ValueError("no error rate: the references hold no words; check the split's transcripts.")
        return 100.0 * self.errors / self.tokens

    @property
    def sentence_error_rate(self) -> float:
        """Percentage of sentences with at least one error.

        Raises
        ------
        ValueError
            If there are no sentences.
        """
        if self.sentences == 0:
            raise ValueError("no sentence error rate: there are no utterances; check the split's manifest.")
        return 100.0 * self.sentence_errors / self.sentences

    def record(self, interval: Interval | None = None) -> ErrorRates:
        """Return the record for results.json: counts and both rates, and the 95% interval if there is one."""
        return ErrorRates(
            rate=self.rate,
            tokens=self.tokens,
            errors=self.errors,
            insertions=self.insertions,
            deletions=self.deletions,
            substitutions=self.substitutions,
            sentences=self.sentences,
            sentence_errors=self.sentence_errors,
            sentence_error_rate=self.sentence_error_rate,
            interval_95=None if interval is None else (interval.low, interval.high),
        )


@dataclass(frozen=True)
class SplitScore:
    """Errors of one split.

    Attributes
    ----------
    wer, cer
        Word and character errors.
    utterance_errors, utterance_words
        Word errors and reference words of each utterance, sorted by ID.
    """

    wer: ErrorCounts
    cer: ErrorCounts
    utterance_errors: tuple[int, ...]
    utterance_words: tuple[int, ...]

    def wer_interval(self) -> Interval:
        """Return the 95% bootstrap interval of the WER in percent. It is drawn anew, which takes a moment."""
        return bootstrap_interval(self.utterance_errors, self.utterance_words)

    def wer_record(self) -> ErrorRates:
        """Return the word errors for results.json, with their 95% interval."""
        return self.wer.record(self.wer_interval())


def align(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> list[AlignedUtterance]:
    """Align the words of every utterance with the fewest errors.

    Returns
    -------
    list of AlignedUtterance
        Sorted by ID.

    Raises
    ------
    ValueError
        If the utterance IDs differ, or the references hold no words.
    """
    ids, ref_words, hyp_words = _paired_words(references, hypotheses)
    aligned = []
    for details in wer_details_for_batch(ids, ref_words, hyp_words, compute_alignments=True):
        ref, hyp = details["ref_tokens"], details["hyp_tokens"]
        pairs = tuple(
            (None if i is None else ref[i], None if j is None else hyp[j]) for _, i, j in details["alignment"]
        )
        aligned.append(AlignedUtterance(details["key"], pairs))
    return aligned


def score_split(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> SplitScore:
    """Score the hypotheses of a split.

    Raises
    ------
    ValueError
        If the utterance IDs differ, or the references hold no words.
    """
    ids, ref_words, hyp_words = _paired_words(references, hypotheses)
    ref_chars, hyp_chars = split_word(ref_words, space=" "), split_word(hyp_words, space=" ")
    details = wer_details_for_batch(ids, ref_words, hyp_words)
    return SplitScore(
        wer=_counts(details),
        cer=_counts(wer_details_for_batch(ids, ref_chars, hyp_chars)),
        utterance_errors=tuple(
            item["insertions"] + item["deletions"] + item["substitutions"] for item in details
        ),
        utterance_words=tuple(item["num_ref_tokens"] for item in details),
    )


def write_alignments(path: str | Path, references: Mapping[str, str], hypotheses: Mapping[str, str]) -> None:
    """Write SpeechBrain's WER file: the summary, then each utterance's word alignment, sorted by ID.

    Raises
    ------
    ValueError
        If the utterance IDs differ, or the references hold no words.
    """
    ids, ref_words, hyp_words = _paired_words(references, hypotheses)
    stats = ErrorRateStats()
    stats.append(ids, predict=hyp_words, target=ref_words)
    with write_atomically(path) as stream:
        stats.write_stats(stream)


def write_trn(folder: str | Path, references: Mapping[str, str], hypotheses: Mapping[str, str]) -> None:
    """Write `ref.trn` and `hyp.trn` for `sclite -r ref.trn trn -h hyp.trn trn -i spu_id`, sorted by ID.

    Each utterance gets a line `WORDS (speaker-utterance)`. LibriSpeech's IDs (`1089-134686-0000`) already
    begin with the speaker, so IDs stand as they are. Words are those of `normalise`. sclite gives `{ a / b
    }`, `@` and a leading `;;` a meaning of its own.

    Raises
    ------
    ValueError
        If the utterance IDs differ, an ID holds white space or parentheses, or the references hold no words.
    """
    ids, ref_words, hyp_words = _paired_words(references, hypotheses)
    unfit = [key for key in ids if not key or any(c.isspace() or c in "()" for c in key)]
    if unfit:
        raise ValueError(f"sclite cannot read utterance IDs with whitespace or parentheses: {_name(unfit)}.")
    for name, transcripts in (("ref.trn", ref_words), ("hyp.trn", hyp_words)):
        with write_atomically(Path(folder) / name) as stream:
            for key, words in zip(ids, transcripts, strict=True):
                stream.write(" ".join([*words, f"({key})"]) + "\n")


def read_trn(folder: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read the files of `write_trn` in `folder`.

    Returns
    -------
    tuple of dict
        References and hypotheses by utterance ID.

    Raises
    ------
    FileNotFoundError
        If one of the two files does not exist.
    ValueError
        If a line does not end in `(ID)`, or an ID comes twice.
    """
    return _read_trn_file(Path(folder) / "ref.trn"), _read_trn_file(Path(folder) / "hyp.trn")


def _read_trn_file(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; evaluate the run again (the same command with --test_only)."
        )
    transcripts: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _TRN_LINE.fullmatch(line)
        if match is None or match["id"] in transcripts:
            what = "does not end in (ID)" if match is None else f"repeats the ID {match['id']}"
            raise ValueError(
                f"{path}, line {number} {what}; evaluate the run again (the same command with --test_only)."
            )
        transcripts[match["id"]] = match["words"]
    return transcripts


def _paired_words(
    references: Mapping[str, str], hypotheses: Mapping[str, str]
) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Return the sorted IDs, and the words of each reference and hypothesis."""
    missing = sorted(references.keys() - hypotheses.keys())
    extra = sorted(hypotheses.keys() - references.keys())
    problems = []
    if missing:
        problems.append(f"{len(missing)} references have no hypothesis: {_name(missing)}")
    if extra:
        problems.append(f"{len(extra)} hypotheses have no reference: {_name(extra)}")
    if problems:
        raise ValueError(f"cannot score: {'; '.join(problems)}; decode exactly the split's manifest.")
    ids = sorted(references)
    ref_words = [normalise(references[key]) for key in ids]
    if not any(ref_words):
        raise ValueError("cannot score: the references hold no words; check the transcripts of this split.")
    return ids, ref_words, [normalise(hypotheses[key]) for key in ids]


def _counts(details: list[dict[str, Any]]) -> ErrorCounts:
    summary = wer_summary(details)
    return ErrorCounts(
        tokens=summary["num_scored_tokens"],
        insertions=summary["insertions"],
        deletions=summary["deletions"],
        substitutions=summary["substitutions"],
        sentences=summary["num_scored_sents"],
        sentence_errors=summary["num_erroneous_sents"],
    )


def _name(ids: list[str]) -> str:
    more = f" and {len(ids) - _NAMED_IDS} more" if len(ids) > _NAMED_IDS else ""
    return ", ".join(ids[:_NAMED_IDS]) + more
