"""Weights: the average of a model's checkpoints, and pretrained files."""

from __future__ import annotations

from pathlib import Path

from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import Tensor


def best_average(
    checkpointer: Checkpointer, count: int, *, key: str = "WER"
) -> tuple[dict[str, Tensor], list[str]]:
    """Average the model's weights over its best checkpoints.

    Parameters
    ----------
    checkpointer : Checkpointer
        The checkpointer of the run; nothing is loaded through it.
    count : int
        Number of checkpoints with the lowest ``key``. If no checkpoint has the key, the newest one is taken.
    key : str
        Figure in the checkpoints by which they are compared.

    Returns
    -------
    weights : dict of str to Tensor
        The averaged state dict.
    names : list of str
        Names of the checkpoints that were averaged.

    Raises
    ------
    ValueError
        If there is no checkpoint.
    """
    newest = checkpointer.find_checkpoint()
    if newest is None:
        raise ValueError(
            f"there is no checkpoint in {checkpointer.checkpoints_dir}; train first (the same command "
            "without --test_only), or give the output_folder of a trained model."
        )
    best = checkpointer.find_checkpoints(min_key=key, max_num_checkpoints=count) or [newest]
    return average_checkpoints(best, "model"), [checkpoint.path.name for checkpoint in best]


def load_pretrained(pretrainer: Pretrainer, folder: Path | None = None) -> None:
    """Collect pretrained files, unless they are there already, and load them. Every rank calls it.

    Parameters
    ----------
    pretrainer : Pretrainer
        Names the files, and the objects that they are loaded into.
    folder : Path, optional
        Where the files are collected, in place of the pretrainer's own folder.

    Raises
    ------
    OSError
        If a file cannot be fetched.
    """
    if folder is not None:
        pretrainer.set_collect_in(folder)
    try:
        run_on_main(pretrainer.collect_files)
    except Exception as error:  # whatever the hub's client raises, the user can do the same about it
        files = ", ".join(map(str, pretrainer.paths.values()))
        raise OSError(
            f"the pretrained files ({files}) cannot be fetched: {error}. Restore the connection, or put the "
            "files into a local folder and train with --pretrained_source FOLDER."
        ) from error
    pretrainer.load_collected()
