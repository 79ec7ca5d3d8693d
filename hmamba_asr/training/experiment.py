"""An experiment: the objects and the output folder of a training command."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_init_group, if_main_process

from hmamba_asr.config.hparams import build_error_reason, load_hparams, resolve, top_level_nodes
from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.memory import keep_freed_memory
from hmamba_asr.system.run_layout import RunLayout
from hmamba_asr.system.screen import say_fact
from hmamba_asr.training.command_line import parse_command_line
from hmamba_asr.training.first_screen import data_fact
from hmamba_asr.training.preparation import Datasets, prepare_data


class Experiment:
    """Builds the objects that a command line describes, and makes the output folder.

    Under torchrun it joins the other processes. The output folder gets hyperparams.yaml (the resolved YAML,
    complete by itself), the log, and a description of the environment.

    Attributes
    ----------
    hparams : dict
        The value or object of each key of the YAML.
    run_opts : RunOptions
        SpeechBrain's run options.
    name : str
        The YAML's stem with that of every variant: ``conmamba_mini+hmamba``.
    hparams_text : str
        The resolved YAML.
    overrides : dict
        What the command line changes about the experiment: {key: value as typed}.

    Raises
    ------
    FileNotFoundError
        If a YAML or the data folder does not exist.
    ValueError
        If the YAML has no key for an override, a word belongs to no option, a variant does not fit, a
        required value is missing, or an object cannot be built.
    """

    def __init__(self, argv: list[str]):
        command = parse_command_line(argv)
        self.run_opts = command.run_opts
        self.overrides = command.changes()
        if not torch.cuda.is_available():
            keep_freed_memory()
        ddp_init_group(self.run_opts)
        self.hparams_text = resolve(command.text, command.overrides)
        _seed_initial_weights(self.hparams_text)
        try:
            self.hparams = load_hparams(command.text, command.overrides)
        except (TypeError, ImportError) as error:  # an argument or a class that does not exist
            raise ValueError(f"{command.source} cannot be built: {build_error_reason(error)}.") from error
        self.name = str(self.hparams["name"])
        # Absent in a language model's YAML; None after --data_folder "$UNSET"
        data_folder = self.hparams.get("data_folder", ".") or ""
        if not data_folder or not Path(str(data_folder)).is_dir():
            raise FileNotFoundError(f"data_folder '{data_folder}' is not a folder; give --data_folder DIR.")
        sb.create_experiment_directory(
            experiment_directory=self.hparams["output_folder"],
            log_config=str(Path(__file__).with_name("logging.yaml")),
        )
        if if_main_process():
            with write_atomically(RunLayout(self.hparams["output_folder"]).hyperparams) as file:
                file.write(self.hparams_text)

    def prepare(self) -> Datasets:
        """Return the training, validation and test datasets, and say how large they are.

        See :func:`prepare_data`.
        """
        train, validation, tests = prepare_data(self.hparams)
        say_fact("data", data_fact(train, validation, tests))
        return train, validation, tests


def _seed_initial_weights(text: str) -> None:
    """Seed every generator, so that ``seed`` determines the initial weights."""
    node = top_level_nodes(text).get("seed")
    value = node.value if node else "missing"
    if not value.isdigit():
        raise ValueError(f"seed is {value}; give a whole number, 0 or above.")
    seed = int(value)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
