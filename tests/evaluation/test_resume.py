"""A killed evaluation goes on where it stopped, and reuses cached batches only if nothing has changed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from hmamba_asr.decoding.search import Search
from hmamba_asr.evaluation import run as evaluation
from hmamba_asr.evaluation.resume import BatchCache, CachedBatch, CacheKeys
from hmamba_asr.evaluation.run import evaluate
from hmamba_asr.evaluation.segmentation import Segmentation
from hmamba_asr.evaluation.wer import read_trn
from hmamba_asr.system.ranks import Ranks

SMALL_BATCHES = {"eval_loader": "{max_batch_size: 2}"}  # three a split
SPLITS, SEARCHES = ("test-clean", "test-other"), ("greedy", "beam")


def batch_of(*names, seconds=1.5):
    chunks = [Segmentation(name, 9, 0.1, 0.04, ((0, 3, 7), (0, 2))) for name in names]
    times = {"read": 0.25, "decoding": 1 / 3}
    return CachedBatch(
        {name: f"SAID {name}" for name in names},
        seconds,
        0.75,
        times,
        {"stage0_rate_min": float("inf")},
        chunks,
    )


# ---- the file ----------------------------------------------------------------------------------------------


def test_batches_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "decoded.jsonl"
    first = BatchCache(path, "same")
    assert first.batches == []
    for names in (("a", "b"), ("c",)):
        first.append(batch_of(*names))
    again = BatchCache(path, "same")
    assert again.batches == first.batches == [batch_of("a", "b"), batch_of("c")]
    assert BatchCache(path, "other").batches == []
    assert BatchCache(path, "same").batches == []  # the other run began the file anew


@pytest.mark.parametrize(
    "end", [b'{"texts": {"d', b'{"texts": {"d": "X"}}', b'{"texts": {"d": "X"}}\n', b"\0" * 40, b"\n"]
)
def test_what_a_kill_left_half_written_is_cut_off(tmp_path, end):
    path = tmp_path / "decoded.jsonl"
    BatchCache(path, "same").append(batch_of("a"))
    with path.open("ab") as file:
        file.write(end)
    again = BatchCache(path, "same")
    assert again.batches == [batch_of("a")]
    again.append(batch_of("b"))
    assert BatchCache(path, "same").batches == [batch_of("a"), batch_of("b")]


def test_a_header_that_was_being_written_is_no_header(tmp_path):
    path = tmp_path / "decoded.jsonl"
    for beginning in (b"", b'{"k'):
        path.write_bytes(beginning)
        assert BatchCache(path, "same").batches == []
        assert json.loads(path.read_text()) == {"key": "same"}


# ---- the key -----------------------------------------------------------------------------------------------


def test_whatever_results_depend_on_is_in_the_key(new_brain, tmp_path):
    brain, _, _, tests = new_brain()
    folder = tmp_path / "lm"
    folder.mkdir()
    (folder / "ngram.bin").write_bytes(b"first")
    dataset, search = tests["test-clean"], brain.hparams.test_searches["beam"]
    search.lm_folder = folder

    def key(dataset=dataset, name="beam", search=search, **changed):
        given = {
            "checkpoints": ["CKPT+1"],
            "modules": [brain.modules.features, brain.raw_model],
            "tokenizer": brain.tokenizer,
            "hparams_text": "seed: 1",
            "precision": "fp32",
            "device": torch.device("cpu"),
            "ranks": Ranks(),
            **changed,
        }
        return CacheKeys(**given).key_of(dataset, name, search)

    seen = [key()]
    assert key() == seen[0]
    brain.modules["model"] = torch.nn.DataParallel(
        brain.raw_model
    )  # wrapped as training wraps it for several ranks
    assert key() == seen[0]
    seen.append(key(checkpoints=["CKPT+2"]))
    seen.append(key(hparams_text="seed: 2"))
    seen.append(key(name="another"))
    another = Search(lm_folder=folder)
    another.lm = torch.nn.Linear(1, 1)
    seen.append(key(search=another))
    seen.append(key(dataset=tests["test-other"]))
    first = dataset.data_ids[0]
    dataset.data[first]["duration"] += 0.5
    seen.append(key())
    with torch.no_grad():
        next(brain.raw_model.parameters()).flatten()[0] += 1e-3
    seen.append(key())
    seen.append(key(precision="bf16"))
    seen.append(key(ranks=Ranks(0, 2)))
    (folder / "ngram.bin").write_bytes(b"another")
    seen.append(key())
    assert len(set(seen)) == len(seen) == 11


# ---- an evaluation -----------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.fixture
def decoded_ids(monkeypatch):
    """Record the utterances of each decoded batch, without warm-ups; the first list holds the number of
    batches after which decoding is interrupted."""
    limit, seen, inner = [None], [], evaluation._decode_batch

    def decode(brain, batch, search, timer):
        found = inner(brain, batch, search, timer)
        if len(batch.id) > 1:
            if limit[0] == len(seen):
                raise Interrupted
            seen.append(list(batch.id))
        return found

    monkeypatch.setattr(evaluation, "_decode_batch", decode)
    return limit, seen


@pytest.fixture
def evaluated(new_brain, tmp_path):
    """Return a function that evaluates a briefly trained model, each time as a new process would."""
    brain, train_set, valid_set, _ = new_brain(number_of_epochs=1, optimizer_step_limit=3, **SMALL_BATCHES)
    brain.fit(brain.hparams.epoch_counter, train_set, valid_set)

    def run(text="the yaml", **overrides):
        brain, _, _, tests = new_brain(number_of_epochs=1, test_only=True, **{**SMALL_BATCHES, **overrides})
        return evaluate(brain.trained_system(name="conmamba_mini", hparams_text=text), tests)

    return run


def kept(folder):
    return {
        path.relative_to(folder / "test").parts[:2]: path
        for path in (folder / "test").glob("*/*/decoded-*.jsonl")
    }


def hypotheses(folder):
    return {
        (split, search): read_trn(folder / "test" / split / search) for split in SPLITS for search in SEARCHES
    }


def test_an_interrupted_evaluation_decodes_the_rest(evaluated, decoded_ids, tmp_path):
    folder, (limit, seen) = tmp_path / "run", decoded_ids
    expected, texts = evaluated(), hypotheses(folder)
    everything = seen[:]
    assert len(everything) == 2 * 2 * 3 and kept(folder) == {}
    assert any(
        text for _, found in texts.values() for text in found.values()
    )  # equal hypotheses say something
    (folder / "results.json").unlink()

    seen.clear()
    limit[0] = 8  # in the second split's first search
    with pytest.raises(Interrupted):
        evaluated()
    assert seen == everything[:8] and not (folder / "results.json").exists()
    pieces = {place: BatchCache(path, key_of(path)).batches for place, path in kept(folder).items()}
    counts = {place: len(batches) for place, batches in pieces.items()}
    assert counts == {("test-clean", "greedy"): 3, ("test-clean", "beam"): 3, ("test-other", "greedy"): 2}

    limit[0] = None
    resumed = evaluated()
    assert seen == everything  # each batch once
    assert kept(folder) == {} and hypotheses(folder) == texts
    for split in SPLITS:
        for search in SEARCHES:
            ours, theirs = (results.evaluation[split][search] for results in (resumed, expected))
            assert ours.wer == theirs.wer and ours.cer == theirs.cer
            efficiency = ours.efficiency
            assert efficiency.audio_seconds == pytest.approx(6 * 0.8, rel=0.01)
            before = pieces.get((split, search), [])
            for phase in ("read", "features", "encoder", "decoding"):
                measured = sum(batch.phase_seconds[phase] for batch in before)
                if len(before) == 3:  # nothing was left: the times are those of the first run
                    assert efficiency.phase_seconds[phase] == pytest.approx(measured)
                else:
                    assert efficiency.phase_seconds[phase] > measured
            assert efficiency.wall_seconds >= efficiency.processing_seconds
    assert resumed.evaluation["test-clean"]["greedy"].efficiency.hardware.device == "cpu"


def key_of(path):
    return json.loads(path.read_text().splitlines()[0])["key"]


def test_what_was_decoded_under_other_circumstances_is_not_used(evaluated, decoded_ids, tmp_path):
    folder, (limit, seen) = tmp_path / "run", decoded_ids
    limit[0] = 4
    with pytest.raises(Interrupted):
        evaluated()
    path = kept(folder)["test-clean", "greedy"]
    before = key_of(path)
    limit[0] = len(seen) + 1
    with pytest.raises(Interrupted):
        evaluated(text="another yaml")
    assert seen[4] == seen[0] and key_of(path) != before  # from the first batch on
    limit[0] = None
    done = len(seen)
    evaluated(text="another yaml")
    assert (
        len(seen) - done == 11
    )  # this yaml's first batch was kept; the other one's in further files are not used


KILLED_WHILE_WRITING = """
import os, signal
from hmamba_asr.evaluation import resume
from hmamba_asr.training.launch import run_script
from train import main

append, count = resume.BatchCache.append, 0


def append_and_die(self, batch):
    global count
    append(self, batch)
    count += 1
    if count == 5 and os.environ["RANK"] == "1":
        with self.path.open("ab") as file:
            file.write(b'{"texts": {"13-1')
        os.kill(os.getpid(), signal.SIGKILL)


resume.BatchCache.append = append_and_die
run_script(main)
"""


@pytest.mark.slow
def test_kill_9_of_one_rank_then_the_same_command(recipe, full_run, tmp_path, monkeypatch):
    """Each of two processes has two batches of each split and search. The results equal those of one
    process."""
    folder = tmp_path / "run"
    shutil.copytree(full_run.folder, folder)
    shutil.rmtree(folder / "test")
    argv = recipe.arguments(folder, test_only=True, **SMALL_BATCHES)
    script = tmp_path / "killed.py"
    script.write_text(KILLED_WHILE_WRITING)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "script", script, raising=False)
        killed = recipe.torchrun(argv, folder, processes=2)
    assert killed.code != 0
    left = (folder / "test" / "test-other" / "greedy" / "decoded-1.jsonl").read_bytes()
    assert left.endswith(b'{"texts": {"13-1')

    resumed = recipe.torchrun(argv, folder, processes=2)
    assert resumed.code == 0, resumed.errors
    assert "test-clean, greedy: 2 of 2 batches were decoded before." in resumed.output
    assert kept(folder) == {}
    assert hypotheses(folder) == hypotheses(full_run.folder)
    for split in SPLITS:
        for search in SEARCHES:
            ours, theirs = (run.results["evaluation"][split][search] for run in (resumed, full_run))
            assert ours["wer"] == theirs["wer"] and ours["efficiency"]["processes"] == 2
            assert ours["efficiency"]["audio_seconds"] == pytest.approx(theirs["efficiency"]["audio_seconds"])


def test_new_checkpoints_are_decoded_anew(evaluated, new_brain, decoded_ids, tmp_path):
    limit, seen = decoded_ids
    limit[0] = 4
    with pytest.raises(Interrupted):
        evaluated()
    brain, train_set, valid_set, _ = new_brain(number_of_epochs=2, **SMALL_BATCHES)
    before = brain.load_best()
    brain.fit(brain.hparams.epoch_counter, train_set, valid_set)
    limit[0] = None
    results = evaluated()
    assert results.checkpoints != before and len(seen) == 4 + 12
