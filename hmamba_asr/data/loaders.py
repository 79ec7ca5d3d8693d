"""From manifests to SpeechBrain datasets and loaders.

Every rank sees the same sequence of training batches and takes every ``world_size``-th of them. Training on W
ranks therefore goes through exactly the batches that one process goes through with W accumulation steps. Only
the samplers draw random numbers, and their order is a function of (seed, epoch). That is why a killed run can
continue where it stopped.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from sentencepiece import SentencePieceProcessor
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler, ReproducibleRandomSampler
from torch.utils.data import BatchSampler, Dataset, Sampler

from hmamba_asr.data.audio import read_audio
from hmamba_asr.data.manifest import read_manifest
from hmamba_asr.system.ranks import Ranks

logger = logging.getLogger(__name__)


# ---- Dataset -------------------------------------------------------------------------------------------


def load_dataset(
    manifests: Sequence[str | Path], *, data_folder: str | Path, tokenizer: SentencePieceProcessor
) -> DynamicItemDataset:
    """Load one or several manifests as one dataset.

    An item has ``id``, ``sig`` (float32 (S,), the samples), ``wrd`` (the transcript), ``duration`` (seconds)
    and ``tokens`` (int64 (U,), without the unknown piece).

    Parameters
    ----------
    manifests
        The CSV files.
    data_folder
        The corpus' folder, which ``$data_root`` in the manifests stands for.
    tokenizer
        Turns transcripts into tokens.

    Raises
    ------
    ValueError
        If two manifests share an utterance ID.
    """
    rows: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        part = {
            row.id: {"wav": str(row.audio), "duration": row.duration, "wrd": row.text}
            for row in read_manifest(manifest, data_folder=data_folder).values()
        }
        if shared := rows.keys() & part.keys():
            raise ValueError(
                f"utterance {min(shared)} (and {len(shared) - 1} more) stands in {manifest} and in another "
                "manifest of the same list; name each split once."
            )
        rows.update(part)
    unknown = tokenizer.unk_id()
    warned: set[str] = set()

    def read(wav: str) -> torch.Tensor:
        return torch.from_numpy(read_audio(wav)[0])

    def tokenize(utterance: str, wrd: str) -> torch.Tensor:
        tokens = tokenizer.encode(wrd)
        if unknown in tokens:  # the unknown piece shares its id with the CTC blank and cannot be a label
            tokens = [t for t in tokens if t != unknown]
            if not warned:
                warned.add(utterance)
                logger.warning(
                    "The tokenizer does not know every character of utterance %s ('%s'); unknown pieces are "
                    "left out of the labels, here and in other utterances.",
                    utterance,
                    wrd,
                )
        return torch.tensor(tokens, dtype=torch.long)

    return DynamicItemDataset(
        rows,
        dynamic_items=[
            {"func": read, "takes": ["wav"], "provides": "sig"},
            {"func": tokenize, "takes": ["id", "wrd"], "provides": "tokens"},
        ],
        output_keys=["id", "sig", "wrd", "duration", "tokens"],
    )


# ---- Samplers ------------------------------------------------------------------------------------------


class EpochBatches(Protocol):
    """Batches of indices whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from now on."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def __iter__(self) -> Iterator[list[int]]:
        """Go through the batches of the epoch."""


class ShuffledBatches(BatchSampler):
    """Batches of a fixed number of items, in an order that depends on (seed, epoch) alone.

    Parameters
    ----------
    dataset
        The items.
    batch_size
        Items of a batch. The last batch of an epoch may have fewer.
    seed
        Of the order.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int) -> None:
        self._order = ReproducibleRandomSampler(dataset, seed=seed)
        super().__init__(self._order, batch_size, drop_last=False)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from now on."""
        self._order.set_epoch(epoch)


class RankShare(Sampler[list[int]]):
    """The batches of one rank: every ``world_size``-th, from the batch with the rank's own number on.

    All ranks get equally many: if the last round is incomplete, the first batches of the epoch fill it up.
    (SpeechBrain's wrapper for this purpose fails when the share of a rank is a single batch.)

    Parameters
    ----------
    batches
        The batches of all ranks.
    ranks
        Which rank this is, of how many.
    """

    def __init__(self, batches: EpochBatches, ranks: Ranks) -> None:
        self.batches, self.ranks = batches, ranks

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from now on."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batches) // self.ranks.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.batches)
        missing = len(self) * self.ranks.world_size - len(order)
        filled = order + list(islice(cycle(order), missing))
        return iter(filled[self.ranks.rank :: self.ranks.world_size])


# ---- Loaders -------------------------------------------------------------------------------------------


def train_loader(
    dataset: Dataset, ranks: Ranks, *, batch_size: int, seed: int, num_workers: int
) -> SaveableDataLoader:
    """Load batches of a fixed number of random utterances (or sentences).

    Parameters
    ----------
    dataset
        The items.
    ranks
        Which rank this is, of how many.
    batch_size
        Items of a batch, on each rank.
    seed
        Of the order.
    num_workers
        Processes that read items; 0 reads them in this process.
    """
    batches = ShuffledBatches(dataset, batch_size=batch_size, seed=seed)
    return _loader(dataset, RankShare(batches, ranks), num_workers)


def dynamic_train_loader(
    dataset: DynamicItemDataset,
    ranks: Ranks,
    *,
    max_batch_seconds: float,
    num_buckets: int,
    max_batch_size: int | None = None,
    seed: int,
    num_workers: int,
) -> SaveableDataLoader:
    """Load batches of utterances of similar durations, by SpeechBrain's ``DynamicBatchSampler``.

    Parameters
    ----------
    dataset
        The utterances, with their ``duration``.
    ranks
        Which rank this is, of how many.
    max_batch_seconds
        Seconds of audio, padding included, that a batch has at most, on each rank.
    num_buckets
        Number of duration classes. A batch takes its utterances from one class.
    max_batch_size
        Utterances that a batch has at most. None sets no limit.
    seed
        Of the order.
    num_workers
        Processes that read items; 0 reads them in this process.

    Raises
    ------
    ValueError
        If an utterance is longer than ``max_batch_seconds``.
    """
    longest = max(row["duration"] for row in dataset.data.values())
    if longest > max_batch_seconds:
        raise ValueError(
            f"the longest training utterance lasts {longest:.1f} s and max_batch_seconds is "
            f"{max_batch_seconds}; raise it, or lower max_duration to leave such utterances out."
        )
    batches = DynamicBatchSampler(
        dataset,
        max_batch_length=max_batch_seconds,
        num_buckets=num_buckets,
        max_batch_ex=max_batch_size,
        length_func=lambda row: row["duration"],
        shuffle=True,
        batch_ordering="random",
        seed=seed,
    )
    return _loader(dataset, RankShare(batches, ranks), num_workers)


def ordered_loader(
    dataset: Dataset, ranks: Ranks, *, batch_size: int, num_workers: int
) -> SaveableDataLoader:
    """Load every ``world_size``-th item in the dataset's order, in batches of ``batch_size``.

    Parameters
    ----------
    dataset
        The items.
    ranks
        Which rank this is, of how many.
    batch_size
        Items of a batch. The last batch may have fewer.
    num_workers
        Processes that read items; 0 reads them in this process.
    """
    order = range(ranks.rank, len(dataset), ranks.world_size)  # type: ignore[arg-type]
    batches = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    return _loader(dataset, batches, num_workers)


def eval_loader(
    dataset: DynamicItemDataset,
    ranks: Ranks,
    *,
    max_batch_seconds: float,
    max_batch_size: int,
    num_workers: int,
    skip: int = 0,
) -> SaveableDataLoader:
    """Load this rank's utterances for evaluation, the longest first.

    The utterances are dealt out to the ranks in the order of their durations. So the shares differ by less
    than the longest utterance lasts.

    Parameters
    ----------
    dataset
        The utterances, with their ``duration``.
    ranks
        Which rank this is, of how many.
    max_batch_seconds
        Seconds of audio, padding included, that a batch has at most. A longer utterance is a batch of its
        own.
    max_batch_size
        Utterances that a batch has at most.
    num_workers
        Processes that read items; 0 reads them in this process.
    skip
        Number of batches at the beginning that are left out, because they are done.
    """
    order = sorted(range(len(dataset)), key=lambda i: -dataset.data[dataset.data_ids[i]]["duration"])
    batches: list[list[int]] = []
    for index in order[ranks.rank :: ranks.world_size]:
        if batches:
            longest = dataset.data[dataset.data_ids[batches[-1][0]]]["duration"]
            room = min(max_batch_size, int(max_batch_seconds / longest))
        if not batches or len(batches[-1]) >= max(1, room):
            batches.append([])
        batches[-1].append(index)
    return _loader(dataset, batches[skip:], num_workers)


def _loader(dataset: Dataset, batches: Iterable[list[int]], num_workers: int) -> SaveableDataLoader:
    return SaveableDataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=PaddedBatch,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_sigterm,
    )


def _ignore_sigterm(worker: int) -> None:
    """Let the workers live on: a scheduler's SIGTERM reaches them too, and the main process still needs them
    to finish its step and save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
