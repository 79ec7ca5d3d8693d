"""An experiment: the objects and the output folder of a command line; and how a training script ends."""

from __future__ import annotations

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
from speechbrain.utils.distributed import ddp_init_group, if_main_process

from hmamba_asr.config.hparams import load_hparams, resolve, top_level_nodes
from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.memory import keep_freed_memory
from hmamba_asr.system.run_layout import RunLayout
from hmamba_asr.training.command_line import parse_command_line
from hmamba_asr.training.preparation import Datasets, prepare_data
from hmamba_asr.training.trainer import Preempted

logger = logging.getLogger(__name__)
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 143  # 128 + SIGTERM: a scheduler tells "saved, run me again" from "done"


def run_script(main: Callable[[list[str]], int]) -> NoReturn:
    """End the process with what ``main`` returns for the command line.

    After an error that a user can mend, stderr has one line and the exit code is 2.
    """
    failed = False
    try:
        code = main(sys.argv[1:])
    except SystemExit:  # argparse's: nothing has begun
        raise
    except Preempted as preempted:  # all ranks leave together, as after a finished run
        logger.info("%s", preempted)
        code = EXIT_PREEMPTED
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
            raise ValueError(f"{command.source} cannot be built: {' '.join(str(error).split())}.") from error
        self.name = str(self.hparams["name"])
        # Absent in a language model's YAML; None after --data_folder "$UNSET"
        data_folder = self.hparams.get("data_folder", ".") or ""
        if not data_folder or not Path(str(data_folder)).is_dir():
            raise FileNotFoundError(f"data_folder '{data_folder}' is not a folder; give --data_folder DIR.")
        sb.create_experiment_directory(experiment_directory=self.hparams["output_folder"])
        if if_main_process():
            with write_atomically(RunLayout(self.hparams["output_folder"]).hyperparams) as file:
                file.write(self.hparams_text)

    def prepare(self) -> Datasets:
        """Return the training, validation and test datasets; see :func:`prepare_data`."""
        return prepare_data(self.hparams)


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
