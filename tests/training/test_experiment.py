"""From the command line to results.json: errors in one sentence, and what a good run leaves behind."""

from __future__ import annotations

import json

import pytest
import torch
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch

from hmamba_asr.evaluation.results import load_results

# ---- errors a user can make -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"sed": 7}, r"--sed is no key of .*conmamba_mini.yaml; did you mean --seed\?"),
        ({"nonfinte": "skip"}, r"did you mean --nonfinite\?"),
        ({"zzzzzzzz": 1}, "its keys are: name, seed, data_folder"),
        ({"d_model": "[1"}, "is not YAML"),
        ({"seed": "{a: 1}"}, "has a plain value there"),
        ({"seed": "lucky"}, "seed is lucky; give a whole number"),
        ({"encoder": "{num_layer: 1}"}, "cannot be built: .*num_layer"),
        ({"data_folder": "not_there"}, "data_folder 'not_there' is not a folder; give --data_folder DIR"),
        ({"data_folder": ""}, "data_folder '' is not a folder"),
        (
            {"train_splits": "[train, train-other]"},
            "missing in data_folder .*: train-other .*Folders there: dev-clean,",
        ),
        (
            {"vocab_size": 5000},
            r"cannot be made from these 24 transcripts: the largest vocab_size that works is \d+",
        ),
        ({"test_only": True}, "there is no checkpoint in .*; train first"),
        ({"nonfinite": "explode"}, "nonfinite is 'explode'; choose one of stop, skip"),
        (
            {"train_loader": "{max_batch_seconds: 1}"},
            "the longest training utterance lasts 1.2 s and max_batch_seconds is 1",
        ),
    ],
)
def test_one_sentence(train_script, recipe, tmp_path, overrides, sentence):
    with pytest.raises((ValueError, OSError), match=sentence) as raised:
        train_script.main(recipe.arguments(tmp_path / "run", **overrides))
    assert "\n" not in str(raised.value).strip()


def test_an_option_given_twice(train_script, recipe, tmp_path):
    argv = [
        *recipe.arguments(tmp_path / "run"),
        "--train_loader",
        "{max_batch_seconds: 9}",
        "--train_loader",
        "{shuffle: false}",
    ]
    with pytest.raises(
        ValueError, match="^--train_loader is given more than once; write it once, with all its parts.$"
    ):
        train_script.main(argv)


def test_missing_yaml(train_script):
    with pytest.raises(
        FileNotFoundError, match="there is no YAML no/such.yaml; the repository's own are in hparams/"
    ):
        train_script.main(["no/such.yaml"])


def test_data_folder_not_given(train_script, repo, tmp_path):
    with pytest.raises(ValueError, match="data_folder") as raised:
        train_script.main(
            [str(repo / "hparams" / "conmamba_demo.yaml"), "--output_folder", str(tmp_path / "run")]
        )
    assert "\n" not in str(raised.value)


def test_word_that_is_no_option(train_script, recipe, tmp_path):
    yaml, *options = recipe.arguments(tmp_path)
    for words, sentence in (
        ([yaml, "seven"], "'seven' is one word too many: options have the form --key value"),
        (
            [yaml, "--noprogressbar", "true", *options],
            "'true' is one word too many: --noprogressbar is a switch",
        ),
        (
            [yaml, *options, "--train_splits", "[a,", "b]"],
            "'b]' is one word too many: .*quote a value that holds spaces",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            train_script.main(words)
    with pytest.raises(
        ValueError, match="did you mean --seed"
    ):  # SpeechBrain's run options may come before the YAML
        train_script.main(["--noprogressbar", "--device", "cpu", yaml, "--sed", "7"])


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"sed": 7}, {"test_only": True}])
def test_on_the_screen(recipe, tmp_path, overrides):
    """Before and after the log of the output folder exists: exit code 2, one line, no traceback."""
    folder = tmp_path / "run"
    run = recipe.train(recipe.arguments(folder, **overrides), folder)
    assert run.code == 2
    lines = run.errors.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert "Traceback" not in run.output + run.errors


# ---- overrides --------------------------------------------------------------------------------------------


def test_resolved_yaml_says_what_is_run(train_script, recipe, tmp_path):
    """Also where SpeechBrain takes the override for itself (precision)."""
    argv = recipe.arguments(tmp_path, precision="bf16", grad_accumulation_factor=3, nonfinite="skip")
    experiment = train_script.Experiment(argv)
    for text in (experiment.hparams_text, (tmp_path / "hyperparams.yaml").read_text()):
        for line in (
            "precision: bf16",
            "grad_accumulation_factor: 3",
            "nonfinite: skip",
            "max_batch_seconds: 4 ",
        ):
            assert line in text
    assert experiment.run_opts.precision == experiment.hparams["precision"] == "bf16"


def test_overrides_are_what_changes_the_experiment(train_script, recipe, tmp_path):
    argv = recipe.arguments(tmp_path, precision="bf16", seed=7)
    changed = train_script.Experiment(argv).overrides
    assert changed["frontend"] == "{channels: [4, 4]}" and changed["number_of_epochs"] == "2"
    assert changed["precision"] == '"bf16"'  # SpeechBrain takes it for itself; it is a change all the same
    assert not {"seed", "data_folder", "output_folder", "num_workers"} & changed.keys()


def test_variants_are_in_the_name_and_overrides_come_after_them(train_script, recipe, tmp_path):
    argv = recipe.arguments(
        tmp_path / "run", yaml="conmamba_mini+hmamba+n3", chunker="{window: 50}", num_layers=3
    )
    experiment = train_script.Experiment(argv)
    assert experiment.name == "conmamba_mini+hmamba+n3"
    assert experiment.overrides["chunker"] == "{window: 50}" and "variant" not in experiment.overrides
    chunker = experiment.hparams["encoder"].chunker
    assert (chunker.target_ratio, chunker.window) == (3.0, 50)
    # The saved YAML is complete: it makes the same experiment by itself.
    saved = tmp_path / "run" / "hyperparams.yaml"
    again = train_script.Experiment([str(saved)])
    assert (
        again.hparams_text == experiment.hparams_text == saved.read_text() and again.name == experiment.name
    )
    assert "# frames that get their share of the chunks" in saved.read_text()


def test_several_variants_follow_one_option_or_several(train_script, recipe, repo, tmp_path):
    base, *rest = recipe.arguments(tmp_path / "run", num_layers=3)
    variants = [str(repo / "hparams" / "variants" / f"{name}.yaml") for name in ("hmamba", "n3")]
    texts = set()
    for words in (
        ["--variant", *variants],
        ["--variant", variants[0], "--variant", variants[1]],
        [f"--variant={variants[0]}", f"--variant={variants[1]}"],
    ):
        texts.add(train_script.Experiment([base, *words, *rest]).hparams_text)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--variant"], "--variant names no YAML; give one or several"),
        (["--variant", "gone.yaml"], "there is no YAML gone.yaml"),
        (
            ["--variants", "gone.yaml"],
            r"--variants is no key of .*conmamba_mini.yaml; did you mean --variant\?",
        ),
    ],
)
def test_a_variant_that_is_not_there(train_script, recipe, tmp_path, words, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        train_script.main([*recipe.arguments(tmp_path), *words])


def test_initial_weights_are_a_function_of_the_seed(train_script, recipe, tmp_path):
    def weights(seed):
        torch.rand(3)  # whatever was drawn before must not matter
        hparams = train_script.Experiment(recipe.arguments(tmp_path / str(seed), seed=seed)).hparams
        return torch.cat([p.flatten() for p in hparams["model"].parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# ---- one training step ------------------------------------------------------------------------------------


def test_accumulated_unequal_batches_equal_one_large(new_brain, tmp_path):
    def step(name, sizes):
        brain, train_set, _, _ = new_brain(
            tmp_path / name, randomness=False, grad_accumulation_factor=len(sizes)
        )
        brain.make_dataloader(train_set, Stage.TRAIN)
        brain.on_fit_start()
        brain.on_stage_start(Stage.TRAIN, 1)
        brain.modules.train()
        gradients = []
        model = brain.raw_model
        brain.optimizer.step = lambda: gradients.extend(
            p.grad.clone() for p in model.parameters() if p.grad is not None
        )
        utterances = iter(range(0, 24, 3))
        for brain.step, size in enumerate(sizes, start=1):
            brain.fit_batch(PaddedBatch([train_set[next(utterances)] for _ in range(size)]))
        record = json.loads((tmp_path / name / "train_log.jsonl").read_text())
        assert brain.optimizer_step == 1
        return gradients, record

    gradients, record = step("large", [6])
    accumulated, accumulated_record = step("accumulated", [1, 3, 2])
    assert len(gradients) > 20
    for one, other in zip(gradients, accumulated, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
    for key in ("loss", "loss_ctc", "loss_attention", "grad_norm"):
        assert accumulated_record[key] == pytest.approx(record[key], rel=1e-4), key


def test_optimizer_step_limit(new_brain, tmp_path):
    """The limit ends training; the same command again trains nothing and counts no epoch."""
    for _ in range(2):
        brain, train_set, valid_set, _ = new_brain(number_of_epochs=3, optimizer_step_limit=4)
        brain.fit(brain.hparams.epoch_counter, train_set, valid_set)
        assert brain.optimizer_step == 4
        assert brain.hparams.epoch_counter.current == 1
        records = [
            json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()
        ]
        assert [r["kind"] for r in records] == ["step"] * 4 + ["epoch"]


# ---- what a run leaves ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_and_transcripts(full_run):
    assert len(load_results([full_run.folder / "results.json"])) == 1
    results = full_run.results
    assert results["name"] == "conmamba_mini" and results["seed"] == 1234
    assert results["training"]["epochs"] == 2 and results["training"]["optimizer_steps"] == 24
    assert set(results["evaluation"]) == {"test-clean", "test-other"}
    for number, split in ((12, "test-clean"), (13, "test-other")):
        assert set(results["evaluation"][split]) == {"greedy", "beam"}
        for search, entry in results["evaluation"][split].items():
            assert entry["wer"]["sentences"] == entry["cer"]["sentences"] == 6
            assert entry["wer"]["tokens"] == 12
            assert entry["efficiency"]["audio_seconds"] == pytest.approx(6 * 0.8, rel=0.01)
            assert set(entry["efficiency"]["stage_seconds"]) == {"read", "features", "encoder", "decoding"}
            folder = full_run.folder / "test" / split / search
            for name in ("ref.trn", "hyp.trn"):
                lines = (folder / name).read_text().splitlines()
                assert [line.split()[-1] for line in lines] == [f"({number}-1-{i:04d})" for i in range(6)]
            alignments = (folder / "wer.txt").read_text()
            assert alignments.startswith(f"%WER {entry['wer']['rate']:.2f} ")
            assert alignments.count(f"{number}-1-") == 6
    assert list((full_run.folder / "tensorboard").glob("events.out.tfevents.*"))
    lines = [line.split() for line in full_run.output.splitlines()]
    for split, searches in results["evaluation"].items():
        for search, entry in searches.items():
            (row,) = [line for line in lines if line[:2] == [split, search] and "RTF" not in line]
            assert row[2] == f"{entry['wer']['rate']:.2f}"
    assert "conmamba_mini, seed 1234" in full_run.output
    assert f"Results:      {full_run.folder / 'results.json'}" in full_run.output
    for epoch in full_run.records("epoch"):
        assert epoch["audio_seconds_per_second"] > 0 and epoch["skipped"] == 0
    assert full_run.records()[0]["memory_mib"] > 0


@pytest.mark.slow
def test_averaged_checkpoint_is_the_mean(full_run, new_brain):
    brain, *_ = new_brain(full_run.folder, test_only=True)
    names = brain.load_best()
    assert names == full_run.results["checkpoints"] and len(names) == 2
    members = [torch.load(full_run.folder / "save" / name / "model.ckpt") for name in names]
    for key, value in brain.raw_model.state_dict().items():
        torch.testing.assert_close(value, sum(member[key] for member in members) / 2)
    assert not torch.equal(members[0]["ctc_head.w.weight"], members[1]["ctc_head.w.weight"])


@pytest.mark.slow
def test_test_only_gives_the_same_results(full_run, recipe, train_script):
    """With the command that trained it, and with the YAML that it saved."""
    before = full_run.results
    saved = str(full_run.folder / "hyperparams.yaml")
    for command in (recipe.arguments(full_run.folder, test_only=True), [saved, "--test_only"]):
        assert train_script.main(command) == 0
        after = full_run.results
        for split, searches in before["evaluation"].items():
            for search, entry in searches.items():
                assert after["evaluation"][split][search]["wer"] == entry["wer"]
        assert (after["training"], after["name"]) == (before["training"], before["name"])
    assert train_script.main(recipe.arguments(full_run.folder, test_only=True)) == 0  # as others expect it
