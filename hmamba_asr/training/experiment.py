"""From a command line to ready data: arguments, manifests, tokenizer, datasets, with errors a user can act on."""

from __future__ import annotations

import ctypes
import dataclasses
import difflib
import logging
import re
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import ddp_init_group, run_on_main
from speechbrain.utils.run_opts import RunOptions

from hmamba_asr.data.dataset import load_dataset
from hmamba_asr.data.librispeech import prepare_manifests
from hmamba_asr.data.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)


class Experiment:
    """A parsed command line: ``hparams`` (objects built), ``run_opts``, ``name`` (of the YAML) and ``hparams_text`` (resolved).

    Joins the other processes when launched by torchrun and creates the output folder with the YAML, the log and the
    description of the environment.

    Raises
    ------
    FileNotFoundError
        If the YAML is not there.
    ValueError
        For an override that the YAML has no key for, or a required value that is not given.
    """

    def __init__(self, argv: list[str]):
        file, run_opts, overrides = sb.parse_arguments(argv)
        self.run_opts = _with_backend(run_opts)
        if not torch.cuda.is_available():
            _keep_freed_memory()
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"there is no YAML {path}; the repository's own stand in hparams/.")
        self.name = path.stem
        text = path.read_text(encoding="utf-8")
        _check_overrides(text, overrides, path)
        ddp_init_group(self.run_opts)
        self.hparams = load_hyperpyyaml(text, overrides)
        self.hparams_text = resolve_references(text, overrides).read()
        if not str(self.hparams["data_folder"]) or not Path(self.hparams["data_folder"]).is_dir():
            raise FileNotFoundError(f"data_folder '{self.hparams['data_folder']}' is not a folder; give --data_folder DIR.")
        sb.create_experiment_directory(
            experiment_directory=self.hparams["output_folder"], hyperparams_to_save=file, overrides=overrides
        )

    def prepare(self) -> tuple[DynamicItemDataset, DynamicItemDataset, dict[str, DynamicItemDataset]]:
        """Manifests (validated on the main process), tokenizer, and the train, validation and test datasets.

        The test sets are a mapping from split to dataset, the others join their splits.
        """
        hparams = self.hparams
        splits = list(dict.fromkeys([*hparams["train_splits"], *hparams["valid_splits"], *hparams["test_splits"]]))
        manifest_folder = Path(hparams["output_folder"]) / "manifests"
        limits = {"min_duration": hparams["min_duration"], "sample_rate": hparams["sample_rate"]}
        where = {"data_folder": hparams["data_folder"], "manifest_folder": manifest_folder}
        train_only = {"max_duration": hparams["max_duration"]}
        evaluated = [s for s in splits if s not in hparams["train_splits"]]
        for names, extra in ((hparams["train_splits"], train_only), (evaluated, {})):
            run_on_main(
                prepare_manifests, kwargs={**where, **limits, **extra, "splits": names, "on_bad_data": hparams["on_bad_data"]}
            )
        csv = {split: manifest_folder / f"{split}.csv" for split in splits}
        tokenizer = self._tokenizer([csv[s] for s in hparams["train_splits"]])

        def dataset(names: list[str]) -> DynamicItemDataset:
            return load_dataset([csv[s] for s in names], data_folder=hparams["data_folder"], tokenizer=tokenizer)

        tests = {split: dataset([split]) for split in hparams["test_splits"]}
        return dataset(hparams["train_splits"]), dataset(hparams["valid_splits"]), tests

    def _tokenizer(self, manifests: list[Path]):
        """Fill the YAML's tokenizer: from its pretrainer where it has one, else trained on the training manifests."""
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
                    "manifest": manifests, "output_folder": folder, "vocab_size": hparams["vocab_size"],
                    "model_type": hparams["tokenizer_type"],
                },
            )  # fmt: skip
            tokenizer.load(str(folder / f"{hparams['tokenizer_type']}{hparams['vocab_size']}.model"))
        if tokenizer.get_piece_size() != hparams["vocab_size"]:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_piece_size()} pieces and vocab_size is {hparams['vocab_size']}; "
                "make them equal."
            )
        return tokenizer


def _check_overrides(text: str, overrides: str, path: Path) -> None:
    """Refuse an override whose key the YAML does not have, before anything is built."""
    known = re.findall(r"^(\w+):", text, flags=re.MULTILINE)
    options = [f for f in RunOptions().as_dict()]
    for key in yaml.safe_load(overrides or "{}") or {}:
        if key not in known:
            near = difflib.get_close_matches(str(key), [*known, *options], n=1)
            hint = f" did you mean --{near[0]}?" if near else f" its keys are: {', '.join(known)}."
            raise ValueError(f"--{key} is no key of {path};{hint}")


def _with_backend(run_opts: RunOptions) -> RunOptions:
    """torchrun on a machine without a GPU means gloo, unless the user says otherwise."""
    if torch.cuda.is_available() or "distributed_backend" in run_opts.overridden_args:
        return run_opts
    chosen = {"distributed_backend": "gloo", "overridden_args": run_opts.overridden_args | {"distributed_backend"}}
    return dataclasses.replace(run_opts, **chosen)


def _keep_freed_memory() -> None:
    """On CPU under glibc, keep freed tensors' pages in the process.

    By default every large tensor is mapped anew and its pages are cleared by the kernel at first touch, which costs a fifth of
    the training time of a small model.
    """
    m_trim_threshold, m_mmap_threshold, unlimited = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc: nothing to do
        return
    mallopt(m_mmap_threshold, unlimited)
    mallopt(m_trim_threshold, unlimited)
