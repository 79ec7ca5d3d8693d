"""Every YAML of hparams/ and every variant: no key is idle or doubled, the recipe's facts, equal sizes, and
two steps of real training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.utils.run_opts import RunOptions

from hmamba_asr.config.compose import compose, run_name
from hmamba_asr.config.difference import yaml_difference
from hmamba_asr.config.hparams import load_hparams, resolve, top_level_nodes
from hmamba_asr.data.librispeech import prepare_manifests
from hmamba_asr.data.tokenizer import train_tokenizer
from hmamba_asr.evaluation.run import evaluate
from hmamba_asr.training.asr import ASRBrain
from hmamba_asr.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
HPARAMS = ROOT / "hparams"
YAMLS = sorted(HPARAMS.glob("*.yaml"))
FLAT = [path for path in YAMLS if not path.stem.startswith("hmamba")]
VARIANTS = sorted((HPARAMS / "variants").glob("*.yaml"))
CONMAMBA, CONFORMER, HMAMBA = (
    HPARAMS / f"{name}_small_ls100.yaml" for name in ("conmamba", "conformer", "hmamba")
)
VOCABULARY = 30
WORDS = [
    "ALPHA",
    "BRAVO",
    "CHARLIE",
    "DELTA",
    "ECHO",
    "FOXTROT",
    "GOLF",
    "HOTEL",
    "INDIA",
    "JULIET",
    "KILO",
    "LIMA",
]
TINY_LM = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "d_ffn": 16}

each_yaml = pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)


# ---- the text ---------------------------------------------------------------------------------------------


def _top_level_keys(text: str) -> list[str]:
    return re.findall(r"^(\w+):", text, flags=re.MULTILINE)


def _code() -> str:
    files = [*(ROOT / "hmamba_asr").rglob("*.py"), *(ROOT / "recipes").rglob("*.py"), ROOT / "train.py"]
    return "\n".join(p.read_text(encoding="utf-8") for p in files)


def _unused_keys(text: str, code: str) -> list[str]:
    """Top-level keys that no `<key>` of the YAML, no line of code and no run option of SpeechBrain reads."""
    plain = "\n".join(line.split(" #")[0] for line in text.splitlines() if not line.startswith("#"))
    options = RunOptions().as_dict()

    def used(key: str) -> bool:
        return (
            key in options
            or re.search(rf"<{key}[>\[.]", plain) is not None
            or re.search(rf"hparams(?:\.{key}\b|(?:\[|, )[\"']{key}[\"'])", code) is not None
        )

    return [key for key in _top_level_keys(text) if not used(key)]


def _doubled_keys(node: yaml.Node) -> list[str]:
    if isinstance(node, yaml.SequenceNode):
        return [key for child in node.value for key in _doubled_keys(child)]
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value]
    return [k for k in set(keys) if keys.count(k) > 1] + [
        k for _, child in node.value for k in _doubled_keys(child)
    ]


@each_yaml
def test_every_key_is_used_and_given_once(path):
    text, code = path.read_text(encoding="utf-8"), _code()
    assert _unused_keys(text, code) == []
    assert _doubled_keys(yaml.compose(text)) == []
    # A planted one is found: otherwise the lines above prove nothing.
    assert _unused_keys(text + "\nforgotten: 1  # <forgotten>\n", code) == ["forgotten"]
    assert _doubled_keys(yaml.compose(text + "\nseed: 2\n")) == ["seed"]
    assert "dropout" in _doubled_keys(
        yaml.compose(text.replace("    kernel_size:", "    dropout: 0.3\n    kernel_size:", 1))
    )


@each_yaml
def test_no_value_stands_twice(path):
    """Learning rate, blocks, widths: a number that two places share is a key of its own."""
    nodes = top_level_nodes(path.read_text(encoding="utf-8"))
    shared = {"lr", "lr_initial", "num_layers", "kernel_size", "d_state", "scan_backend", "d_model", "d_ffn"}
    stages = [dict(_arguments_of(nodes[key])) for key in ("outer", "inner", "encoder") if key in nodes]
    for arguments in (
        *stages,
        *(dict(_arguments_of(nodes[key])) for key in ("opt_class", "lr_schedule", "model")),
    ):
        for name in shared & arguments.keys():
            assert arguments[name].tag == "!ref", name


def _arguments_of(node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
    return [(key.value, value) for key, value in node.value]


@pytest.mark.parametrize("path", sorted((ROOT / "hparams" / "lm").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_language_model_is_used_and_given_once(path):
    text = path.read_text(encoding="utf-8")
    assert _unused_keys(text, _code()) == []
    assert _doubled_keys(yaml.compose(text)) == []
    assert _default_output_folder(path) == "results/<name>/<seed>"


def test_the_control_differs_in_nothing_but_the_encoder():
    given = {"data_folder": "DIR", "output_folder": "OUT"}
    ours, control = (resolve(compose(path), given) for path in (CONMAMBA, CONFORMER))
    changed = yaml_difference(ours, control)
    assert changed and all(key.split(".")[0] == "encoder" for key in changed)


# ---- the objects ------------------------------------------------------------------------------------------


TINY = {"d_model": 16, "d_ffn": 32, "vocab_size": VOCABULARY, "model": {"num_decoder_layers": 1}}


def _load(path: Path, tmp_path: Path, *variants: str, **overrides) -> dict:
    given = {"data_folder": str(tmp_path), "output_folder": str(tmp_path / "out"), **overrides}
    text = compose(path, [HPARAMS / "variants" / f"{name}.yaml" for name in variants])
    if "lm" in top_level_nodes(text):
        # The language model alone would take a second and a gigabyte.
        given = {"lm": TINY_LM, **given}
    return load_hparams(text, given)


@each_yaml
def test_a_yaml_needs_only_a_data_folder(path, tmp_path):
    with pytest.raises(ValueError, match="data_folder"):
        load_hparams(compose(path), {"output_folder": str(tmp_path / "out")})
    hparams = _load(path, tmp_path)
    assert hparams["test_searches"] and hparams["seed"]
    assert hparams["name"] == path.stem and hparams["lr_schedule"].lr_initial == hparams["lr"]
    assert _default_output_folder(path) == "results/<name>/<seed>"


def _default_output_folder(path: Path) -> str:
    return top_level_nodes(path.read_text(encoding="utf-8"))["output_folder"].value


def _parameters(hparams: dict) -> int:
    return sum(p.numel() for p in hparams["model"].parameters())


def test_the_baseline_is_the_recipe_and_the_control_its_equal(tmp_path):
    ours = _load(CONMAMBA, tmp_path / "a")
    assert abs(_parameters(ours) / 14.1e6 - 1) <= 0.02
    assert abs(_parameters(_load(CONFORMER, tmp_path / "b")) / _parameters(ours) - 1) <= 0.03
    facts = {
        "number_of_epochs": 70,
        "grad_accumulation_factor": 2,
        "precision": "bf16",
        "dropout": 0.15,
        "label_smoothing": 0.1,
        "ctc_weight": 0.3,
        "vocab_size": 5000,
        "d_model": 144,
        "train_splits": ["train-clean-100"],
        "valid_splits": ["dev-clean"],
        "test_splits": ["test-clean", "test-other"],
    }
    assert {key: ours[key] for key in facts} == facts
    assert ours["train_loader"].keywords["batch_size"] == 16
    assert ours["opt_class"].keywords["lr"] == 1e-3 and ours["lr_schedule"].lr_initial == 1e-3
    assert ours["epoch_counter"].limit == 70
    assert len(ours["encoder"].blocks) == 12 and len(ours["model"].decoder.layers) == 4
    searcher = ours["beam_search"].searcher
    assert searcher.beam_size == 66
    assert {scorer.name: scorer.weight for scorer in searcher.scorers} == {"ctc": 0.4, "transformerlm": 0.6}


# ---- variants ---------------------------------------------------------------------------------------------


def _canonical(node: yaml.Node) -> object:
    """Tags and values of a node, whatever its anchors, its style and its comments."""
    if isinstance(node, yaml.ScalarNode):
        return node.tag, node.value
    if isinstance(node, yaml.MappingNode):
        return node.tag, [(key.value, _canonical(value)) for key, value in node.value]
    return node.tag, [_canonical(item) for item in node.value]


@pytest.mark.parametrize("sibling", ["small_ls100", "demo"])
def test_a_complete_hmamba_is_conmamba_with_the_variant(sibling):
    given = {"data_folder": "DIR", "output_folder": "OUT"}
    complete = compose(HPARAMS / f"hmamba_{sibling}.yaml")
    composed = compose(HPARAMS / f"conmamba_{sibling}.yaml", [HPARAMS / "variants" / "hmamba.yaml"])
    ours, theirs = (
        {key: _canonical(node) for key, node in top_level_nodes(resolve(text, given)).items()}
        for text in (complete, composed)
    )
    assert (ours.pop("name")[1], theirs.pop("name")[1]) == (f"hmamba_{sibling}", f"conmamba_{sibling}+hmamba")
    assert ours == theirs
    # Objects are built in this order, which decides what random numbers each gets.
    built = [[key for key, (tag, _) in side.items() if tag.startswith("!new")] for side in (ours, theirs)]
    assert built[0] == built[1]


def test_the_complete_control_is_conmamba_with_the_variant(tmp_path):
    complete, composed = _load(CONFORMER, tmp_path), _load(CONMAMBA, tmp_path, "conformer")
    shapes = [
        [(name, weight.shape) for name, weight in hparams["model"].named_parameters()]
        for hparams in (complete, composed)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("base", ["conmamba_mini", "conmamba_an4", "conmamba_demo"])
def test_the_control_of_a_small_recipe_is_about_its_size(base, tmp_path):
    path = HPARAMS / f"{base}.yaml"
    sizes = [_parameters(_load(path, tmp_path, *names)) for names in ([], ["conformer"])]
    assert abs(sizes[1] / sizes[0] - 1) <= 0.08


@each_yaml
def test_every_variant_composes_with_every_base(path, tmp_path):
    code = _code()
    for variant in VARIANTS:
        if variant.stem == "hmamba" and path not in FLAT:
            with pytest.raises(ValueError, match="changes num_layers of encoder, .*use another base"):
                compose(path, [variant])
            continue
        if variant.stem == "conformer" and not path.stem.startswith("conmamba"):
            with pytest.raises(ValueError, match="drops d_state, .*; use another base"):
                compose(path, [variant])
            continue
        text = compose(path, [variant])
        assert _unused_keys(text, code) == [] and _doubled_keys(yaml.compose(text)) == [], variant
        assert "!base" not in text and "needs" not in top_level_nodes(text)
        hparams = _load(path, tmp_path, variant.stem, **TINY)
        assert hparams["name"] == run_name(path, [variant]) == f"{path.stem}+{variant.stem}"
        stages = {"nested": 2, "conformer": 0}.get(variant.stem, 1)
        assert len(hparams["model"].chunking) == stages


@pytest.mark.parametrize("path", FLAT, ids=lambda path: path.stem)
def test_chunking_changes_nothing_but_the_encoder_and_its_loss(path, tmp_path):
    flat = {key: _canonical(node) for key, node in top_level_nodes(compose(path)).items()}
    plain = _load(path, tmp_path, **TINY)
    blocks = _blocks(plain["encoder"])
    for name in ("hmamba", "fixedstride", "hnet", "n3", "frames"):
        text = compose(path, [HPARAMS / "variants" / f"{name}.yaml"])
        chunked = {key: _canonical(node) for key, node in top_level_nodes(text).items()}
        changed = {key for key in flat if flat[key] != chunked[key]}
        assert changed == {"name", "encoder", "intermediate_ctc_weight"}, name
        added = {"outer_layers", "inner_layers", "outer", "inner", "chunker"}
        assert chunked.keys() - flat.keys() == added | ({"ratio_loss"} if name == "hnet" else set()), name
        # The same blocks, only divided; a router, and on the way back to frames one projection, is all that
        # is added.
        hparams = _load(path, tmp_path, name, **TINY)
        encoder, width = hparams["encoder"], TINY["d_model"]
        assert _blocks(encoder.outer) + _blocks(encoder.inner) == blocks
        residual = width**2 + width if encoder.output == "frames" else 0
        router = 2 * width**2 if name == "hnet" else 0
        norm = _parameters(hparams) - _parameters(plain) - residual - router
        # A Conformer ends in a norm, so that two of them have one more.
        assert norm == (2 * width if path == CONFORMER else 0), name


def _blocks(encoder: torch.nn.Module) -> int:
    return len(encoder.encoder.layers if hasattr(encoder, "encoder") else encoder.blocks)


def test_variants_do_what_they_say(tmp_path):
    mini = HPARAMS / "conmamba_mini.yaml"
    encoders = {
        names: _load(mini, tmp_path, *names.split("+"))["encoder"]
        for names in ("hmamba", "hmamba+n3", "frames", "fixedstride", "ffn", "wide", "nested")
    }
    assert encoders["hmamba"].chunker.target_ratio == 2 and encoders["hmamba+n3"].chunker.target_ratio == 3
    assert encoders["hmamba"].output == "chunks" and encoders["frames"].output == "frames"
    assert encoders["fixedstride"].chunker.stride == 2
    sizes = {names: sum(p.numel() for p in encoder.parameters()) for names, encoder in encoders.items()}
    assert sizes["ffn"] == sizes["hmamba"] == sizes["fixedstride"] < sizes["wide"]
    assert encoders["wide"].widen.out_features == 216
    nested = encoders["nested"].inner
    assert (_blocks(nested.outer), _blocks(nested.inner), nested.chunker.stride) == (2, 2, 1.5)


@pytest.mark.parametrize(
    "overrides",
    [{"encoder": {"output": "frames"}}, {"chunker": {"target_ratio": 3}}, {"outer_layers": 4}],
    ids=["frames", "N=3", "4+8"],
)
def test_a_variant_can_be_overridden(overrides, tmp_path):
    encoder = _load(HPARAMS / "conmamba_mini.yaml", tmp_path, "hmamba", **overrides)["model"].encoder
    outer = overrides.get("outer_layers", 8)
    assert (encoder.output, encoder.chunker.target_ratio, _blocks(encoder.outer), _blocks(encoder.inner)) == (
        overrides.get("encoder", {}).get("output", "chunks"),
        overrides.get("chunker", {}).get("target_ratio", 2.0),
        outer,
        12 - outer,
    )


# ---- two steps --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """24 utterances of tones in LibriSpeech's layout: train 16, dev 4, test 4; 16 kHz, 0.8 to 1.6 s."""
    folder, random = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for split, speaker, count in (("train", 1, 8), ("train", 2, 8), ("dev", 3, 4), ("test", 4, 4)):
        chapter = folder / "LibriSpeech" / split / str(speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for number in range(count):
            name = f"{speaker}-1-{number:04d}"
            seconds = 0.8 + 0.1 * number
            time = np.arange(int(16000 * seconds)) / 16000
            tone = np.sin(2 * np.pi * (200 + 50 * number) * time) + 0.1 * random.standard_normal(len(time))
            soundfile.write(chapter / f"{name}.flac", 0.3 * tone, 16000)
            lines.append(f"{name} {' '.join(random.choice(WORDS, 2))}\n")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory) -> Path:
    """A folder such as SpeechBrain's hub gives: tokenizer.ckpt and lm.ckpt, both tiny."""
    folder = tmp_path_factory.mktemp("pretrained")
    manifests = prepare_manifests(data_folder=corpus, splits=["train"], manifest_folder=folder / "manifests")
    model = train_tokenizer(manifest=manifests["train"], output_folder=folder, vocab_size=VOCABULARY)
    (folder / "tokenizer.ckpt").write_bytes(model.read_bytes())
    lm = TransformerLM(
        VOCABULARY,
        **TINY_LM,
        num_decoder_layers=0,
        dropout=0.0,
        activation=torch.nn.GELU,
        normalize_before=False,
    )
    torch.save(lm.state_dict(), folder / "lm.ckpt")
    return folder


def _command_line(yaml: str, corpus: Path, output: Path, pretrained: Path) -> list[str]:
    """The command line that shrinks any of our YAMLs, "base" or "base+variant", to a second of work and
    changes nothing else."""
    base, *variants = yaml.split("+")
    path, files = HPARAMS / f"{base}.yaml", [HPARAMS / "variants" / f"{name}.yaml" for name in variants]
    nodes = top_level_nodes(compose(path, files))
    dynamic = "max_batch_seconds" in dict(_arguments_of(nodes["train_loader"]))
    overrides = {
        "data_folder": str(corpus),
        "output_folder": str(output),
        "train_splits": ["train"],
        "valid_splits": ["dev"],
        "test_splits": ["test"],
        "vocab_size": VOCABULARY,
        "num_workers": 0,
        "log_every_steps": 1,
        "d_model": 16,
        "d_ffn": 32,
        "frontend": {"channels": [4, 4]},
        "num_layers": 4 if "nested" in variants else 2 if "chunker" in nodes else 1,
        "model": {"num_decoder_layers": 1},
        "beam_search": {"searcher": {"beam_size": 2, "max_decode_ratio": 0.2}},
        "train_loader": {"max_batch_seconds": 8, "num_buckets": 2} if dynamic else {"batch_size": 4},
    }
    if "pretrainer" in nodes:
        overrides |= {"pretrained_source": str(pretrained), "lm": TINY_LM}
    options = [
        word
        for key, value in overrides.items()
        for word in (f"--{key}", json.dumps(value) if value is not None else "null")
    ]
    chosen = ["--variant", *map(str, files)] if files else []
    limits = ["--optimizer_step_limit", "2", "--noprogressbar"]
    return [str(path), *chosen, *[w.strip('"') for w in options], *limits]


TRAINED = [
    *(path.stem for path in YAMLS),
    "conformer_small_ls100+hmamba",
    "conmamba_demo+conformer",
    "conmamba_an4+hnet",
    "hmamba_demo+n3",
    "conmamba_small_ls100+fixedstride",
    *(f"conmamba_mini+{name}" for name in ("frames", "ffn", "wide", "nested")),
]


def test_every_variant_is_trained_below():
    assert {name for run in TRAINED for name in run.split("+")[1:]} == {path.stem for path in VARIANTS}


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_and_an_evaluation(name, corpus, tmp_path, pretrained):
    experiment = Experiment(_command_line(name, corpus, tmp_path / "out", pretrained))
    assert experiment.name == name
    hparams = experiment.hparams
    train_set, valid_set, test_sets = experiment.prepare()
    if "lm" in hparams:
        saved = torch.load(pretrained / "lm.ckpt")
        assert all(torch.equal(value, saved[name]) for name, value in hparams["lm"].state_dict().items())
    assert hparams["tokenizer"].get_piece_size() == VOCABULARY
    before = {name: p.detach().clone() for name, p in hparams["model"].named_parameters()}

    brain = ASRBrain.from_experiment(experiment)
    brain.fit(hparams["epoch_counter"], train_set, valid_set)
    assert brain.optimizer_step == 2
    records = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["optimizer_step"] for record in steps] == [1, 2]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in steps)
    still = [name for name, p in hparams["model"].named_parameters() if torch.equal(p, before[name])]
    assert still == [], "parameters that no step moves"

    system = brain.trained_system(name=experiment.name, hparams_text=experiment.hparams_text)
    results = evaluate(system, test_sets)
    assert results.evaluation["test"].keys() == hparams["test_searches"].keys()
    for search, entry in results.evaluation["test"].items():
        assert entry.wer.sentences == 4
        assert (tmp_path / "out" / "test" / "test" / search / "hyp.trn").is_file()


@pytest.mark.parametrize("path", [CONMAMBA, CONFORMER], ids=lambda path: path.stem)
def test_pretrained_files_that_cannot_be_had_are_one_clear_error(
    path, corpus, tmp_path, pretrained, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = _command_line(path.stem, corpus, tmp_path / "out", pretrained)
    arguments[arguments.index(str(pretrained))] = str(tmp_path / "nowhere")
    with pytest.raises(OSError) as error:
        Experiment(arguments).prepare()
    message = str(error.value)
    assert f"{tmp_path}/nowhere/lm.ckpt" in message and "--pretrained_source" in message
    assert len(message.splitlines()) == 1 and len(message) < 700
