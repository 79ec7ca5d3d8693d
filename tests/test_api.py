"""The public API of the package: names that load at first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hmamba_asr

PUBLIC = sorted(set(hmamba_asr.__all__) - {"__version__"})


def in_a_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_pytorch_is_loaded_at_the_first_use_of_a_name():
    code = """
import sys
import hmamba_asr
names = dir(hmamba_asr), hmamba_asr.__version__, hasattr(hmamba_asr, "nothing")
before = {"torch", "speechbrain", "hyperpyyaml"} & set(sys.modules)
hmamba_asr.BiMamba
print(sorted(before), "torch" in sys.modules)
"""
    assert in_a_process(code) == "[] True"


def test_star_import_gives_every_name():
    code = (
        f"from hmamba_asr import *; print([name for name in {hmamba_asr.__all__} if name not in globals()])"
    )
    assert in_a_process(code) == "[]"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_name_is_the_object_of_its_module(name):
    value = getattr(hmamba_asr, name)
    assert callable(value) and value.__name__ == name
    assert value is getattr(hmamba_asr, name) and name in dir(hmamba_asr)
    assert value.__doc__, "a public name needs a docstring"


def test_what_was_promised_is_there():
    promised = "load Recogniser ConMambaEncoder HierarchicalEncoder BiMamba selective_scan ASRModel"
    assert {*promised.split(), "JointBeamSearcher"} <= set(PUBLIC)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hmamba_asr' has no attribute 'nothing'"):
        hmamba_asr.nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from hmamba_asr import nothing")


def test_type_checkers_see_the_same_names():
    """The block under ``TYPE_CHECKING`` imports each name from where it is loaded at run time."""
    tree = ast.parse(Path(hmamba_asr.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == hmamba_asr._HOMES and sorted(seen) == PUBLIC
