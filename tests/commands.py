"""Tell whether the code blocks of a document would work: each command is parsed by what it calls, not run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import runpy
import shlex
import string
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc import locate
from unittest import mock

import pytest
import yaml
from markdown_it import MarkdownIt
from torch.distributed.run import get_args_parser

from hmamba_asr import cli
from hmamba_asr.config.hparams import build_error_reason, load_hparams
from hmamba_asr.data.download import ARCHIVES
from hmamba_asr.data.subsets import SUBSETS
from hmamba_asr.training.command_line import parse_command_line

ROOT = Path(__file__).resolve().parents[1]
# Languages of blocks whose lines are commands, and of blocks that are read and not typed.
COMMANDS, PROSE = {"", "bash", "console", "sh"}, {"bibtex", "diff", "text"}
# Scripts that take train.py's arguments.
TRAINERS = ("train.py", "recipes/librispeech/train_lm.py")
# Programs whose arguments are their own business, and words of the shell.
FOREIGN = {"cd", "cp", "export", "git", "mkdir", "tensorboard", "for", "done"}
# What a document writes for the YAML of a run that the reader has.
STANDS_FOR_A_RUN = re.compile(r"\.\.\.|(?:RUN|results/.*)/hyperparams\.yaml|hparams/X\.yaml")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


class Refused(Exception):
    """A command or a block that would not work."""


def code_blocks(document: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the content of each code block of a Markdown document."""
    for token in MarkdownIt("commonmark").parse(document):
        if token.type in ("fence", "code_block"):
            yield token.info.strip(), token.content


def check_block(language: str, content: str) -> int:
    """Check a code block, and return how many commands it holds.

    Raises
    ------
    Refused
        If something in it would not work.
    """
    checks = {"python": check_python, "yaml": check_yaml, "json": json.loads}
    if language in COMMANDS:
        commands = list(split_commands(content))
        for words in commands:
            check_command(words)
        return len(commands)
    if language not in {*checks, *PROSE}:
        raise Refused(f"no rule for a block of '{language}'")
    if language in checks:
        try:
            checks[language](content)
        except ValueError as error:
            raise Refused(str(error)) from error
    return 0


# ---- commands ----


def split_commands(content: str) -> Iterator[list[str]]:
    """Yield the words of each command, with the block's variables in place."""
    variables: dict[str, str] = {}
    for line in content.replace("\\\n", " ").splitlines():
        line = string.Template(line.strip().removeprefix("$ ")).safe_substitute(variables)
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError as error:
            raise Refused(f"{line}: {error}") from error
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|"):
                command = command[command[:1] in (["do"], ["then"]) :]
                while command and (assigned := ASSIGNMENT.fullmatch(command[0])):
                    variables[assigned[1]] = assigned[2]
                    command = command[1:]
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def check_command(words: Sequence[str]) -> None:
    """Parse a command as the program that it names would."""
    words = list(words)
    redirections = [index for index, word in enumerate(words) if set(word) <= set("<>")]
    program, *arguments = words[: min(redirections, default=len(words))]
    if program == "hmamba-asr":
        _check_cli(arguments)
    elif program == "torchrun":
        with _refusal():
            options = get_args_parser().parse_args(arguments)
        _check_python([options.training_script, *options.training_script_args])
    elif program in ("python", "python3"):
        _check_python(arguments)
    elif program == "pytest":
        _check_pytest(arguments)
    elif program in ("bash", "source", ".", "sbatch", "srun"):
        scripts = [word for word in arguments if not word.startswith("-")][:1]
        if scripts != [".venv/bin/activate"]:  # setup.sh makes it
            _require_files(scripts)
    elif "/" in program:
        _require_files([program])
        if not os.access(ROOT / program, os.X_OK):
            raise Refused(f"{program} is not executable")
    elif program == "pip":
        _check_extras(arguments)
    elif program not in FOREIGN:
        raise Refused(f"no rule for the program '{program}'")


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    """Make argparse's last word, and a ValueError, a refusal."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            yield
    except SystemExit as end:
        if end.code:
            raise Refused(said.getvalue() or str(end.code)) from end
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error


def _check_cli(arguments: list[str]) -> None:
    given: list[argparse.Namespace] = []
    with pytest.MonkeyPatch.context() as patch, _refusal():
        for command in cli.COMMANDS:
            patch.setattr(command, "run", lambda args: given.append(args) or 0)
        cli.main(arguments)
    known = {*ARCHIVES, *SUBSETS, "an4"}
    if arguments[0] == "download" and (unknown := set(given[0].splits) - known):
        raise Refused(f"there is no split {', '.join(unknown)} to download")


def _check_python(arguments: list[str]) -> None:
    script, *rest = arguments
    if script == "-m" and rest[0] == "pytest":
        _check_pytest(rest[1:])
    elif script == "-m":
        if importlib.util.find_spec(rest[0]) is None:
            raise Refused(f"there is no module {rest[0]}")
    elif script == "-c":
        check_python(rest[0])
    elif script in TRAINERS:
        _check_training(rest)
    else:
        _require_files([script])
        _check_script(script, rest)


def _check_training(arguments: list[str]) -> None:
    """Compose the YAML; build what nested overrides change. A run that a reader has may be of any YAML."""
    found = next((word for word in arguments if STANDS_FOR_A_RUN.fullmatch(word)), None)
    if found is None:
        _build(arguments)
        return
    refusals = []
    for path in sorted(ROOT.glob("hparams/*.yaml")):
        try:
            return _build([str(path) if word == found else word for word in arguments])
        except Refused as refusal:
            refusals.append(f"{path.name}: {refusal}")
    raise Refused("no YAML takes it: " + "; ".join(refusals))


def _build(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, _refusal():
        patch.chdir(ROOT)
        parsed = parse_command_line(arguments)
    if "{" in parsed.overrides:
        folder = "" if re.search("^data_folder:", parsed.overrides, re.MULTILINE) else "\ndata_folder: DIR"
        try:
            load_hparams(parsed.text, parsed.overrides + folder)
        except FileNotFoundError:
            return  # a file of the reader's
        except Exception as error:
            raise Refused(build_error_reason(error)) from error


class _Parsed(SystemExit):
    """Ends a script as soon as its arguments are parsed. Scripts let argparse's own exits pass."""

    def __init__(self, rest: list[str]) -> None:
        super().__init__(0)
        self.rest = rest


def _check_script(script: str, arguments: list[str]) -> None:
    """Run a script until its parser has accepted the arguments. What a parser leaves goes to train.py's."""
    originals = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_known_args")}

    def stop_after(name):
        def parse(parser, args=None, namespace=None):
            with pytest.MonkeyPatch.context() as inner:
                for other, original in originals.items():
                    inner.setattr(argparse.ArgumentParser, other, original)
                found = originals[name](parser, args, namespace)
            raise _Parsed(found[1] if isinstance(found, tuple) else [])

        return parse

    # A script may import the kernels in a way of its own: the tests' way comes first.
    for path in sorted((ROOT / "hmamba_asr" / "ops").glob("*/*kernels.py")):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    rest: list[str] = []
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ), _refusal():
        patch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        patch.syspath_prepend(str((ROOT / script).parent))
        for name in originals:
            patch.setattr(argparse.ArgumentParser, name, stop_after(name))
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except _Parsed as parsed:
            rest = parsed.rest
        else:
            raise Refused(f"{script} never parses its arguments")
    if rest:
        _check_training(rest)


def _check_pytest(arguments: list[str]) -> None:
    """Check paths and markers."""
    _require_files([word.partition("::")[0] for word in arguments if word.startswith("tests")])
    if "-m" in arguments:
        wanted = set(re.findall(r"\w+", arguments[arguments.index("-m") + 1])) - {"and", "not", "or"}
        declared = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        if unknown := wanted - set(declared):
            raise Refused(f"there is no marker {', '.join(unknown)}")


def _check_extras(arguments: list[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    declared = set(re.findall(r"^(\w+) = \[", text.partition("\n[")[0], re.MULTILINE))
    for word in arguments:
        extras = re.fullmatch(r"\.\[(.*)\]", word)
        if extras and (unknown := set(extras[1].split(",")) - declared):
            raise Refused(f"there is no extra {', '.join(unknown)}")


def _require_files(paths: Sequence[str]) -> None:
    for path in paths:
        if not (ROOT / path).exists():
            raise Refused(f"there is no {path}")


# ---- Python and YAML ----


def check_python(content: str) -> None:
    """Compile Python; what it imports of the package must exist and take the arguments that it gives."""
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        raise Refused(f"not Python: {error}") from error
    names: dict[str, object] = {}
    for node in ast.walk(tree):
        with contextlib.suppress(_Foreign):
            if isinstance(node, ast.ImportFrom):
                module = _import(node.module or "")
                for alias in node.names:
                    names[alias.asname or alias.name] = _attribute(module, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    names[alias.asname or alias.name] = _import(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            _attribute(names[node.value.id], node.attr)
        if isinstance(node, ast.Call) and (function := _resolve(node.func, names)) is not None:
            _require_arguments(function, node)


class _Foreign(Exception):
    """A module of others."""


def _import(name: str) -> object:
    if name.partition(".")[0] != "hmamba_asr":
        raise _Foreign
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Refused(str(error)) from error


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise Refused(str(error)) from error


def _resolve(node: ast.expr, names: dict[str, object]) -> object | None:
    """Return what an expression such as ``hmamba_asr.load`` or ``load`` stands for, if it is known."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _resolve(node.value, names)) is not None:
        return _attribute(owner, node.attr)
    return None


def _require_arguments(function: object, call: ast.Call) -> None:
    named = {each.arg: None for each in call.keywords if each.arg}
    if len(named) < len(call.keywords) or any(isinstance(each, ast.Starred) for each in call.args):
        return  # what * and ** hold is not known
    try:
        inspect.signature(function).bind(*call.args, **named)  # type: ignore[arg-type]
    except TypeError as error:
        raise Refused(f"{ast.unparse(call)}: {error}") from error


def check_yaml(content: str) -> None:
    """Parse YAML; the classes of ours, SpeechBrain's and PyTorch's that it names must exist."""
    try:
        tokens = list(yaml.scan(content))
        yaml.compose(content)
    except yaml.YAMLError as error:
        raise Refused(f"not YAML: {error}") from error
    for token in tokens:
        if isinstance(token, yaml.TagToken):
            tag = "".join(part or "" for part in token.value)
            kind, _, path = tag.partition(":")
            ours = path.partition(".")[0] in ("hmamba_asr", "speechbrain", "torch")
            if kind in ("!new", "!name", "!apply") and ours and locate(path) is None:
                raise Refused(f"there is no {path}")
