"""From a YAML's data keys to datasets: manifests, tokenizer, and what is read from them."""

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
        For missing or bad data, a tokenizer that cannot be made or has another size than vocab_size, or
        pretrained files that cannot be fetched.
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
    """Return the manifest of each split; ``max_duration`` holds for training splits only."""
    folder = Path(hparams["output_folder"]) / "manifests"
    trained = hparams["train_splits"]
    evaluated = [split for split in splits if split not in trained]
    for names, limits in ((trained, {"max_duration": hparams["max_duration"]}), (evaluated, {})):
        if not names:
            continue  # every evaluated split is a training split too
        run_on_main(
            prepare_manifests,
            kwargs={
                "data_folder": hparams["data_folder"],
                "manifest_folder": folder,
                "splits": names,
                "sample_rate": hparams["sample_rate"],
                "min_duration": hparams["min_duration"],
                "on_bad_data": hparams["on_bad_data"],
                **limits,
            },
        )
    return {split: folder / f"{split}.csv" for split in splits}


def _fill_tokenizer(
    hparams: Mapping[str, Any], manifests: Sequence[Path]
) -> sentencepiece.SentencePieceProcessor:
    """Return the YAML's tokenizer: pretrained where the YAML has a pretrainer, otherwise trained here."""
    tokenizer = hparams["tokenizer"]
    if "pretrainer" in hparams:
        _fetch_pretrained(hparams["pretrainer"])
    else:
        folder = Path(hparams["output_folder"]) / "tokenizer"
        run_on_main(
            train_tokenizer,
            kwargs={
                "manifest": list(manifests),
                "output_folder": folder,
                "vocab_size": hparams["vocab_size"],
                "model_type": hparams["tokenizer_type"],
            },
        )
        tokenizer.load(str(folder / f"{hparams['tokenizer_type']}{hparams['vocab_size']}.model"))
    check_vocabulary(tokenizer, hparams["vocab_size"])
    return tokenizer


def check_vocabulary(tokenizer: sentencepiece.SentencePieceProcessor, vocab_size: int) -> None:
    """Refuse a tokenizer whose number of pieces is not ``vocab_size`` with a ValueError."""
    if tokenizer.get_piece_size() != vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_piece_size()} pieces and vocab_size is {vocab_size}; make "
            "them equal."
        )


def _fetch_pretrained(pretrainer: Any) -> None:
    try:
        run_on_main(pretrainer.collect_files)
    except Exception as error:  # whatever the hub's client raises, a user can do one thing about it
        files = ", ".join(map(str, pretrainer.paths.values()))
        raise OSError(
            f"the pretrained files ({files}) could not be fetched: {error}. Give --pretrained_source a local "
            "folder that holds them, or restore the connection."
        ) from error
    pretrainer.load_collected()
