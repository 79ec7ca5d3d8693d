"""The command line of a training script: a YAML, its variants, SpeechBrain's run options, and overrides."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from dataclasses import dataclass

import torch
import yaml
from speechbrain.utils.run_opts import RunOptions

from hmamba_asr.config.compose import compose
from hmamba_asr.config.difference import NO_CHANGE
from hmamba_asr.config.hparams import top_level_nodes


@dataclass
class CommandLine:
    """A parsed command line.

    Attributes
    ----------
    text : str
        The composed YAML, without overrides.
    run_opts : RunOptions
        SpeechBrain's options: device, precision, limits.
    overrides : str
        The values that replace the YAML's, as YAML text.
    source : str
        The YAML and its variants, as they were typed.
    """

    text: str
    run_opts: RunOptions
    overrides: str
    source: str

    def changes(self) -> dict[str, str]:
        """Return the overrides that change the experiment ({key: value as typed}), without ``NO_CHANGE``."""
        given = yaml.compose(self.overrides)
        return {
            key.value: self.overrides[value.start_mark.index : value.end_mark.index].strip()
            for key, value in (given.value if given else [])
            if key.value not in NO_CHANGE
        }


def parse_command_line(argv: list[str]) -> CommandLine:
    """Read a command line: ``YAML [--variant YAML ...] [--key value ...]``.

    Raises
    ------
    FileNotFoundError
        If a YAML does not exist.
    ValueError
        If the YAML has no key for an override, a word belongs to no option, or a variant does not fit the
        YAML.
    """
    argv, variants = _take_variants(argv)
    _refuse_stray_words(argv)
    path, run_opts, overrides = _RunOptions.from_command_line_args(argv)
    text = compose(path, variants)
    source = " + ".join([path, *variants])
    return CommandLine(
        text=text,
        run_opts=_with_backend(_with_numbers(run_opts)),
        overrides=_checked_overrides(text, overrides, run_opts, source),
        source=source,
    )


class _RunOptions(RunOptions):
    """SpeechBrain's options, spelled in full only.

    argparse would take ``--nonfinite`` for an abbreviation of ``--nonfinite_patience``.
    """

    @classmethod
    def _create_parser(cls) -> argparse.ArgumentParser:
        parser = RunOptions._create_parser()
        parser.allow_abbrev = False
        parser.epilog = (
            "--variant YAML [YAML ...] changes the YAML by variants, in their order (hparams/variants/). "
            "--KEY VALUE overrides any other top-level key of the YAML."
        )
        return parser


def _take_variants(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the words into those of every ``--variant`` and all others."""
    rest: list[str] = []
    variants: list[str] = []
    inside = False
    for index, word in enumerate(argv):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            inside = name == "--variant"
            if not inside:
                rest.append(word)
            elif equals:
                variants.append(value)
            elif index + 1 == len(argv) or argv[index + 1].startswith("--"):
                raise ValueError(
                    "--variant names no YAML; give one or several, such as hparams/variants/hmamba.yaml."
                )
        else:
            (variants if inside else rest).append(word)
    return rest, variants


def _refuse_stray_words(argv: list[str]) -> None:
    """Refuse a word that belongs to no option.

    SpeechBrain would append a word after a switch (``--noprogressbar true``) to the value of another option.
    """
    actions = _RunOptions._create_parser()._actions
    switches, many = (
        {name for action in actions if action.nargs == nargs for name in action.option_strings}
        for nargs in (0, "*")
    )
    previous, free, yaml_seen = "", 0, False
    for word in argv:
        if word.startswith("--"):
            name, equals, _ = word.partition("=")
            previous, free = name, 0 if equals or name in switches else len(argv) if name in many else 1
        elif free > 0:
            free -= 1
        elif not yaml_seen:
            yaml_seen = True
        else:
            reason = (
                f"{previous} is a switch and takes no value"
                if previous in switches
                else "options have the form --key value"
            )
            raise ValueError(f"'{word}' is one word too many: {reason}; quote a value that holds spaces.")


def _checked_overrides(text: str, overrides: str, run_opts: RunOptions, source: str) -> str:
    """Return the overrides, once it is sure that the YAML has a key for each.

    Run options that are keys of the YAML too (precision) join the overrides, so that the saved YAML says what
    was run.
    """
    try:
        # Nodes, not values: those may have tags.
        known = top_level_nodes(text)
        root = yaml.compose(overrides)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{source} with its overrides is not YAML: {' '.join(str(error).split())}."
        ) from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError(f"'{overrides}' is no option; overrides have the form --key value.")
    given = [(node.value, value) for node, value in root.value] if root else []
    for key, value in given:
        if [name for name, _ in given].count(key) > 1:
            raise ValueError(f"--{key} is given more than once; write it once, with all its parts.")
        if key not in known:
            near = difflib.get_close_matches(key, [*known, "variant", *RunOptions().as_dict()], n=1)
            hint = f" did you mean --{near[0]}?" if near else f" its keys are: {', '.join(known)}."
            raise ValueError(f"--{key} is no key of {source};{hint}")
        if isinstance(value, yaml.MappingNode) and not isinstance(known[key], yaml.MappingNode):
            raise ValueError(
                f"--{key}: {source} has a plain value there, whose parts cannot be overridden; "
                "edit a copy of it."
            )
    shared = {key: getattr(run_opts, key) for key in sorted(run_opts.overridden_args) if key in known}
    return "\n".join(
        [*filter(None, [overrides]), *(f"{key}: {json.dumps(value)}" for key, value in shared.items())]
    )


def _with_numbers(run_opts: RunOptions) -> RunOptions:
    """Turn ``--optimizer_step_limit``, which SpeechBrain leaves as text, into a number."""
    limit = run_opts.optimizer_step_limit
    if not isinstance(limit, str):
        return run_opts
    if not limit.isdigit():
        raise ValueError(f"--optimizer_step_limit is '{limit}'; give a number of steps.")
    return dataclasses.replace(run_opts, optimizer_step_limit=int(limit))


def _with_backend(run_opts: RunOptions) -> RunOptions:
    """Let several processes talk through gloo on a machine without a GPU, unless the user names a backend."""
    if torch.cuda.is_available() or "distributed_backend" in run_opts.overridden_args:
        return run_opts
    return dataclasses.replace(
        run_opts,
        distributed_backend="gloo",
        overridden_args=run_opts.overridden_args | {"distributed_backend"},
    )
