"""Run folders that version 0.1.0 made work as they did then: tests/old_runs/README.md says what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hmamba_asr import cli
from hmamba_asr.config.difference import yaml_difference
from hmamba_asr.config.moved import current_tag

OLD = Path(__file__).parent / "old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
SHARED = {
    "data_folder": "corpus",
    "train_splits": "[train]",
    "valid_splits": "[dev]",
    "test_splits": "[dev]",
    "precision": "fp32",
    "num_workers": 0,
    "n_mels": 20,
    "d_ffn": 32,
    "dropout": 0.0,
    "vocab_size": 32,
    "frontend": "{channels: [4, 4]}",
    "log_every_steps": 1000,
    "lr_schedule": "{lr_initial: 0.006, n_warmup_steps: 60}",
    "avg_checkpoints": 1,
    "train_loader": "{max_batch_seconds: 2.8, num_buckets: 3}",
    "model": "{num_decoder_layers: 1, nhead: 2, max_target_length: 100}",
}
BLOCKS = "{num_layers: 1, d_state: 4, kernel_size: 7}"
CHUNKED = {"outer": BLOCKS, "inner": BLOCKS}
CONMAMBA = {"d_model": 16, "number_of_epochs": 40, "valid_wer_every": 40}
HNET = {"d_model": 12, "number_of_epochs": 60, "valid_wer_every": 59, "avg_checkpoints": 2, **CHUNKED}
# Old run, today's YAML and variants, and the overrides of the old command.
COMMANDS = [
    (
        "conmamba_demo",
        "conmamba_demo",
        {**CONMAMBA, "encoder": "{num_layers: 2, d_state: 4, kernel_size: 7}"},
    ),
    ("hmamba_demo", "hmamba_demo", {**CONMAMBA, **CHUNKED}),
    ("hmamba_demo", "conmamba_demo+hmamba", {**CONMAMBA, **CHUNKED}),
    (
        "fixedstride_an4",
        "conmamba_an4+fixedstride",
        {"d_model": 12, "number_of_epochs": 70, "valid_wer_every": 70, **CHUNKED},
    ),
    ("hnet_an4", "conmamba_an4+hnet", HNET),
    (
        "conformer_small_ls100",
        "conformer_small_ls100",
        {
            "d_model": 16,
            "number_of_epochs": 80,
            "valid_wer_every": 80,
            "train_loader": "{batch_size: 2}",
            "grad_accumulation_factor": 1,
            "encoder": "{num_layers: 2, nhead: 2, kernel_size: 7}",
            "pretrained_source": "lm/export",
            "lm": "{d_model: 16, nhead: 2, num_encoder_layers: 1, d_ffn: 32, max_length: 100}",
            "beam_search": "{searcher: {beam_size: 4}}",
        },
    ),
    (
        "conmamba_demo_lm",
        "conmamba_demo",
        {
            "d_model": 8,
            "number_of_epochs": 60,
            "valid_wer_every": 60,
            "encoder": BLOCKS,
            "model": "{num_decoder_layers: 1, nhead: 2}",
            "lm_folder": "lm/export",
        },
    ),
]

each_run = pytest.mark.parametrize("name", EXPECTED["runs"])


@pytest.fixture(scope="module")
def shared_copy(tmp_path_factory) -> Path:
    return shutil.copytree(OLD, tmp_path_factory.mktemp("old") / "runs")


@pytest.fixture
def in_shared_copy(shared_copy, monkeypatch):
    """Work in a copy that tests share which leave results alone."""
    monkeypatch.chdir(shared_copy)


@pytest.fixture
def in_own_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(OLD, tmp_path / "old"))


def recordings() -> dict[str, str]:
    return {path.stem: str(path) for path in sorted(Path("corpus").rglob("dev/*/*/*.flac"))}


@each_run
def test_transcribe(name, in_shared_copy, capsys):
    expected, files = EXPECTED["runs"][name], recordings()
    for search, texts in expected["transcribe"].items():
        assert cli.main(["transcribe", f"runs/{name}", *files.values(), "--search", search, "--json"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {key: item["text"] for key, item in zip(files, found, strict=True)} == texts
        spoken = expected["words"][search]
        (said,) = (item for item in found if item["audio"] == spoken["audio"])
        assert [word["text"] for word in said["words"]] == [word["text"] for word in spoken["words"]]
        for word, old in zip(said["words"], spoken["words"], strict=True):
            assert (word["start"], word["end"]) == pytest.approx((old["start"], old["end"]), abs=1e-9)
            assert word["confidence"] == pytest.approx(old["confidence"], rel=1e-3)


@each_run
def test_tune(name, in_shared_copy, capsys):
    for case in EXPECTED["runs"][name]["tune"]:
        command = ["tune", f"runs/{name}", "--split", "dev", "--device", "cpu", "--json", *case["options"]]
        assert cli.main(command) == 0
        found = json.loads(capsys.readouterr().out)
        del found["hardware"]
        assert found == case["found"]


def test_compare(in_shared_copy, capsys):
    case = EXPECTED["compare"]
    assert cli.main(["compare", case["a"], case["b"], "--json"]) == 0
    found, old = json.loads(capsys.readouterr().out), case["found"]
    assert (found["a"], found["b"], found["scores"]) == (old["a"], old["b"], old["scores"])
    # Today a class has its new name, and the CTC head, which both runs have, stands under its own key.
    assert found["yaml"] == {
        key: [current_tag(value) if value else value for value in values]
        for key, values in old["yaml"].items()
        if "ctc_head" not in key
    }


def test_report(in_shared_copy, tmp_path):
    page = tmp_path / "report.html"
    assert cli.main(["report", *(f"runs/{name}" for name in EXPECTED["runs"]), "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert all(
        json.loads(Path(f"runs/{name}/results.json").read_text())["name"] in text for name in EXPECTED["runs"]
    )


def check_results(name: str, before: dict) -> dict:
    """What an old run gives today, after it was shown to be what it gave then."""
    after = json.loads(Path(f"runs/{name}/results.json").read_text(encoding="utf-8"))
    for search, old in EXPECTED["runs"][name]["evaluation"].items():
        entry = after["evaluation"]["dev"][search]
        assert (entry["wer"], entry["cer"]) == (old["wer"], old["cer"])
        assert len(entry["stages"]) == len(old["stages"])
        for stage, stage_before in zip(entry["stages"], old["stages"], strict=True):
            assert {key: stage[key] for key in stage_before} == pytest.approx(stage_before, rel=1e-4)
    assert yaml_difference(before["hparams"], after["hparams"]) == {}
    assert after["training"] == before["training"] and after["seed"] == before["seed"]
    return after


@each_run
def test_test_only_with_the_saved_yaml(name, in_own_copy, train_script):
    before = json.loads(Path(f"runs/{name}/results.json").read_text(encoding="utf-8"))
    assert train_script.main([f"runs/{name}/hyperparams.yaml", "--test_only", "--noprogressbar"]) == 0
    check_results(name, before)
    # What that run saved is a YAML for the next one.
    assert train_script.main([f"runs/{name}/hyperparams.yaml", "--test_only", "--noprogressbar"]) == 0


@pytest.mark.parametrize(("name", "yaml", "overrides"), COMMANDS, ids=[command[1] for command in COMMANDS])
def test_test_only_with_todays_yaml(name, yaml, overrides, in_own_copy, train_script, repo):
    base, *variants = (part for part in yaml.split("+"))
    command = [str(repo / "hparams" / f"{base}.yaml"), "--test_only", "--noprogressbar"]
    if variants:
        command += ["--variant", *(str(repo / "hparams" / "variants" / f"{part}.yaml") for part in variants)]
    for key, value in {"output_folder": f"runs/{name}", **SHARED, **overrides}.items():
        command += [f"--{key}", str(value)]
    before = json.loads(Path(f"runs/{name}/results.json").read_text(encoding="utf-8"))
    assert train_script.main(command) == 0
    after = check_results(name, before)
    assert after["name"] == yaml and after["overrides"] == before["overrides"]
