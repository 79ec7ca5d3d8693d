"""A language model is trained, resumed, spread over processes and exported."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import load_hparams
from hmamba_asr.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def full_run(lm_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm") / "full"
    run = lm_recipe.train(lm_recipe.arguments(folder), folder)
    assert run.code == 0, run.errors
    return run


def test_perplexity_falls_and_is_that_of_the_exported_model(lm_recipe, full_run):
    epochs = [record["valid_loss"] for record in full_run.records("epoch")]
    assert len(full_run.records()) == 20 and full_run.records()[0]["tokens_per_second"] > 0
    assert epochs[1] < epochs[0] < math.log(20)
    result = json.loads((full_run.folder / "perplexity.json").read_text())
    assert f"validation perplexity {result['perplexity']:.2f}" in full_run.output
    assert full_run.errors == ""  # SpeechBrain's deprecated masks cause no warning

    # Sentence by sentence, without padding, with the files as a recogniser would load them.
    tokenizer = load_tokenizer(full_run.folder / "export" / "tokenizer.ckpt")
    lm = TransformerLM(
        20,
        d_model=16,
        nhead=2,
        num_encoder_layers=2,
        num_decoder_layers=0,
        d_ffn=32,
        activation=torch.nn.GELU,
        normalize_before=False,
    ).eval()
    lm.load_state_dict(torch.load(full_run.folder / "export" / "lm.ckpt"))
    total = count = 0
    for line in filter(None, lm_recipe.text.read_text().splitlines()):
        tokens = tokenizer.encode(line)
        with torch.no_grad():
            log_probs = lm(torch.tensor([[1, *tokens]])).log_softmax(-1)[0]
        total -= float(log_probs.gather(1, torch.tensor([*tokens, 2]).unsqueeze(1)).sum())
        count += len(tokens) + 1
    assert result["tokens"] == count and result["perplexity"] == pytest.approx(
        math.exp(total / count), rel=1e-4
    )


@pytest.mark.slow
def test_kill_9_then_the_same_command(lm_recipe, full_run, tmp_path):
    folder = tmp_path / "killed"
    argv = lm_recipe.arguments(folder, ckpt_interval_minutes=0, ckpt_interval_steps=2)
    killed = lm_recipe.interrupt(argv, folder, at_step=5, with_signal=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL and 5 <= killed.records()[-1]["optimizer_step"] < 20
    resumed = lm_recipe.train(argv, folder)
    assert resumed.code == 0 and "Resuming after optimizer step" in resumed.log, resumed.errors
    for kind, key in (("step", "loss"), ("step", "grad_norm"), ("epoch", "valid_loss")):
        expected = [record[key] for record in full_run.records(kind)]
        assert [record[key] for record in resumed.records(kind)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_two_processes_equal_one_with_accumulation(lm_recipe, train_lm_script, tmp_path):
    quiet = {"model": "{d_model: 16, nhead: 2, d_ffn: 32, dropout: 0.0}", "number_of_epochs": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_lm_script.main(lm_recipe.arguments(one, **quiet, grad_accumulation_factor=2)) == 0
    single, double = lm_recipe.look(one), lm_recipe.train(lm_recipe.arguments(two, **quiet), two, processes=2)
    assert double.code == 0, double.errors
    for kind, key in (("step", "loss"), ("step", "grad_norm"), ("epoch", "valid_loss")):
        assert [r[key] for r in double.records(kind)] == pytest.approx(
            [r[key] for r in single.records(kind)], rel=1e-4
        )
    results = [json.loads((folder / "perplexity.json").read_text()) for folder in (one, two)]
    assert results[0]["tokens"] == results[1]["tokens"]
    assert results[0]["perplexity"] == pytest.approx(results[1]["perplexity"], rel=1e-4)


def test_wrong_input_is_one_sentence(lm_recipe, train_lm_script, tmp_path):
    with pytest.raises(ValueError, match="the tokenizer has 20 pieces and vocab_size is 90"):
        train_lm_script.main(lm_recipe.arguments(tmp_path / "a", vocab_size=90))
    with pytest.raises(FileNotFoundError, match="there is no text nowhere.txt"):
        train_lm_script.main(lm_recipe.arguments(tmp_path / "b", train_text="[nowhere.txt]"))


def test_the_full_size_yaml_is_the_published_models_size(lm_recipe, tmp_path):
    path = lm_recipe.script.parents[2] / "hparams" / "lm" / "transformer_lm.yaml"
    given = {"output_folder": str(tmp_path), "tokenizer_file": "x", "train_text": [], "valid_text": []}
    hparams = load_hparams(compose(path), given)
    assert sum(p.numel() for p in hparams["model"].parameters()) == pytest.approx(93.3e6, rel=0.01)


def test_an_export_joins_the_beam_search_of_a_recogniser(full_run, new_brain, tmp_path):
    """--lm_folder alone adds the model that was trained, and refuses one of another vocabulary."""
    brain, *_ = new_brain(tmp_path / "a", vocab_size=20, lm_folder=full_run.folder / "export")
    search = brain.hparams.beam_search
    scorer = search.searcher.scorers[0]
    assert scorer.name == "transformerlm" and scorer.weight == 0.3 and search.lm is scorer.stepper.model
    saved = torch.load(full_run.folder / "export" / "lm.ckpt")
    assert all(torch.equal(value, saved[name]) for name, value in search.lm.state_dict().items())
    states = torch.randn(1, 9, 16)
    with torch.no_grad():
        (found,) = search.searcher.search(states, torch.tensor([9]))
    assert found[0].parts["transformerlm"] < 0
    with pytest.raises(ValueError, match="has 20 tokens and the recogniser 16"):
        new_brain(tmp_path / "b", lm_folder=full_run.folder / "export")
    with pytest.raises(FileNotFoundError, match="lm_folder must be the export folder of train_lm.py"):
        new_brain(tmp_path / "c", lm_folder=tmp_path)
