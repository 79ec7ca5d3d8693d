"""Weights of a model out of its checkpoints."""

from __future__ import annotations

from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints


def best_average(checkpointer: Checkpointer, count: int, *, key: str = "WER") -> tuple[dict, list[str]]:
    """The model's weights averaged over the ``count`` checkpoints with the lowest ``key`` (the newest one if
    none has it), and their names.

    Raises
    ------
    ValueError
        If there is no checkpoint.
    """
    newest = checkpointer.find_checkpoint()
    if newest is None:
        raise ValueError(
            f"there is no checkpoint in {checkpointer.checkpoints_dir}; train first (the same command without "
            "--test_only), or give the output_folder of a trained model."
        )
    best = checkpointer.find_checkpoints(min_key=key, max_num_checkpoints=count) or [newest]
    return average_checkpoints(best, "model"), [checkpoint.path.name for checkpoint in best]
