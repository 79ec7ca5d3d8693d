#!/usr/bin/env python3
"""Train and evaluate a speech recogniser described by one YAML.

    python train.py hparams/conmamba_demo.yaml --data_folder demo_corpus
    torchrun --nproc-per-node 4 train.py hparams/conmamba_small_ls100.yaml --data_folder DIR

Any top-level key of the YAML can be overridden (``--seed 7``); ``--test_only`` evaluates what an earlier run
trained. Run the same command again to resume after an interruption.
"""

from hmamba_asr.evaluation.run import evaluate
from hmamba_asr.report.run_text import describe_run
from hmamba_asr.training.asr import ASRBrain
from hmamba_asr.training.experiment import Experiment
from hmamba_asr.training.launch import run_script


def main(argv: list[str]) -> int:
    experiment = Experiment(argv)
    train_set, valid_set, test_sets = experiment.prepare()
    brain = ASRBrain.from_experiment(experiment)
    brain.fit(experiment.hparams["epoch_counter"], train_set, valid_set)
    system = brain.trained_system(
        name=experiment.name, hparams_text=experiment.hparams_text, overrides=experiment.overrides
    )
    results = evaluate(system, test_sets)
    if results is not None:
        print(describe_run(results, system.output_folder))
    return 0


if __name__ == "__main__":
    run_script(main)
