"""Every YAML of hparams/: no key is idle or doubled, the recipe's facts, equal sizes, and two steps of real
training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.utils.run_opts import RunOptions

from hmamba_asr.data.librispeech import prepare_manifests
from hmamba_asr.data.tokenizer import train_tokenizer
from hmamba_asr.evaluation.run import evaluate
from hmamba_asr.training.asr import ASRBrain
from hmamba_asr.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
YAMLS = sorted((ROOT / "hparams").glob("*.yaml"))
CONMAMBA, CONFORMER = (ROOT / "hparams" / f"{name}_small_ls100.yaml" for name in ("conmamba", "conformer"))
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


# ---- the text ---------------------------------------------------------------------------------------------------------


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
            or re.search(rf"hparams(?:\.{key}\b|\[[\"']{key}[\"']\])", code) is not None
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


@pytest.mark.parametrize("path", sorted((ROOT / "hparams" / "lm").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_language_model_is_used_and_given_once(path):
    text = path.read_text(encoding="utf-8")
    assert _unused_keys(text, _code()) == []
    assert _doubled_keys(yaml.compose(text)) == []
    assert path.relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text(encoding="utf-8")
    assert path.stem in _default_output_folder(path)


@each_yaml
def test_the_description_of_the_evaluation_batches_is_true(path):
    text = path.read_text(encoding="utf-8")
    said, (seconds, size) = (
        re.search(r"^eval_batching: (.*)$", text, flags=re.MULTILINE)[1],
        re.search(
            r"^eval_loader:.*\n    max_batch_seconds: (\d+)\n    max_batch_size: (\d+)",
            text,
            flags=re.MULTILINE,
        ).groups(),
    )
    assert said == f"at most {seconds} s of audio and {size} utterances"


def _sections(text: str) -> dict[str, str]:
    """Top-level blocks without their comments."""
    bare = "\n".join(re.sub(r"(^|\s+)#.*$", "", line) for line in text.splitlines())
    blocks = re.split(r"^(?=\w+:)", bare, flags=re.MULTILINE)
    return {block.split(":")[0]: block.rstrip() for block in blocks if block.strip()}


def test_the_control_differs_in_nothing_but_the_encoder():
    ours, control = (_sections(path.read_text(encoding="utf-8")) for path in (CONMAMBA, CONFORMER))
    assert ours.keys() == control.keys()
    assert {key for key in ours if ours[key] != control[key]} == {"output_folder", "encoder"}


def _sections_of(name: str) -> dict[str, str]:
    return _sections((ROOT / "hparams" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path",
    [p for p in YAMLS if p.stem.startswith(("hmamba", "router", "hnet", "fixedstride"))],
    ids=lambda path: path.stem,
)
def test_hmamba_and_its_control_differ_from_conmamba_in_nothing_but_the_encoder_and_its_loss(path, tmp_path):
    kind = path.stem.split("_")[0]
    sibling = path.stem.replace(kind, "conmamba").removesuffix("_n3")
    flat, chunked = _sections_of(sibling), _sections_of(path.stem)
    assert {key for key in flat if flat[key] != chunked.get(key)} == {
        "output_folder",
        "encoder",
        "intermediate_ctc_weight",
    }
    assert chunked.keys() - flat.keys() == {
        "outer",
        "inner",
        "chunker",
        *(["ratio_loss"] if kind == "hnet" else []),
    }
    # The same blocks, only divided: what the two stacks have besides their number is what the flat encoder
    # has.
    outer, inner, blocks = chunked["outer"], chunked["inner"], flat["encoder"]
    counts = [int(re.search(r"num_layers: (\d+)", block)[1]) for block in (outer, inner, blocks)]
    assert counts[0] + counts[1] == counts[2]
    bare = {re.sub(r"num_layers: \d+", "", block.split("\n", 1)[1]) for block in (outer, inner, blocks)}
    assert len(bare) == 1
    # A router is all that may be added, and on the way back to frames one residual projection.
    added = _parameters(_load(path, tmp_path / "a")) - _parameters(
        _load(path.with_stem(sibling), tmp_path / "b")
    )
    d_model = int(re.search(r"\d+", chunked["d_model"])[0])
    residual = d_model**2 + d_model if "output: frames" in chunked["encoder"] else 0
    assert added == (2 * d_model**2 if kind in ("router", "hnet") else 0) + residual


@pytest.mark.parametrize(
    "path",
    [p for p in YAMLS if p.stem.startswith(("router", "fixedstride")) or p.stem.endswith("_n3")],
    ids=lambda path: path.stem,
)
def test_the_controls_and_longer_chunks_differ_from_hmamba_in_the_chunker_alone(path):
    sibling = "hmamba_" + path.stem.split("_", 1)[1].removesuffix("_n3")
    ours, theirs = _sections_of(sibling), _sections_of(path.stem)
    assert ours.keys() == theirs.keys()
    assert {key for key in ours if ours[key] != theirs[key]} == {"output_folder", "chunker"}
    if path.stem.endswith("_n3"):
        assert theirs["chunker"] == ours["chunker"].replace("target_ratio: 2.0", "target_ratio: 3.0")


@pytest.mark.parametrize(
    "overrides",
    [
        {"encoder": {"output": "frames"}},
        {"chunker": {"target_ratio": 3}},
        {"outer": {"num_layers": 4}, "inner": {"num_layers": 8}},
    ],
    ids=["dechunk", "N=3", "4+8"],
)
def test_the_variants_of_the_readme_are_overrides(overrides, tmp_path):
    hparams = _load(ROOT / "hparams" / "hmamba_mini.yaml", tmp_path, **overrides)
    encoder = hparams["model"].encoder
    assert (
        encoder.output,
        encoder.chunker.target_ratio,
        len(encoder.outer.blocks),
        len(encoder.inner.blocks),
    ) == (
        overrides.get("encoder", {}).get("output", "chunks"),
        overrides.get("chunker", {}).get("target_ratio", 2.0),
        overrides.get("outer", {}).get("num_layers", 8),
        overrides.get("inner", {}).get("num_layers", 4),
    )


# ---- the objects ------------------------------------------------------------------------------------------------------


def _load(path: Path, tmp_path: Path, **overrides) -> dict:
    given = {"data_folder": str(tmp_path), "output_folder": str(tmp_path / "out"), **overrides}
    text = path.read_text(encoding="utf-8")
    if "lm" in _top_level_keys(text):
        given = {
            "lm": {"num_encoder_layers": 1},
            **given,
        }  # the language model alone would take a second and a gigabyte
    return load_hyperpyyaml(text, given)


@each_yaml
def test_a_yaml_needs_only_a_data_folder(path, tmp_path):
    with pytest.raises(ValueError, match="data_folder"):
        load_hyperpyyaml(path.read_text(encoding="utf-8"), {"output_folder": str(tmp_path / "out")})
    hparams = _load(path, tmp_path)
    assert hparams["test_searches"] and hparams["seed"]
    assert path.stem in _default_output_folder(path)


def _default_output_folder(path: Path) -> str:
    return re.search(r"^output_folder: !ref (\S+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]


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


# ---- two steps --------------------------------------------------------------------------------------------------------


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


def _arguments(path: Path, corpus: Path, output: Path, pretrained: Path) -> list[str]:
    """The command line that shrinks any of our YAMLs to a second of work and changes nothing else."""
    sections = _sections(path.read_text(encoding="utf-8"))
    dynamic = "max_batch_seconds" in sections["train_loader"]
    stacks = ("outer", "inner") if "chunker" in sections else ("encoder",)
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
        **{name: {"num_layers": 1} for name in stacks},
        "model": {"num_decoder_layers": 1},
        "beam_search": {"searcher": {"beam_size": 2, "max_decode_ratio": 0.2}},
        "train_loader": {"max_batch_seconds": 8, "num_buckets": 2} if dynamic else {"batch_size": 4},
    }
    if "pretrainer" in sections:
        overrides |= {"pretrained_source": str(pretrained), "lm": TINY_LM}
    options = [
        word
        for key, value in overrides.items()
        for word in (f"--{key}", json.dumps(value) if value is not None else "null")
    ]
    return [str(path), *[w.strip('"') for w in options], "--optimizer_step_limit", "2", "--noprogressbar"]


def _brain(experiment: Experiment) -> ASRBrain:
    hparams = experiment.hparams
    return ASRBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=experiment.run_opts,
        checkpointer=hparams["checkpointer"],
        tokenizer=hparams["tokenizer"],
    )


@each_yaml
def test_two_steps_and_an_evaluation(path, corpus, tmp_path, pretrained):
    experiment = Experiment(_arguments(path, corpus, tmp_path / "out", pretrained))
    hparams = experiment.hparams
    train_set, valid_set, test_sets = experiment.prepare()
    if "lm" in hparams:
        saved = torch.load(pretrained / "lm.ckpt")
        assert all(torch.equal(value, saved[name]) for name, value in hparams["lm"].state_dict().items())
    assert hparams["tokenizer"].get_piece_size() == VOCABULARY
    before = {name: p.detach().clone() for name, p in hparams["model"].named_parameters()}

    brain = _brain(experiment)
    brain.fit(hparams["epoch_counter"], train_set, valid_set)
    assert brain.optimizer_step == 2
    records = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["optimizer_step"] for record in steps] == [1, 2]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in steps)
    still = [name for name, p in hparams["model"].named_parameters() if torch.equal(p, before[name])]
    assert still == [], "parameters that no step moves"

    results = evaluate(brain, test_sets, name=experiment.name, hparams_text=experiment.hparams_text)
    assert results["evaluation"]["test"].keys() == hparams["test_searches"].keys()
    for search, entry in results["evaluation"]["test"].items():
        assert entry["wer"]["sentences"] == 4
        assert (tmp_path / "out" / "test" / "test" / search / "hyp.trn").is_file()


@pytest.mark.parametrize("path", [CONMAMBA, CONFORMER], ids=lambda path: path.stem)
def test_pretrained_files_that_cannot_be_had_are_one_clear_error(
    path, corpus, tmp_path, pretrained, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = _arguments(path, corpus, tmp_path / "out", pretrained)
    arguments[arguments.index(str(pretrained))] = str(tmp_path / "nowhere")
    with pytest.raises(OSError) as error:
        Experiment(arguments).prepare()
    message = str(error.value)
    assert f"{tmp_path}/nowhere/lm.ckpt" in message and "--pretrained_source" in message
    assert len(message.splitlines()) == 1 and len(message) < 700
