"""What an evaluation says about its batches."""

from __future__ import annotations

from functools import partial

import pytest

from hmamba_asr.data.loaders import eval_loader, ordered_loader
from hmamba_asr.evaluation.results import load_results
from hmamba_asr.evaluation.run import batch_description, evaluate


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (
            partial(eval_loader, max_batch_seconds=200, max_batch_size=16),
            "at most 200 s of audio and 16 utterances",
        ),
        (
            partial(eval_loader, max_batch_seconds=0.5, max_batch_size=1),
            "at most 0.5 s of audio and 1 utterances",
        ),
        (partial(eval_loader, max_batch_size=16), "at most 16 utterances"),
        (partial(ordered_loader, batch_size=8, num_workers=0), 8),
        (eval_loader, "unknown"),
    ],
)
def test_batches_are_described_from_the_loader(loader, text):
    assert batch_description(loader) == text


def test_published_results_describe_their_batches_in_the_same_words(repo):
    """Rows of old and of new runs compare."""
    texts = {
        entry.efficiency.batch
        for results in load_results([repo / "recipes" / "librispeech" / "results"])
        for searches in results.evaluation.values()
        for entry in searches.values()
    }
    made = {
        batch_description(partial(eval_loader, max_batch_seconds=seconds, max_batch_size=size))
        for seconds, size in ((100, 32), (200, 16), (400, 64))
    }
    assert texts <= made


def test_an_override_of_the_loader_is_stated(new_brain, tmp_path):
    brain, train_set, valid_set, _ = new_brain(number_of_epochs=1, optimizer_step_limit=1)
    brain.fit(brain.hparams.epoch_counter, train_set, valid_set)
    changed = {"eval_loader": "{max_batch_size: 3, max_batch_seconds: 2}"}
    brain, _, _, tests = new_brain(number_of_epochs=1, test_only=True, **changed)
    evaluate(brain.trained_system(name="x", hparams_text="seed: 1"), {"test-clean": tests["test-clean"]})
    (results,) = load_results([tmp_path])
    batches = {entry.efficiency.batch for entry in results.evaluation["test-clean"].values()}
    assert batches == {"at most 2 s of audio and 3 utterances"}
    assert results.chunking == [] and results.operations.macs["encoder"] > 0
