"""Tokenizers: the same text gives the same bytes, and wrong sizes and files are named."""

from __future__ import annotations

import csv
import re
import string

import pytest
import sentencepiece

from hmamba_asr.data.tokenizer import load_tokenizer, train_tokenizer

TEXT = "THE RED BOAT CAME TO OLD TOWN ANNA BOUGHT SEVEN GREEN APPLES OPEN WINDOW PLEASE CLOSE DOOR IT'S NOW"
WORDS = TEXT.split()
SENTENCES = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 7)) for i in range(60)]
NUM_CHARACTERS = len(set("".join(SENTENCES)))  # the space is a piece of its own


def write_manifest(path, sentences):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        writer.writerows([f"u{i}", "1.0", f"u{i}.flac", "s", text] for i, text in enumerate(sentences))
    return path


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path / "train.csv", SENTENCES)


@pytest.mark.parametrize(
    ("model_type", "vocab_size"), [("unigram", NUM_CHARACTERS + 8), ("bpe", 60), ("char", NUM_CHARACTERS + 3)]
)
def test_round_trip_ids_and_name(tmp_path, manifest, model_type, vocab_size):
    path = train_tokenizer(
        manifest=manifest, output_folder=tmp_path / "out", vocab_size=vocab_size, model_type=model_type
    )
    assert path == tmp_path / "out" / f"{model_type}{vocab_size}.model"
    tokenizer = load_tokenizer(path)
    assert tokenizer.get_piece_size() == vocab_size
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, -1)
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence)
        assert min(ids) > 2, "blank, bos and eos must never stand for text"
        assert tokenizer.decode(ids) == sentence


def test_same_text_in_any_order_gives_the_same_bytes(tmp_path, manifest):
    halves = [
        write_manifest(tmp_path / "b.csv", SENTENCES[:20:-1]),
        write_manifest(tmp_path / "a.csv", [*SENTENCES[:21], "", "  "]),
    ]
    one = train_tokenizer(manifest=manifest, output_folder=tmp_path / "1", vocab_size=30)
    two = train_tokenizer(manifest=halves, output_folder=tmp_path / "2", vocab_size=30)
    assert one.read_bytes() == two.read_bytes()


def test_reused_only_for_the_same_text_and_whole_file(tmp_path, manifest, caplog):
    settings = dict(manifest=manifest, output_folder=tmp_path / "out", vocab_size=30)
    path = train_tokenizer(**settings)
    first = path.stat().st_mtime_ns
    model = path.read_bytes()
    assert train_tokenizer(**settings).stat().st_mtime_ns == first

    path.write_bytes(model[: len(model) // 2])
    assert train_tokenizer(**settings).read_bytes() == model

    write_manifest(manifest, [*SENTENCES, "TEN TENTS"])
    caplog.clear()
    assert train_tokenizer(**settings).read_bytes() != model
    assert "trained anew" in caplog.text
    assert sorted(p.name for p in path.parent.iterdir()) == ["unigram30.json", "unigram30.model"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(("vocab_size", "word"), [(4000, "largest"), (5, "smallest")])
def test_impossible_size_names_one_that_works(tmp_path, manifest, model_type, vocab_size, word):
    settings = dict(manifest=manifest, output_folder=tmp_path / "out", model_type=model_type)
    with pytest.raises(ValueError, match=f"{word} vocab_size that works is") as caught:
        train_tokenizer(**settings, vocab_size=vocab_size)
    assert not (tmp_path / "out").exists()
    bound = int(re.search(r"works is (\d+)", str(caught.value))[1])
    assert load_tokenizer(train_tokenizer(**settings, vocab_size=bound)).get_piece_size() == bound
    beyond = bound + 1 if word == "largest" else bound - 1
    with pytest.raises(ValueError, match=word):
        train_tokenizer(**settings, vocab_size=beyond)


def test_char_size_follows_from_the_text(tmp_path, manifest):
    settings = dict(manifest=manifest, output_folder=tmp_path, model_type="char")
    assert train_tokenizer(**settings, vocab_size=None).name == f"char{NUM_CHARACTERS + 3}.model"
    for wrong in (NUM_CHARACTERS, 500):
        with pytest.raises(ValueError, match=f"set vocab_size to {NUM_CHARACTERS + 3}"):
            train_tokenizer(**settings, vocab_size=wrong)


def test_bad_requests(tmp_path, manifest):
    settings = dict(manifest=manifest, output_folder=tmp_path, vocab_size=30)
    with pytest.raises(ValueError, match="unigram, bpe, char"):
        train_tokenizer(**{**settings, "model_type": "wordpiece"})
    with pytest.raises(ValueError, match="needs a vocab_size"):
        train_tokenizer(**{**settings, "vocab_size": None})
    with pytest.raises(ValueError, match="character_coverage"):
        train_tokenizer(**{**settings, "character_coverage": 1.5})
    with pytest.raises(FileNotFoundError, match=r"missing\.csv"):
        train_tokenizer(**{**settings, "manifest": tmp_path / "missing.csv"})
    with pytest.raises(ValueError, match=r"no transcript .*empty\.csv"):
        train_tokenizer(**{**settings, "manifest": write_manifest(tmp_path / "empty.csv", [" "])})
    (tmp_path / "other.csv").write_text("ID,text\nu,HELLO\n")
    with pytest.raises(ValueError, match="no column wrd"):
        train_tokenizer(**{**settings, "manifest": tmp_path / "other.csv"})


def test_load_says_what_is_wrong(tmp_path, manifest):
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        load_tokenizer(tmp_path / "none.model")
    bad = tmp_path / "bad.model"
    bad.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        load_tokenizer(bad)
    good = train_tokenizer(manifest=manifest, output_folder=tmp_path, vocab_size=30).read_bytes()
    for content in (b"", good[: len(good) // 2], string.ascii_letters.encode() * 20):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="is not a SentencePiece model or is damaged"):
            load_tokenizer(bad)


def test_load_refuses_other_special_ids(tmp_path):
    with (tmp_path / "t.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_writer=file,
            vocab_size=30,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    with pytest.raises(ValueError, match=r"special ids <unk> 0, <s> -1, </s> -1"):
        load_tokenizer(tmp_path / "t.model")
