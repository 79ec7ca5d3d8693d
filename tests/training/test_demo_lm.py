"""The demo's language model, trained by its own YAML, corrects what the sound leaves ambiguous."""

from __future__ import annotations

import csv

import pytest
import torch
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.nnet.linear import Linear
from torch import nn

from hmamba_asr.data.demo.sentences import plan_corpus
from hmamba_asr.data.tokenizer import load_tokenizer, train_tokenizer
from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.beam_search import BeamSearch
from hmamba_asr.evaluation.wer import score_split
from hmamba_asr.models.asr import ASRModel
from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.modules.frontend import ConvSubsampling

VOCAB, BLANK, BOS, EOS = 90, 0, 1, 2  # of the demo's YAMLs
COUNTS = {"train": 600, "dev-clean": 40, "test-clean": 1, "test-other": 1}


@pytest.fixture(scope="module")
def sentences():
    """Sentences of the demo corpus by split. No sentence is in two splits."""
    found = {split: [] for split in COUNTS}
    for speaker, lines in plan_corpus(1234, COUNTS):
        found[speaker.split] += lines
    return found


@pytest.fixture
def demo_lm(sentences, train_lm_script, repo, tmp_path):
    """Train the demo's language model for a few seconds; return its export and the tokenizer."""
    for split in ("train", "dev-clean"):
        with open(tmp_path / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("ID", "wrd"), *enumerate(sentences[split])])
    manifest = tmp_path / "train.csv"
    model = train_tokenizer(manifest=manifest, output_folder=tmp_path, vocab_size=VOCAB, model_type="bpe")
    options = {
        "tokenizer_file": model,
        "train_text": f"[{manifest}]",
        "valid_text": f"[{tmp_path / 'dev-clean.csv'}]",
        "output_folder": tmp_path / "lm",
        "number_of_epochs": 3,
        "avg_checkpoints": 1,
    }
    argv = [str(repo / "hparams" / "lm" / "transformer_lm_demo.yaml"), "--noprogressbar"]
    assert (
        train_lm_script.main(
            argv + [word for name, value in options.items() for word in (f"--{name}", str(value))]
        )
        == 0
    )
    return tmp_path / "lm" / "export", load_tokenizer(model)


def mumbled(tokens, generator):
    """Return CTC posteriors (2 U + 1, vocab) in which one token in three is a little less likely than
    another."""
    logits = torch.full((2 * len(tokens) + 1, VOCAB), -8.0)
    logits[0::2, BLANK] = 0.0
    for place, token in enumerate(tokens):
        logits[2 * place + 1, token] = 0.0
        if torch.rand((), generator=generator) < 1 / 3:
            other = int(torch.randint(3, VOCAB, (), generator=generator))
            logits[2 * place + 1, other] = 0.3
    return logits.log_softmax(-1)


def search_of(fusion, lm_folder, lm_weight):
    """Build a search that scores with the CTC alone. The CTC head is the identity, and the decoder has no
    weight."""
    sizes = {"num_layers": 1, "d_model": 16, "d_ffn": 32, "kernel_size": 3, "dropout": 0.0}
    model = ASRModel(
        frontend=ConvSubsampling(n_mels=20, channels=[4, 4], d_model=16, dropout=0.0),
        encoder=ConMambaEncoder(**sizes, d_state=4),
        ctc_head=Linear(input_size=16, n_neurons=VOCAB),
        output_head=Linear(input_size=16, n_neurons=VOCAB),
        d_model=16,
        num_decoder_layers=1,
        nhead=2,
        d_ffn=32,
        dropout=0.0,
    ).eval()
    ctc = CTCScorer(ctc_fc=nn.Identity(), blank_index=BLANK, eos_index=EOS)
    searcher = JointBeamSearcher(
        modules=[model, model.output_head],
        bos_index=BOS,
        eos_index=EOS,
        min_decode_ratio=0.0,
        max_decode_ratio=1.0,
        beam_size=16,
        using_eos_threshold=False,
        scorer=ScorerBuilder(full_scorers=[ctc], weights={"ctc": 1.0}),
    )
    return BeamSearch(searcher=searcher, lm_folder=lm_folder, lm_weight=lm_weight, lm_fusion=fusion).searcher


def test_the_demos_language_model_lowers_the_wer(demo_lm, sentences):
    """The sentences are new to it. Fusion resolves most ambiguities; rescoring resolves those whose answer is
    in the n-best list."""
    export, tokenizer = demo_lm
    generator = torch.Generator().manual_seed(0)
    references = {str(i): text for i, text in enumerate(sentences["dev-clean"])}
    heard = [mumbled(tokenizer.encode(text), generator) for text in references.values()]
    states = nn.utils.rnn.pad_sequence(heard, batch_first=True)
    lengths = torch.tensor([len(x) for x in heard])

    def wer(fusion, lm_folder=None, lm_weight=0.0):
        found = search_of(fusion, lm_folder, lm_weight).search(states, lengths)
        texts = {
            i: tokenizer.decode(hypotheses[0].tokens) for i, hypotheses in zip(references, found, strict=True)
        }
        return score_split(references, texts).wer.rate

    without, fused, rescored = wer("shallow"), wer("shallow", export, 0.3), wer("rescore", export, 0.3)
    assert without > 30 and fused < 0.5 * without and fused <= rescored < without
