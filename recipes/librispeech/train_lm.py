#!/usr/bin/env python3
"""Train a Transformer language model for the beam search of a recogniser with the same tokenizer.

    python recipes/librispeech/train_lm.py hparams/lm/transformer_lm.yaml --tokenizer_file FILE \\
        --train_text "[FILE]" --valid_text "[FILE]"

Texts are files with a sentence a line, or manifests. Any top-level key of the YAML can be overridden. Run the
same command again to resume after an interruption; torchrun trains on several GPUs.

The output folder gets ``export/`` with lm.ckpt and tokenizer.ckpt, the form of SpeechBrain's published models
(``train.py --pretrained_source``), and lm.yaml, for recognisers with a tokenizer of their own
(``train.py --lm_folder``).
"""

import json
import re
import shutil
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process

from hmamba_asr.data.text import TextDataset
from hmamba_asr.data.tokenizer import load_tokenizer
from hmamba_asr.system.files import write_atomically
from hmamba_asr.system.screen import say_fact
from hmamba_asr.training.experiment import Experiment
from hmamba_asr.training.launch import run_script
from hmamba_asr.training.lm import LMBrain
from hmamba_asr.training.preparation import check_vocabulary


def main(argv: list[str]) -> int:
    experiment = Experiment(argv)
    hparams = experiment.hparams
    tokenizer = load_tokenizer(hparams["tokenizer_file"])
    check_vocabulary(tokenizer, hparams["vocab_size"])
    train_set, valid_set = (
        TextDataset(files, tokenizer=tokenizer, max_tokens=hparams["max_tokens"])
        for files in (hparams["train_text"], hparams["valid_text"])
    )
    say_fact("data", f"train {len(train_set):,} sentences, validation {len(valid_set):,}")
    brain = LMBrain.from_experiment(experiment)
    brain.fit(hparams["epoch_counter"], train_set, valid_set)
    checkpoints = brain.load_best()
    measured = {**brain.perplexity(valid_set), "checkpoints": checkpoints}
    if if_main_process():
        output = Path(hparams["output_folder"])
        export = output / "export"
        export.mkdir(parents=True, exist_ok=True)
        torch.save(brain.raw_model.state_dict(), export / "lm.ckpt")
        (export / "lm.yaml").write_text(_section(experiment.hparams_text, "model"), encoding="utf-8")
        shutil.copyfile(hparams["tokenizer_file"], export / "tokenizer.ckpt")
        with write_atomically(output / "perplexity.json") as file:
            file.write(json.dumps(measured, indent=2) + "\n")
        found = f"validation perplexity {measured['perplexity']:.2f} over {measured['tokens']:,} tokens"
        say_fact("result", f"{found}; the model is in {export}")
    return 0


def _section(text: str, key: str) -> str:
    """Return the block of a top-level key of a resolved YAML, and the comments up to the next key."""
    found = re.search(rf"^{key}:.*?(?=^\w|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"the YAML has no {key}"
    return found[0]


if __name__ == "__main__":
    run_script(main)
