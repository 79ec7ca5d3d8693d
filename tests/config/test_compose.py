"""Variants on a base: what they change, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hmamba_asr.config.compose import compose, run_name

BASE = """\
# The base.
seed: 1
layers: 12                    # in all
encoder: !new:package.Encoder
    layers: !ref <layers>     # of the encoder
    width: 8
    norm: {kind: layer, eps: 1}
head: !new:package.Head
    encoder: !ref <encoder>
# ---- Training
rate: 0.1                     # of learning
"""


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    write("base", BASE)
    return write


def keys(text: str) -> list[str]:
    return [key.value for key, _ in yaml.compose(text).value]


def test_a_base_alone_gets_its_name_and_keeps_the_rest(write, tmp_path):
    first, *rest = compose(tmp_path / "base.yaml").splitlines()
    assert first == "# The base." and rest[0] == "name: base"
    assert [line.split() for line in rest[1:]] == [line.split() for line in BASE.splitlines()[1:]]


def test_arguments_merge_and_tagged_values_replace(write, tmp_path):
    one = write("one", "encoder:\n    width: 16     # twice\n    norm: {eps: 2}\nrate: 0.2\n")
    text = compose(tmp_path / "base.yaml", [one])
    assert keys(text) == ["name", "seed", "layers", "encoder", "head", "rate"]
    assert "encoder: !new:package.Encoder" in text and "name: base+one" in text
    assert "width: 16     # twice" in text and "{kind: layer, eps: 2}" in text
    assert "# in all" in text and "rate: 0.2" in text and "# ---- Training" in text
    other = write("other", "encoder: !new:package.Other\n    width: 2\n")
    text = compose(tmp_path / "base.yaml", [other])
    assert "!new:package.Other" in text and "layers: !ref" not in text.split("head:")[0].split("encoder:")[1]


def test_a_copy_of_the_base_is_its_object_with_other_arguments(write, tmp_path):
    split = write(
        "split",
        "half: !ref <layers> // 2\nouter: !base:encoder\n    layers: !ref <half>\ninner: !base:encoder\n"
        "    width: 4\nencoder: !new:package.Pair\n    outer: !ref <outer>\n    parts:\n    - !base:head "
        "{}\n",
    )
    text = compose(tmp_path / "base.yaml", [split])
    assert "!base" not in text
    # New keys stand in front of the next one that the base has too: objects are built in this order.
    assert keys(text) == ["name", "seed", "layers", "half", "outer", "inner", "encoder", "head", "rate"]
    root = {key.value: node for key, node in yaml.compose(text).value}
    assert root["outer"].tag == root["inner"].tag == "!new:package.Encoder"
    outer, inner = ({key.value: value for key, value in root[name].value} for name in ("outer", "inner"))
    assert (outer["layers"].value, outer["width"].value) == ("<half>", "8")
    assert (inner["layers"].value, inner["width"].value) == ("<layers>", "4")
    parts = dict((key.value, value) for key, value in root["encoder"].value)["parts"].value
    assert parts[0].tag == "!new:package.Head"


def test_variants_apply_in_their_order(write, tmp_path):
    first, second = write("first", "rate: 1\nseed: 5\n"), write("second", "rate: 2\n")
    assert run_name(tmp_path / "base.yaml", [first, second]) == "base+first+second"
    assert "rate: 2" in compose(tmp_path / "base.yaml", [first, second])
    assert "rate: 1" in compose(tmp_path / "base.yaml", [second, first])


def test_what_a_variant_needs_is_applied_first_and_once(write, tmp_path):
    split = write("split", "part: !base:encoder\n    width: 1\n")
    small = write("small", "needs: {part: split.yaml}\npart:\n    layers: 1\n")
    alone, together = (compose(tmp_path / "base.yaml", chosen) for chosen in ([small], [split, small]))
    assert "name: base+small\n" in alone and "name: base+split+small\n" in together
    assert alone.replace("base+small", "base+split+small") == together
    assert "needs" not in alone


def test_a_variant_drops_what_nothing_needs(write, tmp_path):
    other = write("other", "drops: [rate]\nspeed: 1\n")
    text = compose(tmp_path / "base.yaml", [other])
    assert "rate" in compose(tmp_path / "base.yaml") and "rate" not in text
    assert "drops" not in text and "speed: 1\n" in text
    with pytest.raises(
        ValueError, match=r"other\.yaml drops rate, and base has no such key; use another base"
    ):
        compose(tmp_path / "base.yaml", [other, other])
    user = write("user", "speed: !ref <rate> * 2\n")
    with pytest.raises(ValueError, match="drops rate, which base needs for speed; use another base"):
        compose(tmp_path / "base.yaml", [user, write("without", "drops: [rate]\n")])


def test_a_saved_yaml_keeps_its_name(write, tmp_path):
    one, two = write("one", "rate: 1\n"), write("two", "seed: 2\n")
    saved = write("hyperparams", compose(tmp_path / "base.yaml", [one]))
    assert compose(saved) == saved.read_text(encoding="utf-8")
    assert "name: base+one+two\n" in compose(saved, [two])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("decoder:\n    width: 1\n", "changes arguments of decoder, and base has no object there"),
        ("rate:\n    peak: 1\n", "changes arguments of rate, and base has no object there"),
        ("x: !base:decoder\n    width: 1\n", "copies decoder, and base has no such object; use another base"),
        (
            "x: !base:encoder\n    depth: 1\n",
            "changes depth of encoder, and the encoder of base has no such argument",
        ),
        ("x: [1\n", "is not YAML"),
        ("- x\n", "holds no keys"),
        ("x: !new:hmamba_asr.modules.chunking.DynamicChunker\n", "was removed in version 0.2.0; use "),
    ],
)
def test_what_does_not_fit_is_one_sentence(write, tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        compose(tmp_path / "base.yaml", [write("bad", text)])
    assert "\n" not in str(raised.value)


def test_a_yaml_that_is_not_there(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no YAML .*gone.yaml; .* holds base.yaml, one.yaml"):
        write("one", "seed: 1\n")
        compose(tmp_path / "base.yaml", [tmp_path / "gone.yaml"])
