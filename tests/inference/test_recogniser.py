"""A run folder transcribes as its evaluation did; tune and efficiency use it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

import hmamba_asr
from hmamba_asr import cli
from hmamba_asr.inference.recogniser import Recogniser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def moved_run(full_run, tmp_path_factory):
    """Copy the run: nothing may depend on where it was trained, or change it."""
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(full_run.folder, folder)
    (folder / "save" / ".partial-CKPT+now").mkdir()  # as of a training that is writing just now
    return folder


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_transcripts_are_those_of_the_evaluation(moved_run, corpus, search, capsys):
    lines = (moved_run / "test" / "test-clean" / search / "hyp.trn").read_text().splitlines()
    expected = {line.split("(")[1].rstrip(")"): line.split("(")[0].strip() for line in lines}
    audio = sorted((corpus / "test-clean").rglob("*.flac"))
    assert cli.main(["transcribe", str(moved_run), *map(str, audio), "--search", search]) == 0
    printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert [printed[str(path)].split() for path in audio] == [expected[path.stem].split() for path in audio]
    assert (moved_run / "save" / ".partial-CKPT+now").is_dir()


def test_words_have_times_inside_the_recording(moved_run, corpus, capsys):
    audio = sorted((corpus / "test-clean").rglob("*.flac"))
    assert cli.main(["transcribe", str(moved_run), *map(str, audio), "--json", "--search", "greedy"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(result["words"] for result in found)
    for result, path in zip(found, audio, strict=True):
        assert " ".join(word["text"] for word in result["words"]) == " ".join(result["text"].split())
        times = [time for word in result["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times) and all(
            0 <= time <= soundfile.info(path).duration + 0.04 for time in times
        )
        assert all(0 < word["confidence"] <= 1 for word in result["words"])


def test_the_speed_of_a_run_is_measured_on_its_test_utterances(moved_run, capsys):
    command = [
        "efficiency",
        str(moved_run),
        "--utterances",
        "3",
        "--batch",
        "2",
        "--passes",
        "1",
        "--device",
        "cpu",
    ]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((moved_run / "efficiency.json").read_text())
    assert (found["split"], list(found["subjects"]), found["protocol"]["utterances"]) == (
        "test-clean",
        ["greedy", "beam"],
        3,
    )
    assert (found["protocol"]["shortest_seconds"], found["protocol"]["longest_seconds"]) == pytest.approx(
        (0.4, 1.2), abs=0.01
    )
    for figures in found["subjects"].values():
        assert figures["same_hypotheses"] == 3 and figures["batched"]["rtf"]["median"] > 0
        assert 0 < figures["first_token_seconds"]["median"] < 5
    assert cli.main([*command, "--split", "test-other", "--search", "greedy"]) == 0
    assert "test-other, " in (text := capsys.readouterr().out) and "beam" not in text
    for wrong, message in (
        (["--split", "gone"], "one of the run's splits: dev-clean"),
        (["--utterances", "0"], "nothing to measure"),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_with_lm(moved_run, tmp_path_factory):
    """Return the run as if it had been evaluated with a language model, here a random and sharp one."""
    folder = tmp_path_factory.mktemp("with_lm") / "run"
    shutil.copytree(moved_run, folder)
    (folder / "export").mkdir()
    sizes = {
        "vocab": 16,
        "d_model": 16,
        "nhead": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 0,
        "d_ffn": 32,
    }
    torch.manual_seed(0)
    lm = TransformerLM(**sizes)
    with torch.no_grad():
        lm.output_proj.layers[-1].w.weight.mul_(10)
    torch.save(lm.state_dict(), folder / "export" / "lm.ckpt")
    kind = f"{TransformerLM.__module__}.{TransformerLM.__name__}"
    yaml = "\n".join([f"model: !new:{kind}", *(f"    {name}: {value}" for name, value in sizes.items())])
    (folder / "export" / "lm.yaml").write_text(yaml)
    text = (folder / "hyperparams.yaml").read_text()
    assert text.count("\n  lm_folder:\n") == 1
    (folder / "hyperparams.yaml").write_text(
        text.replace("\n  lm_folder:\n", f"\n  lm_folder: {folder / 'export'}\n")
    )
    return folder


def rewrite(manifest, column, value):
    """Write the same value into a column of every row."""
    with open(manifest, newline="") as stream:
        rows = [{**row, column: value} for row in csv.DictReader(stream)]
    with open(manifest, "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def tuned(capsys, folder, *options, split="test-clean"):
    assert cli.main(["tune", str(folder), "--split", split, "--device", "cpu", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_weights_are_tuned_on_a_split(moved_run, capsys):
    """The YAML's weight gives the errors of the evaluation, and another weight gives others."""
    found = tuned(capsys, moved_run, "--ctc", "0.4", "1.0", "0.4")
    evaluated = json.loads((moved_run / "results.json").read_text())["evaluation"]["test-clean"]["beam"][
        "wer"
    ]
    first, other, again = found["results"]
    assert first["weights"] == {"attention": 0.6, "ctc": 0.4} and other["weights"] == {
        "attention": 0.0,
        "ctc": 1.0,
    }
    assert first == again and first["wer"] == evaluated != other["wer"]
    assert (found["split"], found["search"], found["utterances"], found["precision"]) == (
        "test-clean",
        "beam",
        6,
        "fp32",
    )


def test_every_pair_of_weights_is_a_search_of_its_own(run_with_lm, capsys):
    options = ["--ctc", "0.4", "0.123456", "--lm", "0", "0.3", "5"]
    found = tuned(capsys, run_with_lm, *options, split="dev-clean")["results"]
    expected = [(ctc, lm) for ctc in (0.4, 0.123456) for lm in (0.0, 0.3, 5.0)]
    assert [(entry["weights"]["ctc"], entry["weights"]["transformerlm"]) for entry in found] == expected
    for entry, (ctc, lm) in zip(found, expected, strict=True):
        (alone,) = tuned(capsys, run_with_lm, "--ctc", str(ctc), "--lm", str(lm), split="dev-clean")[
            "results"
        ]
        assert alone == entry
    assert len({json.dumps(entry["wer"]) for entry in found}) > 2
    (ours,) = tuned(capsys, run_with_lm, "--ctc", "0.4", split="dev-clean")["results"]
    assert ours == found[1]  # the YAML's weight of the language model
    assert cli.main(["tune", str(run_with_lm), "--split", "dev-clean", *options, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rates = [entry["wer"]["rate"] for entry in found]
    assert lines[2].split()[:3] == ["attention", "transformerlm", "ctc"]
    for line, (ctc, lm), rate in zip(lines[4:], expected, rates, strict=True):
        assert line.split()[1:4] == [f"{lm:g}", f"{ctc:g}", f"{rate:.2f}"]
        assert line.endswith("  lowest") == (rate == min(rates))


def test_what_cannot_be_tuned_is_refused_before_any_work(
    moved_run, run_with_lm, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(moved_run, folder)
    yaml = folder / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("full_scorers:", "partial_scorers:"))
    rewrite(folder / "manifests" / "dev-clean.csv", "wrd", "")
    monkeypatch.setattr(Recogniser, "encode", None)
    for run, options, message in (
        (moved_run, [], "nothing to tune"),
        (moved_run, ["--ctc", "1.5"], "the CTC's weight is 1.5; it must be from 0 to 1"),
        (moved_run, ["--ctc", "0.3", "nan"], "the CTC's weight is nan"),
        (
            moved_run,
            ["--ctc", "0.4", "--lm", "0.3"],
            "no language model to be given the weight 0.3; evaluate the run with --lm_folder",
        ),
        (run_with_lm, ["--lm", "0.3", "inf"], "the language model's weight is inf; it must be 0 or more"),
        (run_with_lm, ["--lm", "-0.1"], "the language model's weight is -0.1"),
        (folder, ["--ctc", "0.4", "1.0"], "have it among the full scorers"),
        (folder, ["--ctc", "0.4"], "the references hold no words"),
        (moved_run, ["--ctc", "0.3", "--search", "greedy"], "the search greedy is no JointBeamSearcher"),
        (moved_run, ["--ctc", "0.3", "--split", "gone"], "give one of the run's splits: dev-clean"),
        (moved_run, ["--ctc", "0.3", "--split", "train"], "train is a training split of this run"),
        (moved_run, ["--ctc", "0.3", "--device", "bogus"], "the device 'bogus' cannot be used here"),
        (tmp_path, ["--ctc", "0.3"], "holds no hyperparams.yaml"),
    ):
        assert cli.main(["tune", str(run), "--split", "dev-clean", "--device", "cpu", *options]) == 2
        assert message in capsys.readouterr().err


def test_a_recording_that_is_none_any_more_is_named(moved_run, tmp_path, capsys):
    folder, text = tmp_path / "run", tmp_path / "text.flac"
    shutil.copytree(moved_run, folder)
    text.write_text("no sound")
    rewrite(folder / "manifests" / "dev-clean.csv", "wav", text)
    assert cli.main(["tune", str(folder), "--split", "dev-clean", "--ctc", "0.4", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "text.flac cannot be read as audio" in error and "Traceback" not in error


def test_a_greedy_recogniser_neither_builds_nor_fetches_the_language_model(
    moved_run, corpus, tmp_path, monkeypatch
):
    """The YAML's language model lies where nothing is, as without a network."""
    folder = tmp_path / "run"
    shutil.copytree(moved_run, folder)
    (model,) = (folder / "tokenizer").glob("*.model")
    model.rename(folder / "tokenizer.ckpt")
    text = (folder / "hyperparams.yaml").read_text()
    assert text.count("\n  lm_folder:\n") == 1
    text = text.replace("\n  lm_folder:\n", "\n  lm_folder:\n  lm: !ref <lm>\n")
    text += f"""
lm: !new:{TransformerLM.__module__}.TransformerLM
    vocab: 16
    d_model: 16
    nhead: 2
    num_encoder_layers: 1
    num_decoder_layers: 0
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    collect_in: {tmp_path / "gone" / "pretrained"}
    loadables:
        lm: !ref <lm>
        tokenizer: !ref <tokenizer>
    paths:
        lm: {tmp_path / "nowhere" / "lm.ckpt"}
        tokenizer: {folder / "tokenizer.ckpt"}
"""
    (folder / "hyperparams.yaml").write_text(text)
    with pytest.raises(OSError, match="the pretrained files .*lm.ckpt.* cannot be fetched"):
        Recogniser(folder, search="beam")
    monkeypatch.setattr(TransformerLM, "__init__", None)
    recogniser = Recogniser(folder, search="greedy")
    audio = next((corpus / "test-clean").rglob("*.flac"))
    assert recogniser.transcribe(audio) == Recogniser(moved_run, search="greedy").transcribe(audio)
    assert not (tmp_path / "gone").exists(), "files are collected in the run folder, wherever it is now"


def test_load_gives_a_recogniser(moved_run, corpus):
    recogniser = hmamba_asr.load(moved_run, search="greedy")
    assert isinstance(recogniser, hmamba_asr.Recogniser) and recogniser.search_name == "greedy"
    assert recogniser.settings["test_splits"] == ["test-clean", "test-other"]
    assert hmamba_asr.load(moved_run).search_name == "beam"


@pytest.mark.parametrize("module", ["hmamba_asr.inference", "hmamba_asr.inference.recogniser"])
def test_inference_loads_nothing_of_training(module):
    unwanted = ("hmamba_asr.training", "hmamba_asr.evaluation", "tensorboard", "torch.utils.tensorboard")
    code = f"import sys, {module}; print([name for name in sys.modules if name.startswith({unwanted})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wrong_input_is_one_sentence(moved_run, corpus, tmp_path, capsys):
    audio = next((corpus / "test-clean").rglob("*.flac"))
    stereo, text = tmp_path / "stereo.wav", tmp_path / "text.wav"
    soundfile.write(stereo, [[0.0, 0.0]] * 100, 8000)
    text.write_text("no sound")
    recogniser = Recogniser(moved_run)
    with pytest.raises(ValueError, match="has 8000 Hz and 2 channel"):
        recogniser.transcribe(stereo)
    with pytest.raises(ValueError, match="text.wav cannot be read as audio"):
        recogniser.transcribe(text)
    with pytest.raises(ValueError, match="has no search 'other'; it has greedy, beam"):
        Recogniser(moved_run, search="other")
    assert cli.main(["transcribe", str(tmp_path), str(audio)]) == 2
    assert "holds no hyperparams.yaml" in capsys.readouterr().err
    (tmp_path / "hyperparams.yaml").write_text((moved_run / "hyperparams.yaml").read_text())
    assert cli.main(["transcribe", str(tmp_path), str(audio)]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
