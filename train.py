#!/usr/bin/env python3
"""Train and evaluate a speech recogniser described by one YAML.

    python train.py hparams/conmamba_demo.yaml --data_folder demo_corpus
    torchrun --nproc-per-node 4 train.py hparams/conmamba_small_ls100.yaml --data_folder DIR

Any top-level key of the YAML can be overridden (``--seed 7``); ``--test_only`` evaluates what an earlier run
trained. Run the same command again to resume after an interruption.
"""

import logging

from hmamba_asr.evaluation.run import evaluate
from hmamba_asr.report.summary import render_table
from hmamba_asr.training.asr import ASRBrain, Preempted
from hmamba_asr.training.experiment import EXIT_PREEMPTED, Experiment, run_script

logger = logging.getLogger("train")


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
        logger.info(
            "SIGTERM: training is saved in %s; run the same command to go on.", hparams["output_folder"]
        )
        return EXIT_PREEMPTED
    described = {
        "name": experiment.name,
        "overrides": experiment.overrides,
        "hparams_text": experiment.hparams_text,
    }
    results = evaluate(brain, test_sets, **described)
    if results is not None:
        print(render_table([results]))
    return 0


if __name__ == "__main__":
    run_script(main)
