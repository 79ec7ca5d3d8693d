#!/usr/bin/env python3
"""Train and evaluate a speech recogniser described by one YAML.

    python train.py hparams/conmamba_demo.yaml --data_folder demo_corpus
    torchrun --nproc-per-node 4 train.py hparams/conmamba_small_ls100.yaml --data_folder DIR

Any top-level key of the YAML can be overridden (``--seed 7``); ``--test_only`` evaluates what an earlier run trained. Run the
same command again to resume after an interruption.
"""

import logging
import os
import sys

import torch.distributed as dist

from hmamba_asr.evaluation.report import render_table
from hmamba_asr.training.brain import ASRBrain, Preempted
from hmamba_asr.training.experiment import Experiment
from hmamba_asr.training.testing import evaluate

logger = logging.getLogger("train")
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 143  # 128 + SIGTERM: a scheduler tells "saved, run me again" from "done"


def main(argv: list[str]) -> int:
    experiment = Experiment(argv)
    hparams = experiment.hparams
    train_set, valid_set, test_sets = experiment.prepare()
    brain = ASRBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=experiment.run_opts,
        checkpointer=hparams["checkpointer"],
        tokenizer=hparams["tokenizer"],
    )
    try:
        brain.fit(hparams["epoch_counter"], train_set, valid_set)
    except Preempted:
        logger.info("SIGTERM: training is saved in %s; run the same command to go on.", hparams["output_folder"])
        return EXIT_PREEMPTED
    described = {"name": experiment.name, "overrides": experiment.overrides, "hparams_text": experiment.hparams_text}
    results = evaluate(brain, test_sets, **described)
    if results is not None:
        print(render_table([results]))
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        logger.debug("Traceback:", exc_info=True)  # into log.txt of the output folder, once that is there
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    distributed = dist.is_initialized() and code != EXIT_BAD_INPUT  # after an error the others may be waiting: torchrun ends them
    if distributed:
        # All ranks leave together and at once: now and then one aborts while it tears itself down (seen with gloo), and torchrun
        # then stops the others, which may still be writing results.
        dist.barrier()
    if distributed or code == EXIT_PREEMPTED:
        # At once: Python would wait for the loader's workers, which ignore SIGTERM. They end when they see that this process has.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
