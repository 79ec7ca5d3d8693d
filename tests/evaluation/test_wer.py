"""Error rates: known answers, and totals against a plain dynamic programme."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmamba_asr.evaluation.results import plain
from hmamba_asr.evaluation.wer import ErrorCounts, align, read_trn, score_split, write_alignments, write_trn

REFERENCES = {
    "1-2-0001": "THE CAT SAT ON THE MAT",  # 1 deletion (ON), 1 substitution (MAT)
    "1-2-0000": "HELLO WORLD",  # 1 insertion
    "3-4-0000": "YES",  # right
    "3-4-0001": "GO HOME",  # nothing recognised: 2 deletions
}
HYPOTHESES = {
    "3-4-0001": "",
    "3-4-0000": "YES",
    "1-2-0000": "HELLO BIG WORLD",
    "1-2-0001": "THE CAT SAT THE HAT",
}


def test_known_word_errors():
    wer = score_split(REFERENCES, HYPOTHESES).wer
    assert wer == ErrorCounts(
        tokens=11, insertions=1, deletions=3, substitutions=1, sentences=4, sentence_errors=3
    )
    assert wer.errors == 5
    assert wer.rate == pytest.approx(100 * 5 / 11)
    assert wer.sentence_error_rate == 75.0
    assert plain(wer.record(), "wer") == {
        "rate": wer.rate,
        "tokens": 11,
        "errors": 5,
        "insertions": 1,
        "deletions": 3,
        "substitutions": 1,
        "sentences": 4,
        "sentence_errors": 3,
        "sentence_error_rate": 75.0,
    }


def test_character_errors_count_the_space():
    # "A B" against "AB": the space is deleted. "AC" against "AB": one substitution.
    cer = score_split({"u1": "A B", "u2": "AC"}, {"u1": "AB", "u2": "AB"}).cer
    assert cer == ErrorCounts(
        tokens=5, insertions=0, deletions=1, substitutions=1, sentences=2, sentence_errors=2
    )


def test_whitespace_between_words_is_no_error():
    score = score_split({"u": "A  B "}, {"u": " A B"})
    assert score.wer.errors == score.cer.errors == 0


def _distance(reference: list[str], hypothesis: list[str]) -> int:
    """Return the Levenshtein distance, computed row by row."""
    row = list(range(len(hypothesis) + 1))
    for i, ref in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, hyp in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (ref != hyp))
    return row[-1]


_TEXT = st.lists(st.sampled_from(["A", "B", "AB", "BA", "_"]), max_size=8).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=5).filter(lambda pairs: any(r for r, _ in pairs))
)
def test_totals_agree_with_a_plain_dynamic_programme(pairs):
    references = {f"u{i}": ref for i, (ref, _) in enumerate(pairs)}
    hypotheses = {f"u{i}": hyp for i, (_, hyp) in enumerate(pairs)}
    score = score_split(references, hypotheses)
    for counts, split in ((score.wer, str.split), (score.cer, list)):
        tokens = [(split(ref), split(hyp)) for ref, hyp in pairs]
        distances = [_distance(ref, hyp) for ref, hyp in tokens]
        assert counts.errors == sum(distances)
        assert counts.sentence_errors == sum(distance > 0 for distance in distances)
        assert counts.sentences == len(pairs)
        assert counts.tokens == sum(len(ref) for ref, _ in tokens)
        # True of every alignment.
        assert counts.insertions - counts.deletions == sum(len(hyp) - len(ref) for ref, hyp in tokens)


def test_differing_ids_are_refused_by_name(tmp_path):
    hypotheses = {key: text for key, text in HYPOTHESES.items() if key != "1-2-0001"} | {"9-9-0000": "EXTRA"}
    for call in (score_split, lambda *maps: write_alignments(tmp_path / "w", *maps), _trn_in(tmp_path)):
        with pytest.raises(
            ValueError, match=r"1 references have no hypothesis: 1-2-0001.*no reference: 9-9-0000"
        ):
            call(REFERENCES, hypotheses)
    assert not list(tmp_path.iterdir())


def _trn_in(folder):
    return lambda references, hypotheses: write_trn(folder, references, hypotheses)


def test_many_differing_ids_are_summed_up():
    references = {f"u{i}": "A" for i in range(8)}
    with pytest.raises(ValueError, match="8 references have no hypothesis: u0, u1, u2, u3, u4 and 3 more"):
        score_split(references, {})


@pytest.mark.parametrize("references", [{}, {"u": "  "}])
def test_an_empty_reference_corpus_has_no_rate(references):
    with pytest.raises(ValueError, match="references hold no words"):
        score_split(references, dict.fromkeys(references, "A"))


def test_counts_without_tokens_have_no_rate():
    empty = ErrorCounts(tokens=0, insertions=2, deletions=0, substitutions=0, sentences=0, sentence_errors=0)
    with pytest.raises(ValueError, match="no words"):
        _ = empty.rate
    with pytest.raises(ValueError, match="no utterances"):
        _ = empty.sentence_error_rate


def test_alignments_are_speechbrains_and_sorted(tmp_path):
    path = tmp_path / "new" / "wer.txt"
    write_alignments(path, REFERENCES, HYPOTHESES)
    lines = path.read_text().splitlines()
    assert lines[0] == "%WER 45.45 [ 5 / 11, 1 ins, 3 del, 1 sub ]"
    assert lines[1] == "%SER 75.00 [ 3 / 4 ]"
    headers = [line for line in lines if ", %WER" in line]
    assert [line.split(",")[0] for line in headers] == sorted(REFERENCES)
    start = lines.index("1-2-0001, %WER 33.33 [ 2 / 6, 0 ins, 1 del, 1 sub ]")
    assert [" ".join(line.split()) for line in lines[start + 1 : start + 4]] == [
        "THE ; CAT ; SAT ; ON ; THE ; MAT",
        "= ; = ; = ; D ; = ; S",
        "THE ; CAT ; SAT ; <eps> ; THE ; HAT",
    ]
    assert [file.name for file in path.parent.iterdir()] == ["wer.txt"]


def test_trn_files(tmp_path):
    write_trn(tmp_path / "new", REFERENCES, HYPOTHESES)
    assert (tmp_path / "new" / "ref.trn").read_text() == (
        "HELLO WORLD (1-2-0000)\nTHE CAT SAT ON THE MAT (1-2-0001)\nYES (3-4-0000)\nGO HOME (3-4-0001)\n"
    )
    assert (tmp_path / "new" / "hyp.trn").read_text() == (
        "HELLO BIG WORLD (1-2-0000)\nTHE CAT SAT THE HAT (1-2-0001)\nYES (3-4-0000)\n(3-4-0001)\n"
    )
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("key", ["a b", "a(b)", ""])
def test_ids_that_sclite_cannot_read_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="whitespace or parentheses"):
        write_trn(tmp_path, {key: "A"}, {key: "A"})


def test_trn_files_read_back(tmp_path):
    write_trn(tmp_path, REFERENCES, HYPOTHESES)
    assert read_trn(tmp_path) == (REFERENCES, HYPOTHESES)


@pytest.mark.parametrize(
    ("text", "message"), [("A B\n", "line 1 does not end in"), ("A (u)\nB (u)\n", "line 2 repeats the ID u")]
)
def test_broken_trn_files_are_refused(tmp_path, text, message):
    (tmp_path / "ref.trn").write_text(text)
    with pytest.raises(ValueError, match=rf"ref\.trn, {message}"):
        read_trn(tmp_path)
    (tmp_path / "ref.trn").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*ref\.trn; evaluate the run again"):
        read_trn(tmp_path)


def test_both_sides_are_normalised_alike():
    """Case and composed or decomposed letters are no errors; apostrophes and punctuation are."""
    score = score_split({"u": "caf\u00e9 O'CLOCK yes"}, {"u": "CAFE\u0301 o'clock YES,"})
    assert (score.wer.errors, score.wer.tokens) == (1, 3)


def test_alignments_by_hand():
    first, second, *_ = align(REFERENCES, HYPOTHESES)
    assert first.pairs == (("HELLO", "HELLO"), (None, "BIG"), ("WORLD", "WORLD"))
    assert (first.id, first.speaker, first.words, first.errors) == ("1-2-0000", "1", 2, 1)
    assert second.pairs[3:] == (("ON", None), ("THE", "THE"), ("MAT", "HAT")) and second.errors == 2


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_rates_of_real_outputs_are_jiwers(search):
    jiwer = pytest.importorskip("jiwer")
    references, hypotheses = read_trn(Path(__file__).parents[1] / "outputs" / search)
    score = score_split(references, hypotheses)
    ids = sorted(references)
    texts = [references[key] for key in ids], [hypotheses[key] for key in ids]
    words, characters = jiwer.process_words(*texts), jiwer.process_characters(*texts)
    assert score.wer.rate == pytest.approx(100 * words.wer) and score.cer.rate == pytest.approx(
        100 * characters.cer
    )
    assert score.wer.errors == words.insertions + words.deletions + words.substitutions
    by_utterance = [jiwer.process_words(ref, hyp) for ref, hyp in zip(*texts, strict=True)]
    errors = [item.insertions + item.deletions + item.substitutions for item in by_utterance]
    assert [item.errors for item in align(references, hypotheses)] == errors
