"""Manifests to SpeechBrain datasets and loaders.

Every rank sees the same sequence of training batches and takes every world_size-th, so that training on W
ranks goes through exactly the batches that one process would with W accumulation steps. Nothing here draws
random numbers except the samplers, whose order is a function of (seed, epoch): that is what lets a killed run
continue where it stood.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler, ReproducibleRandomSampler
from torch.utils.data import BatchSampler, Dataset, Sampler

from hmamba_asr.data.audio import read_audio
from hmamba_asr.data.manifest import read_manifest

logger = logging.getLogger(__name__)


def load_dataset(
    manifests: Sequence[str | Path], *, data_folder: str | Path, tokenizer
) -> DynamicItemDataset:
    """Dataset over one or several CSV manifests, yielding ``id``, ``sig`` (S,), ``wrd``, ``duration`` and
    ``tokens`` (U,).

    Raises
    ------
    ValueError
        If two manifests share an utterance ID.
    """
    rows: dict[str, dict] = {}
    for manifest in manifests:
        part = {
            row.id: {"wav": str(row.audio), "duration": row.duration, "wrd": row.text}
            for row in read_manifest(manifest, data_folder=data_folder).values()
        }
        if shared := rows.keys() & part.keys():
            raise ValueError(
                f"utterance {min(shared)} (and {len(shared) - 1} more) stands in {manifest} and in another "
                "manifest of the "
                "same list; name each split once."
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
                    "left out of the "
                    "labels, here and in other utterances.",
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


@dataclass
class Ranks:
    """This process's place among the processes that share the work."""

    rank: int = 0
    world_size: int = 1


class ShuffledBatches(BatchSampler):
    """Batches of a fixed number of utterances in an order that depends on (seed, epoch) alone."""

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int):
        super().__init__(ReproducibleRandomSampler(dataset, seed=seed), batch_size, drop_last=False)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


class RankShare(Sampler):
    """Every world_size-th batch, from this rank's own on. The first batches fill up the last round, so that
    all ranks have equally many. (SpeechBrain's wrapper for this fails when a rank's share is a single
    batch.)"""

    def __init__(self, batches: Sampler, ranks: Ranks):
        self.batches, self.ranks = batches, ranks

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batches) // self.ranks.world_size)

    def __iter__(self):
        order = list(self.batches)
        missing = len(self) * self.ranks.world_size - len(order)
        filled = order + list(islice(cycle(order), missing))
        return iter(filled[self.ranks.rank :: self.ranks.world_size])


def train_loader(
    dataset: Dataset, ranks: Ranks, *, batch_size: int, seed: int, num_workers: int
) -> SaveableDataLoader:
    """Batches of ``batch_size`` random utterances (or sentences) per rank."""
    return _train_loader(
        dataset, ShuffledBatches(dataset, batch_size=batch_size, seed=seed), ranks, num_workers
    )


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
    """Batches of similar durations, each at most ``max_batch_seconds`` of audio with its padding
    (SpeechBrain's sampler)."""
    longest = max(row["duration"] for row in dataset.data.values())
    if longest > max_batch_seconds:
        raise ValueError(
            f"the longest training utterance lasts {longest:.1f} s and max_batch_seconds is "
            f"{max_batch_seconds}; raise it, or "
            "lower max_duration to leave such utterances out."
        )
    sampler = DynamicBatchSampler(
        dataset,
        max_batch_length=max_batch_seconds,
        num_buckets=num_buckets,
        max_batch_ex=max_batch_size,
        length_func=lambda row: row["duration"],
        shuffle=True,
        batch_ordering="random",
        seed=seed,
    )
    return _train_loader(dataset, sampler, ranks, num_workers)


def _train_loader(dataset: Dataset, batches: Sampler, ranks: Ranks, num_workers: int) -> SaveableDataLoader:
    return _loader(dataset, RankShare(batches, ranks), num_workers)


def _loader(dataset: Dataset, batches: Iterable[list[int]], num_workers: int) -> SaveableDataLoader:
    pin = torch.cuda.is_available()
    # A scheduler's SIGTERM reaches the workers too; without them the main process could not finish its step
    # and save.
    return SaveableDataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=PaddedBatch,
        pin_memory=pin,
        worker_init_fn=_ignore_sigterm,
    )


def _ignore_sigterm(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def ordered_loader(
    dataset: Dataset, ranks: Ranks, *, batch_size: int, num_workers: int
) -> SaveableDataLoader:
    """This rank's share of the items in their order, in batches of ``batch_size``."""
    order = range(ranks.rank, len(dataset), ranks.world_size)
    return _loader(
        dataset, [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)], num_workers
    )


def eval_loader(
    dataset: DynamicItemDataset,
    ranks: Ranks,
    *,
    max_batch_seconds: float,
    max_batch_size: int,
    num_workers: int,
    skip: int = 0,
) -> SaveableDataLoader:
    """This rank's share of the utterances, longest first, in batches of at most ``max_batch_seconds`` with
    padding; without the first ``skip`` batches.

    The utterances are dealt out in the order of their durations, so that the shares differ by less than the
    longest one lasts.
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
