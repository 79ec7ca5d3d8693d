"""Totals and the journal, across interruptions."""

from __future__ import annotations

import json
import logging
import math
import sys

import pytest

from hmamba_asr.training.checkpoints import AtomicCheckpointer
from hmamba_asr.training.journal import TrainingJournal, TrainingTotals


def test_totals_sum_and_average():
    totals = TrainingTotals()
    assert math.isnan(totals.epoch_mean("loss"))
    totals.add(utterances=3, loss=6.0)
    totals.add(utterances=1, loss=4.0, skipped=2)
    assert totals.epoch_mean("loss") == 2.5
    assert totals.run == totals.epoch == {"utterances": 4, "loss": 10.0, "skipped": 2}


@pytest.mark.parametrize("end_of_epoch", [True, False])
def test_totals_saved_and_loaded(tmp_path, end_of_epoch):
    totals = TrainingTotals()
    totals.add(utterances=3, loss=0.1 + 0.2)
    totals.epoch.clear()
    totals.add(utterances=2, loss=1.5)
    AtomicCheckpointer(tmp_path, {"totals": totals}).save_checkpoint(end_of_epoch=end_of_epoch)
    loaded = TrainingTotals()
    AtomicCheckpointer(tmp_path, {"totals": loaded}).recover_if_possible()
    assert loaded.run == totals.run
    assert loaded.epoch == ({} if end_of_epoch else totals.epoch)
    loaded.add(utterances=1, infeasible=1)  # still counters
    assert loaded.run["infeasible"] == 1 and loaded.run["utterances"] == 6


def steps(journal: TrainingJournal) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in journal.path.read_text().splitlines()]
    return [(record["kind"], record["optimizer_step"]) for record in records]


def test_journal_drops_what_will_be_done_again(tmp_path):
    journal = TrainingJournal(tmp_path)
    journal.rewind(0, epochs_done=0)
    for step in (1, 2, 3, 4):
        journal.write("step", epoch=1 + (step > 2), optimizer_step=step, loss=0.5, grad_norm=None)
        if step % 2 == 0:
            journal.write("epoch", epoch=step // 2, optimizer_step=step, loss=0.5)
    whole = journal.path.read_text()
    journal.path.write_text(whole + '{"kind": "step", "epoch": 3, "optim')

    resumed = TrainingJournal(tmp_path)
    resumed.rewind(3, epochs_done=1)
    assert steps(resumed) == [("step", 1), ("step", 2), ("epoch", 2), ("step", 3)]
    resumed.write("step", epoch=2, optimizer_step=4, loss=0.25)
    assert steps(resumed)[-2:] == [("step", 3), ("step", 4)]
    assert json.loads(resumed.path.read_text().splitlines()[-1])["loss"] == 0.25


def test_journal_of_a_run_killed_in_validation(tmp_path):
    """All steps of epoch 2 are saved but not its end. Without rewinding, the record of its end would come
    twice."""
    journal = TrainingJournal(tmp_path)
    journal.rewind(0, epochs_done=0)
    journal.write("epoch", epoch=1, optimizer_step=2, loss=0.5)
    journal.write("step", epoch=2, optimizer_step=4, loss=0.5)
    journal.write("epoch", epoch=2, optimizer_step=4, loss=0.5)
    journal.rewind(4, epochs_done=1)
    assert steps(journal) == [("epoch", 2), ("step", 4)]


def test_journal_starts_anew_without_a_checkpoint(tmp_path):
    journal = TrainingJournal(tmp_path / "new")
    journal.rewind(0, epochs_done=0)
    journal.write("step", epoch=1, optimizer_step=1, loss=1.0)
    journal.rewind(0, epochs_done=0)
    assert journal.path.read_text() == ""
    assert list((tmp_path / "new" / "tensorboard").iterdir())


def test_without_tensorboard_there_are_still_json_lines(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    journal = TrainingJournal(tmp_path)
    with caplog.at_level(logging.INFO):
        journal.rewind(0, epochs_done=0)
        journal.write("step", epoch=1, optimizer_step=1, loss=1.0)
    assert steps(journal) == [("step", 1)] and not (tmp_path / "tensorboard").exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"TensorBoard is not installed: the training log goes to {journal.path} alone."
    ]
