"""Weights of a model, read from its checkpoints."""

from __future__ import annotations

from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints
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
