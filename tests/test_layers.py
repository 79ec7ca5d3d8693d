"""The shape of the package: who may import whom, and what its text may name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hmamba_asr"

# Room -> the rooms of this package that it may import. Imports go downward only.
MODELS = {"system", "lengths", "ops", "modules", "hnet", "models"}
ALLOWED = {
    "system": set(),
    "lengths": set(),
    "ops": {"system", "lengths"},
    "modules": {"lengths", "ops"},
    "hnet": {"lengths", "ops", "modules"},
    "models": {"system", "lengths", "ops", "modules", "hnet"},
    "config": {"system"},
    "data": {"system"},
    "decoding": {*MODELS, "config"},
    "inference": {*MODELS, "config", "data", "decoding"},
    "evaluation": {*MODELS, "config", "data", "decoding", "inference"},
    "training": {*MODELS, "config", "data", "decoding", "evaluation"},
    "report": {"system", "config", "data", "evaluation"},
    "cli": {"system", "config", "data", "inference", "evaluation", "report"},
}
# The package's face hands names on lazily, to type checkers at once; __main__ starts the command line.
FACES = ("hmamba_asr", "hmamba_asr.__main__")
SPEECHBRAIN_ALLOWED = (
    "hmamba_asr.data.loaders",
    "hmamba_asr.modules.chunkers",
    "hmamba_asr.modules.frontend",
    "hmamba_asr.hnet",
    "hmamba_asr.models",
    "hmamba_asr.decoding",
    "hmamba_asr.inference",
    "hmamba_asr.evaluation",
    "hmamba_asr.training",
)
# Modules that must start fast and run where PyTorch is not installed yet: no heavy import at the top.
LIGHT = (
    "hmamba_asr",
    "hmamba_asr.cli",
    "hmamba_asr.system",
    "hmamba_asr.data.an4",
    "hmamba_asr.data.audio",
    "hmamba_asr.data.demo",
    "hmamba_asr.data.download",
    "hmamba_asr.data.fetch",
    "hmamba_asr.data.librispeech",
    "hmamba_asr.data.manifest",
    "hmamba_asr.data.corpus_files",
    "hmamba_asr.data.subsets",
    "hmamba_asr.data.tokenizer",
    "hmamba_asr.evaluation.boundary_agreement",
    "hmamba_asr.evaluation.breakdown",
    "hmamba_asr.evaluation.results",
    "hmamba_asr.evaluation.segmentation",
    "hmamba_asr.evaluation.significance",
    "hmamba_asr.evaluation.textgrid",
    "hmamba_asr.report.summary",
)
HEAVY = {"torch", "torchaudio", "speechbrain", "triton", "hyperpyyaml"}
FORBIDDEN_TEXT = re.compile(
    "|".join(
        [
            r"/(?:work|root)/",  # folders of a machine
            r"/(?:tmp|home)/\w",
            r"(?:pypi|pythonhosted|anaconda|artifactory|jfrog|nexus)\.(?:org|com|io)",  # registries' hosts
            r"--(?:extra-)?index-url",
            r"https?://(?:localhost|\d+\.\d+\.\d+\.\d+)",
        ]
    )
)


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(source: str, module: str, *, is_package: bool = False) -> tuple[set[str], set[str]]:
    """Absolute names that `source` imports: at import time, and lazily, inside functions or for type checkers
    only."""
    top, lazy = set(), set()

    def visit(node: ast.AST, found: set[str]) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            if node.level:
                base = base[: len(base) - node.level + is_package]
                origin = ".".join([*base, *([node.module] if node.module else [])])
            else:
                origin = node.module
            # `from a import b` may import the module a.b, so both names count.
            found.update([origin, *(f"{origin}.{alias.name}" for alias in node.names)])
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        inside = lazy if later else found
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), top)
    return top, lazy


def _layer(name: str) -> str | None:
    """The layer of one of our modules: `hmamba_asr.ops.depthwise_conv` -> `ops`; None for others' modules."""
    parts = name.split(".")
    return parts[1] if parts[0] == "hmamba_asr" and len(parts) > 1 and not parts[1].startswith("__") else None


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _may_import_triton(module: str) -> bool:
    """Only files of kernels, and what compiles, launches and chooses them."""
    room, _, name = module.rpartition(".")
    return room.startswith("hmamba_asr.ops") and (
        "kernels" in name or name in ("tiles", "launch", "dispatch")
    )


def _violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    top, lazy = _imports(source, module, is_package=is_package)
    layer, found = _layer(module), []
    if module in FACES:  # nothing heavy, and nothing of the package, before it is asked for
        return [
            f"{module} imports {name} at its top" for name in sorted(top) if _layer(name) not in (None, "cli")
        ]
    for name in sorted(top | lazy):
        target, foreign = _layer(name), name.split(".")[0]
        if target and layer and target != layer and target not in ALLOWED.get(layer, set()):
            found.append(f"{module} ({layer}) imports {name} ({target})")
        if foreign == "speechbrain" and not _within(module, SPEECHBRAIN_ALLOWED):
            found.append(f"{module} imports {name}")
        if foreign == "triton" and not _may_import_triton(module):
            found.append(f"{module} imports {name}")
    if _within(module, LIGHT[2:]) or module in LIGHT:
        found += [
            f"{module} imports {name} at its top" for name in sorted(top) if name.split(".")[0] in HEAVY
        ]
    return found


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _tracked_text() -> list[Path]:
    """Text files of the project: what git tracks, or, outside a checkout, everything in the package and the
    folders beside."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True
        ).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("hmamba_asr", "hparams", "recipes", "scripts", "tests")
        paths = [*ROOT.glob("*.*"), *(p for f in folders for p in (ROOT / f).rglob("*"))]
    endings = {".py", ".sh", ".slurm", ".yaml", ".yml", ".md", ".toml", ".txt", ".json", ".cfg", ""}
    return [p for p in paths if p.is_file() and p.suffix in endings and "__pycache__" not in p.parts]


@pytest.mark.parametrize("path", _sources(), ids=_module_name)
def test_imports_go_downward(path):
    assert not _violations(
        _module_name(path), path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py"
    )


def _circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other in a ring, directly or through others."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        pending = [start]
        while pending:
            for name in imports.get(pending.pop(), set()) - found:
                found.add(name)
                pending.append(name)
        return found

    reach = {module: reachable(module) for module in imports}
    rings = {frozenset(other for other in reach[module] if module in reach[other]) for module in imports}
    return [set(ring) for ring in rings if len(ring) > 1]


def _neighbours(source: str, modules: Collection[str]) -> set[str]:
    """Modules among ``modules`` that ``source`` imports, anywhere; `from a import b` means a.b where that is
    one."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in modules else node.module for name in names)
    return found & set(modules)


def test_no_modules_import_each_other_in_a_circle():
    modules = {_module_name(path): path.read_text(encoding="utf-8") for path in _sources()}
    for face in FACES:
        del modules[face]
    assert _circles({name: _neighbours(source, modules) - {name} for name, source in modules.items()}) == []


def test_a_circle_is_seen():
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [{"b", "c"}]


def test_every_module_has_a_layer():
    layers = {_layer(_module_name(path)) for path in _sources()} - {None}
    assert layers <= ALLOWED.keys(), "a new part of the package needs its place in ALLOWED"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hmamba_asr.ops.scan", "from hmamba_asr.modules.bimamba import BiMamba"),
        ("hmamba_asr.ops.scan", "def f():\n    import speechbrain.nnet"),
        ("hmamba_asr.ops.selective_scan", "from ...hmamba_asr import models"),
        ("hmamba_asr.ops.depthwise_conv", "from ..modules import conmamba"),
        ("hmamba_asr.modules.bimamba", "from speechbrain.nnet.linear import Linear"),
        ("hmamba_asr.modules.conmamba", "from hmamba_asr import models"),
        ("hmamba_asr.models.asr", "import hmamba_asr.training.asr"),
        ("hmamba_asr.decoding.beam", "from hmamba_asr.training.asr import ASRBrain"),
        ("hmamba_asr.data.loaders", "from hmamba_asr.models.hmamba import EncoderOutput"),
        ("hmamba_asr.evaluation.wer", "def f():\n    from hmamba_asr.training import losses"),
        ("hmamba_asr.data.tokenizer", "import torch"),
        ("hmamba_asr.data.librispeech", "from speechbrain.utils.data_utils import get_all_files"),
        ("hmamba_asr.ops.selective_scan.chunked", "import triton"),
        ("hmamba_asr", "from hmamba_asr.lengths import valid_mask"),
    ],
)
def test_an_upward_import_is_seen(module, source):
    assert _violations(module, source)


def test_downward_and_lazy_imports_are_allowed():
    assert not _violations(
        "hmamba_asr.models.asr", "from hmamba_asr.modules.bimamba import BiMamba\nimport speechbrain"
    )
    assert not _violations("hmamba_asr.evaluation.results", "def f():\n    import torch")
    assert not _violations("hmamba_asr.ops.selective_scan", "from . import chunked", is_package=True)


def _loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert _loaded_by("hmamba_asr") == set()
    assert _loaded_by("hmamba_asr.cli") == set()


def test_the_probe_for_heavy_imports_sees_torch():
    assert "torch" in _loaded_by("torch")


def test_no_file_is_a_drawer_for_everything():
    names = {path.name for path in ROOT.rglob("*.py") if not {".venv", ".git"} & set(path.parts)}
    assert not names & {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


def test_train_py_stays_short():
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_text_names_nothing_outside_the_project():
    named = {}
    for path in _tracked_text():
        name = path.relative_to(ROOT).as_posix()
        # Tests may use made-up addresses, and this one spells the patterns out.
        if name.startswith("tests/"):
            continue
        if found := FORBIDDEN_TEXT.search(path.read_text(encoding="utf-8", errors="replace")):
            named[name] = found.group()
    assert named == {}


@pytest.mark.parametrize(
    "text",
    [
        "see /work/x",
        "see /root/x",
        "cd /tmp/venv",
        "/home/me/data",
        "--index-url X",
        "https://pypi.org/simple",
    ],
)
def test_a_foreign_path_or_host_is_seen(text):
    assert FORBIDDEN_TEXT.search(text)
