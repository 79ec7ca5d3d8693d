"""SpeechBrain's Checkpointer, made safe against being killed while it writes or deletes."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only

from hmamba_asr.system.files import flush_to_disk

logger = logging.getLogger(__name__)
PARTIAL_PREFIX = ".partial-"


class AtomicCheckpointer(Checkpointer):
    """A Checkpointer whose checkpoints have all their files, or do not exist.

    SpeechBrain first writes the file that makes a folder count as a checkpoint, and the parameters after it.
    A process that is killed in between leaves a "newest checkpoint" that cannot be loaded. Here a checkpoint
    is written under another name, flushed to disk and then renamed; deletion renames first. What a killed run
    leaves behind is removed at the next start.

    Reading and averaging weights for use is the work of :mod:`hmamba_asr.models.weights`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._remove_leftovers()

    @main_process_only
    def _remove_leftovers(self) -> None:
        for leftover in Path(self.checkpoints_dir).glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _new_checkpoint_dirpath(self) -> Path:
        final = super()._new_checkpoint_dirpath()
        return final.with_name(PARTIAL_PREFIX + final.name)

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        final = super()._custom_checkpoint_dirpath(name)
        return final.with_name(PARTIAL_PREFIX + final.name)

    def save_checkpoint(self, *args: Any, verbosity: int = logging.INFO, **kwargs: Any) -> Checkpoint | None:
        """Save as SpeechBrain does, atomically. Every rank returns once the checkpoint is in place.

        Raises
        ------
        OSError
            If the checkpoint cannot be written. Earlier ones are intact.
        """
        saved = None
        try:
            partial = super().save_checkpoint(*args, verbosity=logging.DEBUG, **kwargs)
            if if_main_process():
                saved = self._put_in_place(partial)
                logger.log(verbosity, "Saved the checkpoint %s.", saved.path)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when the disk is full
            self._remove_leftovers()
            raise OSError(
                f"the checkpoint could not be written to {self.checkpoints_dir} ({_one_line(error)}); "
                "earlier checkpoints are intact: free disk space and run the same command to go on from the "
                "last one."
            ) from error
        ddp_barrier()
        return saved

    @staticmethod
    def _put_in_place(partial: Checkpoint) -> Checkpoint:
        for path in partial.path.iterdir():
            flush_to_disk(path)
        final = partial.path.with_name(partial.path.name.removeprefix(PARTIAL_PREFIX))
        os.replace(partial.path, final)
        flush_to_disk(final.parent)
        return Checkpoint(
            final, partial.meta, {name: final / path.name for name, path in partial.paramfiles.items()}
        )

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load as SpeechBrain does, to resume.

        Raises
        ------
        ValueError
            If the checkpoint does not fit the model that the YAML describes.
        """
        try:
            super().load_checkpoint(checkpoint)
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint {checkpoint.path} does not fit the model that the YAML describes "
                f"({_one_line(error)}); undo the change of the YAML, or choose another output_folder to "
                "start anew."
            ) from error

    def keep_only(self, *, num_to_keep: int, min_key: str) -> None:
        """Delete all checkpoints but the newest and the ``num_to_keep`` with the lowest ``min_key``.

        A checkpoint without the key stays only while it is the newest. Epochs that did not measure the key
        leave such checkpoints, and so do checkpoints within an epoch.
        """
        kept = {c.path for c in self.find_checkpoints(min_key=min_key, max_num_checkpoints=num_to_keep)}
        kept.add(self.find_checkpoint().path)
        self._delete([c for c in self.list_checkpoints() if c.path not in kept])

    def save_within_epoch(self) -> None:
        """Save a checkpoint within an epoch, and delete the previous one of this kind."""
        older = [c for c in self.list_checkpoints() if INTRA_EPOCH_CKPT_FLAG in c.meta]
        self.save_checkpoint(meta={INTRA_EPOCH_CKPT_FLAG: True}, end_of_epoch=False, verbosity=logging.DEBUG)
        self._delete(older)

    def _delete(self, checkpoints: list[Checkpoint]) -> None:
        ddp_barrier()  # no rank may still be looking at what the main process deletes
        if if_main_process():
            for checkpoint in checkpoints:
                doomed = checkpoint.path.with_name(PARTIAL_PREFIX + checkpoint.path.name)
                os.replace(checkpoint.path, doomed)
                shutil.rmtree(doomed)
        ddp_barrier()


def _one_line(error: Exception, limit: int = 300) -> str:
    """Shorten an error to one line: PyTorch lists each parameter that does not fit on a line of its own."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."
