"""torchrun with two processes (gloo) gives the numbers of one process."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


def test_two_processes_equal_one_with_accumulation(recipe, train_script, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"randomness": False, "number_of_epochs": 2}
    assert train_script.main(recipe.arguments(one, **options, grad_accumulation_factor=2)) == 0
    single = recipe.look(one)
    double = recipe.torchrun(recipe.arguments(two, **options), two, processes=2)
    assert double.code == 0, double.errors

    steps, expected = double.records(), single.records()
    assert (
        [s["optimizer_step"] for s in steps] == [s["optimizer_step"] for s in expected] == list(range(1, 13))
    )
    for key in ("loss", "loss_ctc", "loss_attention", "grad_norm", "learning_rate"):
        assert [s[key] for s in steps] == pytest.approx([s[key] for s in expected], rel=1e-4), key
    for key in ("loss", "valid_loss", "valid_wer"):
        values = [e[key] for e in double.records("epoch")]
        assert values == pytest.approx([e[key] for e in single.records("epoch")], rel=1e-4), key

    training = double.results["training"]
    assert training["world_size"] == double.results["environment"]["world_size"] == 2
    assert training["audio_seconds"] == pytest.approx(single.results["training"]["audio_seconds"])
    for split in ("test-clean", "test-other"):
        for search, entry in double.results["evaluation"][split].items():
            assert entry["wer"]["sentences"] == 6
            assert entry["efficiency"]["processes"] == 2
            audio_seconds = single.results["evaluation"][split][search]["efficiency"]["audio_seconds"]
            assert entry["efficiency"]["audio_seconds"] == pytest.approx(audio_seconds)
            written = (two / "test" / split / search / "ref.trn").read_text()
            assert written == (one / "test" / split / search / "ref.trn").read_text()  # every utterance once
