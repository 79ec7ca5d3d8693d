"""train_ngram.py with a program in lmplz's place, and n-gram models in the beam search where KenLM is
installed."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from speechbrain.decoders.scorer import KenLMScorer

from hmamba_asr.data.tokenizer import load_tokenizer
from hmamba_asr.decoding.language_models import load_language_model
from hmamba_asr.decoding.scorers import NgramScorer

needs_kenlm = pytest.mark.skipif(
    importlib.util.find_spec("kenlm") is None, reason="the package kenlm is not installed"
)

# Counts bigrams without smoothing. Its command line is kept beside it.
LMPLZ = """
import json, math, sys
from collections import Counter
options = sys.argv[1:]
open(__file__ + ".json", "w").write(json.dumps(options))
unigrams, bigrams = Counter(), Counter()
for line in sys.stdin.buffer.read().decode().split("\\n")[:-1]:
    words = ["<s>", *line.split(" "), "</s>"]
    unigrams.update(words)
    bigrams.update(zip(words, words[1:]))
total = sum(unigrams.values())
with open(options[options.index("--arpa") + 1], "w") as arpa:
    print(f"\\\\data\\\\\\nngram 1={len(unigrams) + 1}\\nngram 2={len(bigrams)}\\n", file=arpa)
    print("\\\\1-grams:\\n-9\\t<unk>", file=arpa)
    for word, count in unigrams.items():
        print(f"{math.log10(count / total)}\\t{word}" + ("" if word == "</s>" else "\\t-0.5"), file=arpa)
    print("\\n\\\\2-grams:", file=arpa)
    for (first, second), count in bigrams.items():
        print(f"{math.log10(0.9 * count / unigrams[first])}\\t{first} {second}", file=arpa)
    print("\\n\\\\end\\\\", file=arpa)
"""
# a b c are tokens 3 4 5
ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.3
-1.0\t</s>
-0.6\ta\t-0.2
-0.9\tb\t-0.4
-1.2\tc\t-0.1

\\2-grams:
-0.2\ta b
-0.3\tb </s>
-0.7\ta c
-0.05\tc a

\\end\\
"""
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c"]


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path


@pytest.fixture
def arguments(lm_recipe, tmp_path):
    def make(output=tmp_path / "out", lmplz=None, text=(lm_recipe.text,), **options):
        lmplz = lmplz or program(tmp_path / "kenlm" / "lmplz", LMPLZ)
        words = [
            "--tokenizer_file",
            lm_recipe.tokenizer,
            "--text",
            *text,
            "--output_folder",
            output,
            "--lmplz",
            lmplz,
        ]
        for name, value in options.items():
            words += [f"--{name}", *(value if isinstance(value, list) else [value])]
        return list(map(str, words))

    return make


# ---- the recipe --------------------------------------------------------------------------------------------


def test_sentences_go_to_lmplz_as_pieces(lm_recipe, train_ngram_script, arguments, tmp_path, capsys):
    """The stand-in's bigrams are those of the tokenizer's pieces, of a text and of a manifest with the same
    sentences."""
    assert train_ngram_script.main(arguments(order=2, prune=[0, 1], memory="1G")) == 0
    given = json.loads((tmp_path / "kenlm" / "lmplz.json").read_text())
    assert given[:2] == ["--order", "2"] and given[given.index("--memory") + 1] == "1G"
    assert given[given.index("--prune") + 1 :] == ["0", "1"]
    export = tmp_path / "out" / "export"
    assert sorted(path.name for path in export.iterdir()) == ["ngram.arpa", "tokens.txt"]
    assert f"2-gram of 40 sentences in {export / 'ngram.arpa'}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["export"]  # nothing of the work is left

    tokenizer = load_tokenizer(lm_recipe.tokenizer)
    tokens = (export / "tokens.txt").read_text().splitlines()
    assert tokens == [tokenizer.id_to_piece(i) for i in range(20)] and tokens[:3] == ["<unk>", "<s>", "</s>"]
    pairs = set()
    for line in filter(None, lm_recipe.text.read_text().splitlines()):
        pieces = ["<s>", *tokenizer.encode(line, out_type=str), "</s>"]
        pairs |= set(zip(pieces, pieces[1:], strict=False))
    arpa = (export / "ngram.arpa").read_text()
    found = arpa.split("\\2-grams:\n")[1].split("\n\n")[0].splitlines()
    assert {tuple(line.split("\t")[1].split(" ")) for line in found} == pairs

    assert (
        train_ngram_script.main(arguments(output=tmp_path / "again", text=[lm_recipe.manifest], order=2)) == 0
    )
    assert (tmp_path / "again" / "export" / "ngram.arpa").read_text() == arpa


def test_build_binary_beside_lmplz_is_used(train_ngram_script, arguments, tmp_path):
    copies = "import sys; open(sys.argv[2], 'wb').write(b'binary of ' + open(sys.argv[1], 'rb').read(6))"
    train_ngram_script.main(arguments())
    program(tmp_path / "kenlm" / "build_binary", copies)
    train_ngram_script.main(arguments())
    export = tmp_path / "out" / "export"
    assert sorted(path.name for path in export.iterdir()) == [
        "ngram.bin",
        "tokens.txt",
    ]  # the older ARPA is gone
    assert (export / "ngram.bin").read_bytes() == b"binary of \\data\\"


def test_wrong_input_is_one_sentence(train_ngram_script, arguments, tmp_path):
    for given, error, sentence in (
        (
            {"lmplz": "no-such-lmplz"},
            FileNotFoundError,
            "there is no no-such-lmplz; build KenLM .* and give --lmplz FILE",
        ),
        ({"text": ["nowhere.txt"]}, FileNotFoundError, "there is no text nowhere.txt"),
        ({"order": 1}, ValueError, "--order is 1; lmplz takes 2 or more"),
    ):
        with pytest.raises(error, match=sentence):
            train_ngram_script.main(arguments(**given))
    complains = "print('a long story\\nnot enough memory\\n', file=sys.stderr); sys.exit(3)"
    reads = f"import sys; sys.stdin.read(); {complains}"
    closes = "import os, sys; os.close(0); print('bad option', file=sys.stderr); sys.exit(2)"
    long = tmp_path / "long.txt"
    long.write_text("one two three\n" * 20000)  # more than a pipe holds
    failures = {
        reads: "code 3: a long story not enough memory",
        closes: "code 2: bad option",
        "exit(1)": "code 1: it said nothing",
    }
    for body, sentence in failures.items():
        with pytest.raises(ValueError, match=f"lmplz ended with {sentence}"):
            train_ngram_script.main(
                arguments(lmplz=program(tmp_path / "broken" / "lmplz", body), text=[long])
            )
    assert not list((tmp_path / "out" / "export").iterdir())


# ---- in the search -----------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(tmp_path):
    (tmp_path / "ngram.arpa").write_text(ARPA)
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    return tmp_path


@needs_kenlm
def test_scores_are_those_of_the_arpa_file(by_hand):
    """Back-off and unknown words are worked out by hand. The context is empty at first."""
    scorer = load_language_model(by_hand, weight=0.5, vocab_size=6)
    assert scorer.name == "kenlm" and scorer.partial and scorer.weight == 0.5
    sentences = {
        (3, 4): -0.6 - 0.2 - 0.3,  # a b </s>
        (4, 3): -0.9 + (-0.4 - 0.6) + (-0.2 - 1.0),  # b a </s>: no such bigrams
        (5, 3, 5): -1.2 - 0.05 - 0.7 + (-0.1 - 1.0),
        (): -1.0,
        (0, 3): -2.0 - 0.6 + (-0.2 - 1.0),  # unknown: no context goes on from it
    }
    given = {"bos": 1, "eos": 2, "device": torch.device("cpu")}
    found = scorer.score_sentences([list(tokens) for tokens in sentences], **given)
    assert found.tolist() == pytest.approx([log10 * math.log(10) for log10 in sentences.values()], abs=1e-4)
    for tokens, log10 in sentences.items():  # step by step, as in a search
        scorer.start(torch.zeros(1, 1, 1), torch.ones(1))
        total, last = 0.0, torch.tensor([[1]])
        for token in (*tokens, 2):
            candidates = torch.tensor([[[token, (token + 1) % 6]]])
            total += float(scorer.scores(last, None, candidates)[0, 0, token])
            last = torch.tensor([[token]])
            scorer.advance(torch.tensor([[0]]), last)
        assert total == pytest.approx(log10 * math.log(10), abs=1e-4)


@needs_kenlm
def test_an_export_joins_the_beam_search_of_a_recogniser(
    lm_recipe, train_ngram_script, arguments, new_brain, tmp_path
):
    """--lm_folder alone adds the model to the search or to its results, with the scores of SpeechBrain's
    scorer."""
    train_ngram_script.main(arguments())
    export = tmp_path / "out" / "export"
    tokens = (export / "tokens.txt").read_text().splitlines()
    reference = NgramScorer(KenLMScorer(str(export / "ngram.arpa"), 20, tokens), 1.0, True)
    states = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    for fusion in ("shallow", "rescore"):
        beam = f"{{lm_fusion: {fusion}, searcher: {{beam_size: 3}}}}"
        brain, *_ = new_brain(tmp_path / fusion, vocab_size=20, lm_folder=export, beam_search=beam)
        with torch.no_grad():
            found = brain.hparams.beam_search.searcher.search(states, torch.tensor([9, 5]))
        for (best,) in found:
            given = {"bos": 1, "eos": 2, "device": torch.device("cpu")}
            if best.ended or fusion == "rescore":
                expected = float(reference.score_sentences([best.tokens], **given))
                assert best.parts["kenlm"] == pytest.approx(expected, rel=1e-4)
            parts = best.parts
            total = 0.6 * parts["attention"] + 0.4 * parts["ctc"] + 0.3 * parts["kenlm"]
            assert best.score == pytest.approx(total / (len(best.tokens) + 1), rel=1e-4)


def test_what_is_missing_is_named(by_hand, monkeypatch):
    with pytest.raises(
        ValueError, match="has 6 tokens and the recogniser 7; train it with the recogniser's tokenizer"
    ):
        load_language_model(by_hand, weight=0.5, vocab_size=7)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "kenlm", None)
        with pytest.raises(
            ValueError, match=r"ngram.arpa needs the package kenlm; install it: pip install kenlm"
        ):
            load_language_model(by_hand, weight=0.5, vocab_size=6)
    (by_hand / "tokens.txt").unlink()
    with pytest.raises(FileNotFoundError, match="tokens.txt; lm_folder must be the export folder"):
        load_language_model(by_hand, weight=0.5, vocab_size=6)


@needs_kenlm
def test_a_damaged_model_is_one_sentence(by_hand):
    (by_hand / "ngram.arpa").write_text(ARPA[:60])
    with pytest.raises(
        ValueError, match="KenLM cannot read .*ngram.arpa .*run train_ngram.py again"
    ) as raised:
        load_language_model(by_hand, weight=0.5, vocab_size=6)
    assert "\n" not in str(raised.value)
