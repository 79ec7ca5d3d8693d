"""From a YAML's data keys to datasets: write the manifests, fill the tokenizer, open the datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main

from hmamba_asr.data.librispeech import prepare_manifests
from hmamba_asr.data.loaders import load_dataset
from hmamba_asr.data.tokenizer import train_tokenizer
from hmamba_asr.models.weights import load_pretrained
from hmamba_asr.system.run_layout import RunLayout

Datasets = tuple[DynamicItemDataset, DynamicItemDataset, dict[str, DynamicItemDataset]]


def prepare_data(hparams: Mapping[str, Any]) -> Datasets:
    """Write the manifests (on the main process), fill the tokenizer and open the datasets.

    Returns
    -------
    train, validation : DynamicItemDataset
        All training splits together, and all validation splits.
    tests : dict
        A dataset for each test split.

    Raises
    ------
    ValueError, OSError
        If data are missing or bad, the tokenizer cannot be made or has another size than vocab_size, or
        pretrained files cannot be fetched.
    """
    splits = list(
        dict.fromkeys([*hparams["train_splits"], *hparams["valid_splits"], *hparams["test_splits"]])
    )
    manifests = _write_manifests(hparams, splits)
    tokenizer = _fill_tokenizer(hparams, [manifests[split] for split in hparams["train_splits"]])

    def dataset(names: Sequence[str]) -> DynamicItemDataset:
        return load_dataset(
            [manifests[split] for split in names], data_folder=hparams["data_folder"], tokenizer=tokenizer
        )

    tests = {split: dataset([split]) for split in hparams["test_splits"]}
    return dataset(hparams["train_splits"]), dataset(hparams["valid_splits"]), tests


def _write_manifests(hparams: Mapping[str, Any], splits: Sequence[str]) -> dict[str, Path]:
    """Write and return the manifest of each split; ``max_duration`` limits training splits only."""
    layout = RunLayout(hparams["output_folder"])
    trained = hparams["train_splits"]
    evaluated = [split for split in splits if split not in trained]
    for names, limits in ((trained, {"max_duration": hparams["max_duration"]}), (evaluated, {})):
        if not names:
            continue  # every evaluated split is a training split too
        run_on_main(
            prepare_manifests,
            kwargs={
                "data_folder": hparams["data_folder"],
                "manifest_folder": layout.manifests,
                "splits": names,
                "sample_rate": hparams["sample_rate"],
                "min_duration": hparams["min_duration"],
                "on_bad_data": hparams["on_bad_data"],
                **limits,
            },
        )
    return {split: layout.manifest(split) for split in splits}


def _fill_tokenizer(
    hparams: Mapping[str, Any], manifests: Sequence[Path]
) -> sentencepiece.SentencePieceProcessor:
    """Return the YAML's tokenizer: pretrained where the YAML has a pretrainer, otherwise trained here."""
    tokenizer = hparams["tokenizer"]
    if "pretrainer" in hparams:
        load_pretrained(hparams["pretrainer"])
    else:
        layout = RunLayout(hparams["output_folder"])
        run_on_main(
            train_tokenizer,
            kwargs={
                "manifest": list(manifests),
                "output_folder": layout.tokenizers,
                "vocab_size": hparams["vocab_size"],
                "model_type": hparams["tokenizer_type"],
            },
        )
        tokenizer.load(str(layout.tokenizer(hparams["tokenizer_type"], hparams["vocab_size"])))
    check_vocabulary(tokenizer, hparams["vocab_size"])
    return tokenizer


def check_vocabulary(tokenizer: sentencepiece.SentencePieceProcessor, vocab_size: int) -> None:
    """Refuse a tokenizer whose number of pieces is not ``vocab_size`` with a ValueError."""
    if tokenizer.get_piece_size() != vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_piece_size()} pieces and vocab_size is {vocab_size}; make "
            "them equal."
        )
