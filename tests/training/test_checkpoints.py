"""A checkpoint exists completely or not at all, and the right checkpoints are kept."""

from __future__ import annotations

import errno
import logging
import shutil

import pytest
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG

from hmamba_asr.training.checkpoints import PARTIAL_PREFIX, AtomicCheckpointer


def new_checkpointer(folder, *, units: int = 3) -> AtomicCheckpointer:
    return AtomicCheckpointer(
        folder, {"first": torch.nn.Linear(units, 2), "second": torch.nn.Linear(units, 2)}
    )


def weight(checkpointer: AtomicCheckpointer) -> float:
    return checkpointer.recoverables["first"].weight.mean().item()


def fill(checkpointer: AtomicCheckpointer, value: float) -> None:
    for module in checkpointer.recoverables.values():
        torch.nn.init.constant_(module.weight, value)


def folders(checkpointer: AtomicCheckpointer) -> list[str]:
    return sorted(path.name for path in checkpointer.checkpoints_dir.iterdir())


def fail_on_second_file(monkeypatch, error: BaseException) -> None:
    save, calls = torch.save, []

    def save_once(state, path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise error
        return save(state, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save_once)


def test_saved_and_loaded(tmp_path):
    checkpointer = new_checkpointer(tmp_path)
    fill(checkpointer, 4.0)
    saved = checkpointer.save_checkpoint(meta={"epoch": 1})
    assert folders(checkpointer) == [saved.path.name] and saved.path.name.startswith("CKPT+")
    assert all(path.is_file() for path in saved.paramfiles.values()) and set(saved.paramfiles) == {
        "first",
        "second",
    }
    fill(checkpointer, 0.0)
    assert checkpointer.recover_if_possible().meta["epoch"] == 1
    assert weight(checkpointer) == 4.0


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package may catch it."""


def test_killed_between_two_files(tmp_path, monkeypatch):
    checkpointer = new_checkpointer(tmp_path)
    fill(checkpointer, 1.0)
    good = checkpointer.save_checkpoint()
    fill(checkpointer, 2.0)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        fail_on_second_file(patched, Killed())
        checkpointer.save_checkpoint()
    assert any(name.startswith(PARTIAL_PREFIX) for name in folders(checkpointer)), (
        "the kill left nothing behind"
    )
    assert [c.path for c in checkpointer.list_checkpoints()] == [good.path]

    restarted = new_checkpointer(tmp_path)
    assert folders(restarted) == [good.path.name]
    restarted.recover_if_possible()
    assert weight(restarted) == 1.0


def test_killed_while_deleting(tmp_path, monkeypatch):
    checkpointer = new_checkpointer(tmp_path)
    checkpointer.save_within_epoch()

    def half(path, *args, **kwargs):
        next(path.glob("*.ckpt")).unlink()
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", half)
        checkpointer.save_within_epoch()
    assert len(checkpointer.list_checkpoints()) == 1  # the new one; the other no longer counts
    restarted = new_checkpointer(tmp_path)
    assert len(folders(restarted)) == 1
    assert restarted.recover_if_possible() is not None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed\nwriting file data/0"),
    ],
)
def test_disk_full(tmp_path, monkeypatch, error):
    checkpointer = new_checkpointer(tmp_path)
    good = checkpointer.save_checkpoint()
    fail_on_second_file(monkeypatch, error)
    with pytest.raises(OSError, match="earlier checkpoints are intact: free disk space") as raised:
        checkpointer.save_checkpoint()
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
    assert folders(checkpointer) == [good.path.name]


def test_disk_full_at_the_flush(tmp_path, monkeypatch):
    """File systems that allocate late say so only now."""
    checkpointer = new_checkpointer(tmp_path)
    good = checkpointer.save_checkpoint()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="free disk space"):
        checkpointer.save_checkpoint()
    assert folders(checkpointer) == [good.path.name]


def test_changed_model(tmp_path):
    new_checkpointer(tmp_path).save_checkpoint()
    changed = new_checkpointer(tmp_path, units=5)
    with pytest.raises(
        ValueError, match="does not fit the model that the YAML describes.*output_folder"
    ) as raised:
        changed.recover_if_possible()
    assert "\n" not in str(raised.value)


def test_keep_only_the_best_and_the_newest(tmp_path):
    checkpointer = new_checkpointer(tmp_path)
    for epoch, wer in enumerate([50.0, 20.0, None, 30.0, 40.0, 60.0]):
        checkpointer.save_checkpoint(meta={"epoch": epoch} | ({} if wer is None else {"WER": wer}))
        checkpointer.keep_only(num_to_keep=2, min_key="WER")
    assert sorted(c.meta["epoch"] for c in checkpointer.list_checkpoints()) == [1, 3, 5]
    best = checkpointer.find_checkpoints(min_key="WER", max_num_checkpoints=2)
    assert [c.meta["WER"] for c in best] == [20.0, 30.0]
    checkpointer.save_checkpoint(meta={"epoch": 6})
    checkpointer.keep_only(num_to_keep=2, min_key="WER")
    assert sorted(c.meta["epoch"] for c in checkpointer.list_checkpoints()) == [1, 3, 6]


def test_only_the_latest_within_an_epoch(tmp_path, caplog):
    checkpointer = new_checkpointer(tmp_path)
    end = checkpointer.save_checkpoint(meta={"WER": 90.0})
    with caplog.at_level(logging.INFO):
        for value in (1.0, 2.0):
            fill(checkpointer, value)
            checkpointer.save_within_epoch()
    within = [c for c in checkpointer.list_checkpoints() if INTRA_EPOCH_CKPT_FLAG in c.meta]
    assert len(within) == 1 and not within[0].meta["end-of-epoch"]
    assert end.path in [c.path for c in checkpointer.list_checkpoints()]
    assert PARTIAL_PREFIX not in caplog.text
    fill(checkpointer, 0.0)
    checkpointer.recover_if_possible()
    assert weight(checkpointer) == 2.0
