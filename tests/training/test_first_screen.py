"""What a training command prints, and what stays in log.txt."""

from __future__ import annotations

import logging
import re
import sys

import pytest
from torch import nn

from hmamba_asr.training.first_screen import (
    data_fact,
    device_fact,
    hours,
    model_fact,
    resume_fact,
    training_fact,
)
from hmamba_asr.training.progress import TrainingProgress

LABELS = ["data", "model", "device", "output", "training"]
NOISE = [  # each of another place of SpeechBrain, and of ours
    "Applied quirks",
    "Beginning experiment!",
    "Run option eval_precision from hparams is used",
    "ASRBrain Model Statistics",
    "DynamicBatchSampler: Generating dynamic batches",
    "Going into epoch 1",
    "Saved the checkpoint",
    "dev-clean: 6 utterances",
]


@pytest.fixture(scope="module")
def redirected(recipe, tmp_path_factory):
    """A run whose stdout and stderr go to files, with progress bars allowed."""
    folder = tmp_path_factory.mktemp("redirected") / "run"
    argv = [word for word in recipe.arguments(folder, num_workers=1) if word != "--noprogressbar"]
    run = recipe.train(argv, folder)
    assert run.code == 0, run.errors
    return run


# ---- a real run -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_five_lines_come_before_the_epochs(redirected):
    lines = redirected.output.splitlines()
    assert [line.split()[0] for line in lines[:7]] == [*LABELS, "epoch", "epoch"]
    assert len({re.match(r"\w+ +", line).end() for line in lines[:5]}) == 1  # the texts stand in a column
    data, model, device, output, training = (line.split(maxsplit=1)[1] for line in lines[:5])
    assert data == "train 0.01 h (24 utterances), validation 0.00 h, test 0.00 h in 2 splits"
    assert re.fullmatch(r"conmamba_mini: \d+ k parameters \(.*encoder \d+ k.*decoder \d+ k.*\)", model)
    assert re.fullmatch(r"CPU, .+, 1 thread; fp32", device)
    assert output == f"{redirected.folder}: log.txt, train_log.jsonl, save/, results.json (at the end)"
    assert training == "2 epochs of 12 batches, at most 4 s of audio in a batch"


@pytest.mark.slow
def test_each_epoch_has_a_line_of_equal_columns(redirected):
    epochs = [line for line in redirected.output.splitlines() if line.startswith("epoch")]
    records = redirected.records("epoch")
    assert len(epochs) == len(records) == 2
    for line, record in zip(epochs, records, strict=True):
        assert line.startswith(f"epoch {record['epoch']}/2   loss {record['loss']:7.3f}   valid loss ")
        assert f"valid WER {record['valid_wer']:6.2f}%" in line
    assert epochs[0].endswith(" s left") and epochs[1].endswith(" audio-s/s")
    assert epochs[0].index("audio-s/s") == epochs[1].index("audio-s/s")


@pytest.mark.slow
def test_the_evaluation_says_what_it_decodes_and_what_it_found(redirected):
    lines = redirected.output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("evaluation"))
    assert lines[start].split(maxsplit=1)[1] == (
        "test-clean, test-other (0.00 h), each with greedy and beam search; average of 2 checkpoints"
    )
    scores = lines[start + 1 : start + 5]
    expected = redirected.results["evaluation"]
    places = [(split, search) for split in expected for search in expected[split]]
    for line, (split, search) in zip(scores, places, strict=True):
        wer = expected[split][search]["wer"]["rate"]
        assert re.match(rf"  {split} +{search} +WER {wer:6.2f}%   CER ", line)
    assert scores[1].endswith(" s left") and re.search(r"done in \d+ s$", scores[3])


@pytest.mark.slow
def test_everything_else_is_in_the_log_alone(redirected):
    for text in NOISE:
        assert text in redirected.log and text not in redirected.output, text
    assert "speechbrain" not in redirected.output
    for line in redirected.output.splitlines()[:7]:
        assert line in redirected.log
    assert "95% interval" in redirected.log


@pytest.mark.slow
def test_where_there_is_no_terminal_there_is_no_progress_bar(redirected):
    assert redirected.errors == ""
    assert "\r" not in redirected.output and "batches, " not in redirected.output.split("epoch 1/2")[1]


@pytest.mark.slow
def test_only_the_main_process_prints(recipe, tmp_path):
    folder = tmp_path / "run"
    argv = recipe.arguments(folder, test_splits="[test-clean]", number_of_epochs=1)
    run = recipe.torchrun(argv, folder, processes=2)
    assert run.code == 0, run.errors
    lines = run.output.splitlines()
    assert [line.split()[0] for line in lines[:7]] == [*LABELS, "epoch", "evaluation"]
    assert re.search(r"2 processes with 1 thread each on CPU, .+; gloo; fp32$", lines[2])
    assert "1 epoch of 6 batches in each process, " in lines[4]


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(recipe, tmp_path):
    folder = tmp_path / "run"
    run = recipe.torchrun(recipe.arguments(folder, sed=7), folder, processes=2)
    assert run.code != 0
    assert run.errors.count("error: --sed is no key of") == 1


# ---- in this process --------------------------------------------------------------------------------------


def test_a_warning_reaches_the_screen(train_script, recipe, tmp_path, capsys):
    train_script.Experiment(recipe.arguments(tmp_path / "run"))
    logging.getLogger("speechbrain.core").warning("The model has no parameters!")
    logging.getLogger("hmamba_asr.training.trainer").warning("Skipped: a batch.")
    logging.getLogger("speechbrain.core").info("Run option")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "warning (speechbrain.core): The model has no parameters!",
        "warning: Skipped: a batch.",
    ]
    assert shown.err == ""


def test_a_terminal_has_bars_that_leave_nothing(train_script, recipe, tmp_path, capsys, monkeypatch):
    argv = [word for word in recipe.arguments(tmp_path / "run") if word != "--noprogressbar"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert train_script.main([*argv, "--optimizer_step_limit", "3"]) == 0
    shown = capsys.readouterr()
    for title in ("checking train", "epoch 1", "validation of epoch 1", "test-other, beam"):
        assert re.search(rf"\r{title} +\d+% \|", shown.err), title
    assert shown.err.rpartition("\r")[2] == ""
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == [*LABELS, "epoch"]
    assert lines[4].endswith("; stops after 3 optimizer steps")


def test_a_run_that_is_done_says_so(train_script, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_script, "evaluate", lambda *args: None)
    argv = recipe.arguments(tmp_path / "run", number_of_epochs=1)
    for _ in range(2):
        assert train_script.main(argv) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("training"))
    assert first.endswith("1 epoch of 12 batches, at most 4 s of audio in a batch")
    assert second == f"{first}; all of it is done"


def test_a_run_that_only_evaluates_names_what_it_writes(train_script, recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="there is no checkpoint"):
        train_script.main(recipe.arguments(folder, test_only=True))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == LABELS[:-1]
    assert shown[3].endswith(f" {folder}: log.txt, results.json (at the end)")


# ---- the texts --------------------------------------------------------------------------------------------


class Recordings:
    def __init__(self, *durations: float):
        self.data = {str(i): {"duration": duration} for i, duration in enumerate(durations)}

    def __len__(self) -> int:
        return len(self.data)


def test_hours_of_data():
    train, valid = Recordings(*[3600.0] * 1234), Recordings(1800.0, 900.0)
    assert hours(train) == "1,234.0 h" and hours(train, valid) == "1,234.8 h" and hours(valid) == "0.75 h"
    assert data_fact(train, valid, {"a": valid}) == (
        "train 1,234.0 h (1,234 utterances), validation 0.75 h, test 0.75 h in 1 split"
    )
    assert data_fact(train, valid, {"a": valid, "b": valid}).endswith(", test 1.50 h in 2 splits")
    assert data_fact(train, valid, {}).endswith(", test none")


def test_parameters_of_a_model():
    model = nn.ModuleDict({"encoder": nn.Linear(4000, 3000), "decoder": nn.Linear(1000, 2000)})
    model["head"] = nn.Linear(100, 50)
    assert model_fact("own", model) == "own: 14.0 M parameters (encoder 12.0 M, decoder 2.00 M)"
    model["encoder"].requires_grad_(False)
    assert model_fact("own", model).endswith("; 2.01 M are trained")
    assert model_fact("tiny", nn.Linear(100, 50)) == "tiny: 5 k parameters"


def test_what_computes():
    cpu = {"gpu": None, "cpu": "AMD EPYC", "torch_threads": 2}
    a6000 = {"gpu": "NVIDIA RTX A6000", "cpu": "AMD EPYC", "torch_threads": 8}
    a100 = {**a6000, "gpu": "NVIDIA A100"}
    assert device_fact([cpu], backend=None, precision="fp32") == "CPU, AMD EPYC, 2 threads; fp32"
    assert device_fact([a6000], backend=None, precision="bf16") == "NVIDIA RTX A6000; bf16"
    assert device_fact([a6000] * 4, backend="nccl", precision="bf16") == (
        "4 processes on 4 x NVIDIA RTX A6000; NCCL; bf16"
    )
    assert device_fact([a6000, a100, a6000], backend="nccl", precision="bf16") == (
        "3 processes on 2 x NVIDIA RTX A6000, 1 x NVIDIA A100; NCCL; bf16"
    )
    assert device_fact([cpu] * 2, backend="gloo", precision="fp32") == (
        "2 processes with 2 threads each on CPU, AMD EPYC; gloo; fp32"
    )


def test_how_much_there_is_to_train():
    alone = {"items": "utterances", "processes": 1, "accumulated": 1, "step_limit": None}
    assert training_fact(epochs=13, batches=96, batch=16, **alone) == (
        "13 epochs of 96 batches, 16 utterances in a batch"
    )
    assert training_fact(epochs=1, batches=1, batch="unknown", **alone) == "1 epoch of 1 batch"
    several = {**alone, "processes": 4, "accumulated": 2, "step_limit": 1000}
    assert training_fact(epochs=70, batches=1700, batch="at most 200 s of audio", **several) == (
        "70 epochs of 1,700 batches in each process, at most 200 s of audio in a batch, "
        "2 batches in an optimizer step; stops after 1,000 optimizer steps"
    )


@pytest.mark.parametrize(
    ("epoch", "batch", "text"),
    [
        (3, 16, "resumes at epoch 4, batch 17"),
        (3, 0, "resumes at epoch 4, batch 1"),
        (3, 96, "resumes at epoch 4, at its validation"),
        (13, 0, "all of it is done"),
    ],
)
def test_where_a_run_goes_on(epoch, batch, text):
    assert resume_fact(epoch=epoch, epochs=13, batch=batch, batches=96) == text


def test_the_time_of_a_resumed_run_counts_from_where_it_began(monkeypatch):
    """Half an epoch took 10 s, from the middle of the third of ten epochs."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = TrainingProgress(2.5, 10, bar=False)
    assert progress.time_left(2.505) == ""
    now[0] += 10
    assert progress.time_left(3.0) == "2 min 20 s left"
    assert progress.time_left(10) == ""
