"""Old YAMLs are loaded under today's names; parts are built alone; differences see through renaming."""

from __future__ import annotations

import pydoc

import pytest

from hmamba_asr.config.difference import yaml_difference
from hmamba_asr.config.hparams import load_hparams, load_parts, resolve
from hmamba_asr.config.moved import MOVED, REMOVED, rename_moved

LOADER = "hmamba_asr.data.loaders.eval_loader"
OLD = """\
# A comment that names hmamba_asr.data.dataset.eval_loader.
size: 4
loader: !name:hmamba_asr.data.dataset.eval_loader   # old
    max_batch_size: !ref <size>
count: !new:collections.Counter
    a: !ref <size>
pair: !new:collections.OrderedDict
    count: !ref <count>
"""


def test_every_moved_name_is_there_today():
    assert [new for new in MOVED.values() if pydoc.locate(new) is None] == []
    assert not MOVED.keys() & REMOVED.keys() and not set(MOVED.values()) & MOVED.keys()


def test_tags_alone_are_renamed():
    text = rename_moved(OLD)
    assert f"loader: !name:{LOADER}   # old\n" in text
    assert text.replace(LOADER, "hmamba_asr.data.dataset.eval_loader") == OLD
    assert rename_moved(text) == text


def test_old_names_are_loaded_in_yamls_and_in_overrides():
    hparams = load_hparams(OLD, {"size": 5})
    assert f"{hparams['loader'].func.__module__}.eval_loader" == LOADER
    assert hparams["loader"].keywords["max_batch_size"] == hparams["count"]["a"] == 5
    text = resolve("loader: null\n", "loader: !name:hmamba_asr.data.dataset.eval_loader")
    assert text.strip() == f"loader: !name:{LOADER}"
    assert resolve("size: 1\n", "") == resolve("size: 1\n") == "size: 1\n"


@pytest.mark.parametrize("path", REMOVED)
def test_a_removed_class_is_refused_in_one_sentence(path):
    for load in (load_hparams, resolve):
        with pytest.raises(
            ValueError, match=rf"^{path}, which the YAML names, was removed in version .*use "
        ) as raised:
            load(f"chunker: !new:{path}\n    d_model: 4\n")
        assert "\n" not in str(raised.value)


def test_parts_are_built_with_what_they_refer_to_and_nothing_else():
    text = OLD + "broken: !new:no.such.Class\n"
    parts = load_parts(text, ["pair"], {"size": 2})
    assert parts.keys() == {"pair"} and parts["pair"]["count"] == {"a": 2}
    with pytest.raises(ValueError, match="the YAML has no key gone; its keys are: size, loader, "):
        load_parts(text, ["gone"])


def test_a_moved_class_is_no_difference():
    today = resolve(OLD)
    old = today.replace(LOADER, "hmamba_asr.data.dataset.eval_loader")
    assert old != today and yaml_difference(old, today) == {}
    other = today.replace("max_batch_size: 4", "max_batch_size: 5")
    assert yaml_difference(today, other) == {"loader.max_batch_size": ["4", "5"]}


def test_an_object_stands_under_its_own_key_wherever_it_is_used_first():
    head = "head: {0}!new:package.Head\n    size: 4\n"
    inside = "chunker: !new:package.Chunker\n    head: &h !new:package.Head\n        size: 4\nhead: *h\n"
    outside = "chunker: !new:package.Chunker\n    window: 1\n" + head.format("")
    assert yaml_difference(inside, outside) == {"chunker.window": [None, "1"]}
