"""From a command line to ready data: arguments, manifests, tokenizer, datasets, with errors a user can act
on."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import speechbrain as sb
import torch
import torch.distributed as dist
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import ddp_init_group, run_on_main
from speechbrain.utils.run_opts import RunOptions

from hmamba_asr.config.difference import NO_CHANGE
from hmamba_asr.data.librispeech import prepare_manifests
from hmamba_asr.data.loaders import load_dataset
from hmamba_asr.data.tokenizer import train_tokenizer
from hmamba_asr.system.memory import keep_freed_memory

logger = logging.getLogger(__name__)
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 143  # 128 + SIGTERM: a scheduler tells "saved, run me again" from "done"


def run_script(main: Callable[[list[str]], int]) -> NoReturn:
    """End the process with what ``main`` makes of the command line; an error that a user can mend is one line
    on stderr."""
    failed = False
    try:
        code = main(sys.argv[1:])
    except SystemExit:  # argparse's: nothing has begun
        raise
    except (ValueError, OSError) as error:
        logger.debug("Traceback:", exc_info=True)  # into log.txt of the output folder, once that is there
        print(f"error: {error}", file=sys.stderr)
        code, failed = EXIT_BAD_INPUT, True
    except BaseException:  # a fault of the program, or Ctrl-C
        traceback.print_exc()
        code, failed = 1, True
    if dist.is_initialized() and not failed:  # after an error the others may be waiting: torchrun ends them
        # All ranks leave together: now and then one aborts while it tears itself down (seen with gloo), and
        # torchrun then stops the others, which may still be writing results.
        dist.barrier()
    # At once: Python would wait for the loader's workers, which ignore SIGTERM. They end when they see that
    # this process has.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Experiment:
    """A parsed command line: ``hparams`` (objects built), ``run_opts``, ``name`` (of the YAML),
    ``hparams_text`` (resolved), and ``overrides``, what the command line changes about the experiment: {key:
    text}.

    Joins the other processes when launched by torchrun and creates the output folder with the YAML, the log
    and the description of the environment.

    Raises
    ------
    FileNotFoundError
        If the YAML is not there.
    ValueError
        For an override that the YAML has no key for, a word that belongs to no option, or a required value
        that is not given.
    """

    def __init__(self, argv: list[str]):
        _refuse_stray_words(argv)
        file, run_opts, overrides = _RunOptions.from_command_line_args(argv)
        self.run_opts = _with_backend(_with_numbers(run_opts))
        if not torch.cuda.is_available():
            keep_freed_memory()
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"there is no YAML {path}; the repository's own stand in hparams/.")
        self.name = path.stem
        text = path.read_text(encoding="utf-8")
        overrides = _checked_overrides(text, overrides, run_opts, path)
        self.overrides = _changes(overrides)
        ddp_init_group(self.run_opts)
        self.hparams_text = resolve_references(text, overrides).read()
        _seed_initial_weights(self.hparams_text)
        try:
            self.hparams = load_hyperpyyaml(text, overrides)
        except (TypeError, ImportError) as error:  # an argument or a class that does not exist
            raise ValueError(f"{path} cannot be built: {' '.join(str(error).split())}.") from error
        # Absent in a language model's YAML; None after --data_folder "$UNSET"
        data_folder = self.hparams.get("data_folder", ".") or ""
        if not data_folder or not Path(str(data_folder)).is_dir():
            raise FileNotFoundError(f"data_folder '{data_folder}' is not a folder; give --data_folder DIR.")
        sb.create_experiment_directory(
            experiment_directory=self.hparams["output_folder"], hyperparams_to_save=file, overrides=overrides
        )

    def prepare(self) -> tuple[DynamicItemDataset, DynamicItemDataset, dict[str, DynamicItemDataset]]:
        """Manifests (validated on the main process), tokenizer, and the train, validation and test datasets.

        The test sets are a mapping from split to dataset, the others join their splits.
        """
        hparams = self.hparams
        splits = list(
            dict.fromkeys([*hparams["train_splits"], *hparams["valid_splits"], *hparams["test_splits"]])
        )
        manifest_folder = Path(hparams["output_folder"]) / "manifests"
        limits = {"min_duration": hparams["min_duration"], "sample_rate": hparams["sample_rate"]}
        where = {"data_folder": hparams["data_folder"], "manifest_folder": manifest_folder}
        train_only = {"max_duration": hparams["max_duration"]}
        evaluated = [s for s in splits if s not in hparams["train_splits"]]
        for names, extra in ((hparams["train_splits"], train_only), (evaluated, {})):
            if not names:
                continue  # every evaluated split is a training split too
            run_on_main(
                prepare_manifests,
                kwargs={**where, **limits, **extra, "splits": names, "on_bad_data": hparams["on_bad_data"]},
            )
        csv = {split: manifest_folder / f"{split}.csv" for split in splits}
        tokenizer = self._tokenizer([csv[s] for s in hparams["train_splits"]])

        def dataset(names: list[str]) -> DynamicItemDataset:
            return load_dataset(
                [csv[s] for s in names], data_folder=hparams["data_folder"], tokenizer=tokenizer
            )

        tests = {split: dataset([split]) for split in hparams["test_splits"]}
        return dataset(hparams["train_splits"]), dataset(hparams["valid_splits"]), tests

    def _tokenizer(self, manifests: list[Path]):
        """Fill the YAML's tokenizer: from its pretrainer where it has one, else trained on the training
        manifests."""
        hparams, tokenizer = self.hparams, self.hparams["tokenizer"]
        if "pretrainer" in hparams:
            pretrainer = hparams["pretrainer"]
            try:
                run_on_main(pretrainer.collect_files)
            except Exception as error:  # whatever the hub's client raises, a user can do one thing about it
                raise OSError(
                    f"the pretrained files ({', '.join(map(str, pretrainer.paths.values()))}) could not be had: {error}. Give "
                    "--pretrained_source a local folder that holds them, or restore the connection."
                ) from error
            pretrainer.load_collected()
        else:
            folder = Path(hparams["output_folder"]) / "tokenizer"
            run_on_main(
                train_tokenizer,
                kwargs={
                    "manifest": manifests,
                    "output_folder": folder,
                    "vocab_size": hparams["vocab_size"],
                    "model_type": hparams["tokenizer_type"],
                },
            )
            tokenizer.load(str(folder / f"{hparams['tokenizer_type']}{hparams['vocab_size']}.model"))
        if tokenizer.get_piece_size() != hparams["vocab_size"]:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_piece_size()} pieces and vocab_size is {hparams['vocab_size']}; "
                "make them equal."
            )
        return tokenizer


class _RunOptions(RunOptions):
    """SpeechBrain's options, in full only: argparse takes ``--nonfinite`` for an abbreviation of
    ``--nonfinite_patience``."""

    @classmethod
    def _create_parser(cls):
        parser = RunOptions._create_parser()
        parser.allow_abbrev = False
        return parser


def _refuse_stray_words(argv: list[str]) -> None:
    """SpeechBrain glues a word that follows a switch (``--noprogressbar true``) to the value of some other
    option."""
    actions = _RunOptions._create_parser()._actions
    switches, many = (
        {name for action in actions if action.nargs == nargs for name in action.option_strings}
        for nargs in (0, "*")
    )
    previous, free, yaml_seen = None, 0, False
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


def _checked_overrides(text: str, overrides: str, run_opts: RunOptions, path: Path) -> str:
    """Refuse overrides that the YAML has no key for, before anything is built.

    Run options that stand in the YAML too (precision) join the overrides, so that the saved YAML says what
    was run.
    """
    try:
        known = {
            key.value: node for key, node in yaml.compose(text).value
        }  # nodes, not values: those may have tags
        given = yaml.compose(overrides)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} with its overrides is not YAML: {' '.join(str(error).split())}.") from error
    if given is not None and not isinstance(given, yaml.MappingNode):
        raise ValueError(f"'{overrides}' is no option; overrides have the form --key value.")
    given = [(node.value, value) for node, value in given.value] if given else []
    for key, value in given:
        if [name for name, _ in given].count(key) > 1:
            raise ValueError(f"--{key} is given more than once; write it once, with all its parts.")
        if key not in known:
            near = difflib.get_close_matches(key, [*known, *RunOptions().as_dict()], n=1)
            hint = f" did you mean --{near[0]}?" if near else f" its keys are: {', '.join(known)}."
            raise ValueError(f"--{key} is no key of {path};{hint}")
        if isinstance(value, yaml.MappingNode) and not isinstance(known[key], yaml.MappingNode):
            raise ValueError(
                f"--{key}: {path} has a plain value there, whose parts cannot be overridden; edit a copy of it."
            )
    shared = {key: getattr(run_opts, key) for key in sorted(run_opts.overridden_args) if key in known}
    return "\n".join(
        [*filter(None, [overrides]), *(f"{key}: {json.dumps(value)}" for key, value in shared.items())]
    )


def _changes(overrides: str) -> dict[str, str]:
    """Overrides by key, as they were typed, without ``NO_CHANGE``."""
    given = yaml.compose(overrides)
    return {
        key.value: overrides[value.start_mark.index : value.end_mark.index].strip()
        for key, value in (given.value if given else [])
        if key.value not in NO_CHANGE
    }


def _with_numbers(run_opts: RunOptions) -> RunOptions:
    """SpeechBrain hands ``--optimizer_step_limit`` over as text, and would compare it with a number once
    training runs."""
    limit = run_opts.optimizer_step_limit
    if not isinstance(limit, str):
        return run_opts
    if not limit.isdigit():
        raise ValueError(f"--optimizer_step_limit is '{limit}'; give a number of steps.")
    return dataclasses.replace(run_opts, optimizer_step_limit=int(limit))


def _seed_initial_weights(text: str) -> None:
    """Building the YAML's objects draws their weights: seed first, so that they are a function of ``seed``
    alone."""
    node = {key.value: node for key, node in yaml.compose(text).value}.get("seed")
    if node is None or not node.value.isdigit():
        raise ValueError(f"seed is {node.value if node else 'missing'}; give a whole number, 0 or above.")
    seed = int(node.value)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _with_backend(run_opts: RunOptions) -> RunOptions:
    """torchrun on a machine without a GPU means gloo, unless the user says otherwise."""
    if torch.cuda.is_available() or "distributed_backend" in run_opts.overridden_args:
        return run_opts
    chosen = {
        "distributed_backend": "gloo",
        "overridden_args": run_opts.overridden_args | {"distributed_backend"},
    }
    return dataclasses.replace(run_opts, **chosen)
