"""One search of a run's YAML, without what the others need."""

from __future__ import annotations

import pytest
import yaml

from hmamba_asr.config.hparams import load_hparams
from hmamba_asr.config.select import select_search

# Small objects of the standard library stand in for models: what matters is who refers to whom.
YAML = """
sample_rate: 16000
splits: [dev, test]
lr: 0.001
features: !new:collections.Counter
    rate: !ref <sample_rate>
head: !new:collections.Counter
    size: 5
lm: !new:builtins.no_such_class
    size: 3
tokenizer: !new:collections.OrderedDict
model: !new:collections.OrderedDict
    head: !ref <head>
optimizer: !name:builtins.no_such_function
    lr: !ref <lr>
schedule: !new:builtins.no_such_class
pretrainer: !new:types.SimpleNamespace
    loadables:
        lm: !ref <lm>
        tokenizer: !ref <tokenizer>
    paths:
        lm: nowhere/lm.ckpt
        tokenizer: somewhere/tokenizer.ckpt
    collect_in: pretrained
test_searches:
    greedy: !new:collections.OrderedDict
        head: !ref <head>
    beam: !new:collections.OrderedDict
        lm: !ref <lm>
"""


def test_only_what_the_search_needs_is_built():
    """Whatever else is built or imported fails: it does not exist."""
    name, part = select_search(YAML, "greedy")
    built = load_hparams(part)
    assert name == "greedy"
    assert set(built) == {
        *("sample_rate", "splits", "lr"),
        *("features", "tokenizer", "model", "search", "pretrainer"),
    }
    assert built["features"] == {"rate": 16000} and built["splits"] == ["dev", "test"]


def test_shared_objects_stay_shared():
    built = load_hparams(select_search(YAML, "greedy")[1])
    assert built["search"]["head"] is built["model"]["head"]
    assert built["pretrainer"].loadables["tokenizer"] is built["tokenizer"]


def test_a_pretrainer_keeps_what_the_search_needs():
    greedy = load_hparams(select_search(YAML, "greedy")[1])["pretrainer"]
    assert greedy.paths == {"tokenizer": "somewhere/tokenizer.ckpt"} and set(greedy.loadables) == {
        "tokenizer"
    }
    name, part = select_search(YAML.replace("builtins.no_such_class", "collections.Counter"))
    beam = load_hparams(part)
    assert name == "beam", "the last search is the default"
    assert set(beam["pretrainer"].paths) == {"lm", "tokenizer"}
    assert beam["pretrainer"].loadables["lm"] is beam["search"]["lm"]


def test_a_yaml_without_a_pretrainer():
    document = YAML[: YAML.index("pretrainer")] + YAML[YAML.index("test_searches") :]
    assert "pretrainer" not in load_hparams(select_search(document, "greedy")[1])


def test_names_that_moved_are_accepted():
    old = YAML.replace(
        "!new:collections.OrderedDict\n        head",
        "!new:hmamba_asr.decoding.beam.GreedySearch\n        head",
    )
    tags = [event.tag for event in yaml.parse(select_search(old, "greedy")[1]) if getattr(event, "tag", None)]
    assert "!new:hmamba_asr.decoding.greedy.GreedySearch" in tags


def test_an_unknown_search_and_a_yaml_of_something_else_are_refused():
    with pytest.raises(ValueError, match="the YAML has no search 'other'; it has greedy, beam"):
        select_search(YAML, "other")
    with pytest.raises(ValueError, match="has no key features, model, tokenizer, test_searches"):
        select_search("seed: 1\n")
