"""Two runs side by side: the YAMLs' differences, verdicts on real outputs, and refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from hmamba_asr import cli
from hmamba_asr.config.difference import yaml_difference
from hmamba_asr.evaluation.compare import compare, render_comparison
from hmamba_asr.evaluation.finished_run import load_run
from hmamba_asr.evaluation.results import write_results
from hmamba_asr.evaluation.significance import matched_pairs
from hmamba_asr.evaluation.wer import align, read_trn, score_split

OUTPUTS = Path(__file__).parents[1] / "outputs"


@pytest.fixture
def make_run(tmp_path, make_results, make_entry):
    """A run's folder whose greedy search found what the outputs' `search` did."""

    def make(name: str, search: str, hparams: str = "seed: 1\n") -> Path:
        folder = tmp_path / name
        shutil.copytree(OUTPUTS / search, folder / "test" / "test-other" / "greedy")
        score = score_split(*read_trn(OUTPUTS / search))
        entry = make_entry(words=score.wer.tokens, sentences=120, errors=score.wer.errors, audio=None)
        write_results(
            folder / "results.json", make_results(name, {"test-other": {"greedy": entry}}, hparams=hparams)
        )
        return folder

    return make


def test_the_better_run_is_named_whichever_comes_first(make_run):
    worse, better = load_run(make_run("worse", "greedy")), load_run(make_run("better", "beam"))
    (score,) = compare(worse, better)["scores"]
    assert (score["better"], score["verdict"]) == ("b", "B is better")
    assert score["difference"] == pytest.approx(score["wer"][1] - score["wer"][0])
    assert score["interval_95"][0] < score["difference"] < score["interval_95"][1] < 0
    assert score["segments"] == 131  # NIST's count, see test_significance.py
    assert compare(better, worse)["scores"][0]["better"] == "a"


def test_a_run_does_not_differ_from_itself(make_run):
    run = load_run(make_run("one", "beam"))
    found = compare(run, run)
    (score,) = found["scores"]
    assert (score["better"], score["p_bootstrap"], score["p_matched_pairs"]) == (None, 1.0, 1.0)
    assert found["yaml"] == {}
    text = render_comparison(found)
    assert "The YAMLs are alike." in text and "no significant difference" in text


def test_a_chance_difference_is_not_significant(make_run):
    """One of 120 utterances changed."""
    first, second = make_run("first", "beam"), make_run("second", "beam")
    path = second / "test" / "test-other" / "greedy" / "hyp.trn"
    lines = path.read_text().splitlines()
    changed = f"SURELY NOT {lines[0]}"
    path.write_text("\n".join([changed, *lines[1:]]) + "\n")
    aligned = [align(*read_trn(folder / "test" / "test-other" / "greedy")) for folder in (first, second)]
    assert sum(item.errors for item in aligned[1]) == sum(item.errors for item in aligned[0]) + 2
    (score,) = compare(load_run(first), load_run(second))["scores"]
    assert score["difference"] > 0 and score["better"] is None
    assert score["p_matched_pairs"] == matched_pairs(*aligned).p


def test_speeds_compare_on_the_same_hardware_only(make_run, make_entry):
    folders = [make_run(name, "beam") for name in ("one", "two", "three")]
    cpu = {"device": "cpu", "cpu": "EPYC", "cores": 2, "gpu": None}
    for folder, processing, hardware in zip(
        folders, (3.0, 2.0, 2.0), (cpu, cpu, {**cpu, "cores": 4}), strict=True
    ):
        results = json.loads((folder / "results.json").read_text())
        entry = make_entry(
            words=709, sentences=120, errors=188, audio=100.0, processing=processing, hardware=hardware
        )
        results["evaluation"]["test-other"]["greedy"] = entry
        (folder / "results.json").write_text(json.dumps(results))
    one, two, three = map(load_run, folders)
    (score,) = compare(one, two)["scores"]
    assert score["rtf"] == [0.03, 0.02] and score["same_hardware"]
    assert re.search(r"greedy +0\.03 +0\.02$", render_comparison(compare(one, two)), re.MULTILINE)
    assert not compare(one, three)["scores"][0]["same_hardware"]
    assert re.search(
        r"greedy +0\.03 +0\.02 +other hardware or batches", render_comparison(compare(one, three))
    )


def test_without_transcripts_there_is_no_verdict(make_run):
    whole, kept = make_run("whole", "greedy"), make_run("kept", "beam")
    shutil.rmtree(kept / "test")
    (score,) = compare(load_run(whole), load_run(kept))["scores"]
    assert (
        score["better"] is None
        and "cannot be tested: there is no" in score["verdict"]
        and "difference" not in score
    )
    text = render_comparison(compare(load_run(whole), load_run(kept)))
    assert "not tested" in text and "cannot be tested: there is no" in " ".join(text.split())
    table = [line for line in text.splitlines() if "/" not in line]  # a path is as long as it is
    assert max(map(len, table)) <= 120
    results = json.loads((kept / "results.json").read_text())
    results["evaluation"] = {"dev": {}}
    (kept / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="no split and search in common"):
        compare(load_run(whole), load_run(kept))


A = """\
output_folder: results/a/1
data_folder: DIR
encoder: &id001 !new:package.Encoder
  num_layers: 4
  channels: [32, 32]
model: !new:package.Model
  encoder: *id001
log: results/a/1/log.txt
manifest: DIR/train.csv
searches:
- !new:package.Beam
  size: 4
speed:
"""
B = """\
output_folder: results/b/1
data_folder: DIR
encoder: &id001 !new:package.Other
  num_layers: 6
  channels: [32, 64]
  causal: true
model: !new:package.Model
  encoder: *id001
log: results/b/1/log.txt
manifest: DIR/train.csv
searches:
- !new:package.Beam
  size: 10
speed: 1.1
"""


def test_yamls_differ_where_they_say_so():
    assert yaml_difference(A, A) == {}
    assert yaml_difference(A, B) == {
        "encoder": ["!new:package.Encoder", "!new:package.Other"],
        "encoder.num_layers": ["4", "6"],
        "encoder.channels": ["[32, 32]", "[32, 64]"],
        "searches[0].size": ["4", "10"],
        "speed": ["null", "1.1"],
        "encoder.causal": [None, "true"],
    }


def test_the_command_prints_text_and_json(make_run, capsys):
    worse, better = make_run("worse", "greedy", A), make_run("better", "beam", B)
    assert cli.main(["compare", str(worse), str(better)]) == 0
    text = capsys.readouterr().out
    assert "encoder.num_layers: 4 -> 6" in text and "encoder.causal: (none) -> true" in text
    (row,) = [line for line in text.splitlines() if line.startswith("test-other")]
    assert re.match(r"test-other +greedy +50\.92 +26\.52 +-24\.40 \(", row)
    assert re.search(r" < 0\.001 +< 0\.001 +B is better$", row)
    assert cli.main(["compare", str(worse), str(better), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare(load_run(worse), load_run(better))
    assert cli.main(["compare", str(worse), str(worse.parent)]) == 2
    assert "results.json; give the output folder of a run that was evaluated" in capsys.readouterr().err
