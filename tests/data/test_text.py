"""Sentences read from the middle of files."""

import pickle

import pytest

from hmamba_asr.data import text
from hmamba_asr.data.text import TextDataset


class Words:
    """A tokenizer: each word's length is its token, and 'unknown' is not known."""

    def unk_id(self):
        return 0

    def encode(self, sentence):
        return [0 if word == "unknown" else len(word) for word in sentence.split()]


@pytest.fixture
def files(tmp_path):
    lines, more, manifest = tmp_path / "lines.txt", tmp_path / "more.txt", tmp_path / "m.csv"
    lines.write_bytes("a bb\r\n\nÉÉ unknown ccc\n  spaced   out  \n".encode())
    more.write_bytes(b"\nlast line without end")
    manifest.write_text("ID,wrd\n1,in a manifest\n2,\n")
    return [lines, manifest, more]


SENTENCES = ["a bb", "ÉÉ unknown ccc", "spaced out", "in a manifest", "last line without end"]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_every_sentence_of_every_file_in_order(files, monkeypatch, block):
    monkeypatch.setattr(text, "_SCAN_BYTES", block)
    dataset = TextDataset(files, tokenizer=Words(), max_tokens=100)
    assert [dataset.sentence(i) for i in range(len(dataset))] == SENTENCES
    assert dataset[1]["tokens"].tolist() == [2, 3]  # without the unknown piece
    again = pickle.loads(pickle.dumps(dataset))  # as a worker process gets it
    assert again.sentence(0) == dataset.sentence(0)


def test_long_sentences_are_cut(files):
    assert TextDataset(files, tokenizer=Words(), max_tokens=2)[4]["tokens"].tolist() == [4, 4]


def test_bad_texts_are_named(tmp_path):
    def read(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return TextDataset([tmp_path / name], tokenizer=Words(), max_tokens=9)

    with pytest.raises(FileNotFoundError, match="there is no text .*gone.txt"):
        read("gone.txt")
    with pytest.raises(ValueError, match="unpack it first"):
        read("lm.txt.gz", b"x")
    for empty in (b"", b"\n\n"):
        with pytest.raises(ValueError, match="empty.txt holds no sentence"):
            read("empty.txt", empty)
    with pytest.raises(ValueError, match="no column wrd"):
        read("m.csv", b"a,b\n1,2\n")
    with pytest.raises(ValueError, match="no text to train"):
        TextDataset([], tokenizer=Words(), max_tokens=9)
