#!/usr/bin/env python3
"""Train a Transformer language model for the beam search of a recogniser with the same tokenizer.

    python recipes/librispeech/train_lm.py hparams/lm/transformer_lm.yaml --tokenizer_file FILE --train_text
    "[FILE]" \\
        --valid_text "[FILE]"

Texts are files with a sentence a line, or manifests. Any top-level key of the YAML can be overridden; run the
same command again to resume; torchrun trains on several GPUs. Leaves ``export/`` in the output folder:
lm.ckpt and tokenizer.ckpt, the form of SpeechBrain's published models, which ``train.py`` takes as
``--pretrained_source``, and lm.yaml, with which YAMLs that have a tokenizer of their own take the folder as
``--lm_folder``.
"""

import json
import logging
import re
import shutil
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process

from hmamba_asr.data.text import TextDataset
from hmamba_asr.data.tokenizer import load_tokenizer
from hmamba_asr.evaluation.run import load_best
from hmamba_asr.training.asr import Preempted
from hmamba_asr.training.experiment import EXIT_PREEMPTED, Experiment, run_script
from hmamba_asr.training.lm import LMBrain

logger = logging.getLogger("train_lm")


def main(argv: list[str]) -> int:
    experiment = Experiment(argv)
    hparams = experiment.hparams
    tokenizer = load_tokenizer(hparams["tokenizer_file"])
    if tokenizer.get_piece_size() != hparams["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_piece_size()} pieces and vocab_size is {hparams['vocab_size']}; make them equal."
        )
    train_set, valid_set = (
        TextDataset(files, tokenizer=tokenizer, max_tokens=hparams["max_tokens"])
        for files in (hparams["train_text"], hparams["valid_text"])
    )
    brain = LMBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=experiment.run_opts,
        checkpointer=hparams["checkpointer"],
        tokenizer=tokenizer,
    )
    try:
        brain.fit(hparams["epoch_counter"], train_set, valid_set)
    except Preempted:
        logger.info(
            "SIGTERM: training is saved in %s; run the same command to go on.", hparams["output_folder"]
        )
        return EXIT_PREEMPTED
    checkpoints = load_best(brain)
    found = {**brain.perplexity(valid_set), "checkpoints": checkpoints}
    if if_main_process():
        export = Path(hparams["output_folder"]) / "export"
        export.mkdir(parents=True, exist_ok=True)
        torch.save(brain.raw_model.state_dict(), export / "lm.ckpt")
        (export / "lm.yaml").write_text(_section(experiment.hparams_text, "model"), encoding="utf-8")
        shutil.copyfile(hparams["tokenizer_file"], export / "tokenizer.ckpt")
        (Path(hparams["output_folder"]) / "perplexity.json").write_text(
            json.dumps(found, indent=2) + "\n", encoding="utf-8"
        )
        print(
            f"validation perplexity {found['perplexity']:.2f} over {found['tokens']} tokens; model in {export}"
        )
    return 0


def _section(text: str, key: str) -> str:
    """The block of a resolved YAML under a top-level key; comments of the next one come with it."""
    return re.search(rf"^{key}:.*?(?=^\w|\Z)", text, flags=re.DOTALL | re.MULTILINE)[0]


if __name__ == "__main__":
    run_script(main)
