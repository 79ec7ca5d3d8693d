"""Datasets and loaders: every rank its share, an order that depends on (seed, epoch) alone."""

from __future__ import annotations

import csv
import logging

import pytest
import sentencepiece
import torch

from hmamba_asr.data.librispeech import prepare_manifests
from hmamba_asr.data.loaders import (
    RankShare,
    ShuffledBatches,
    dynamic_train_loader,
    eval_loader,
    load_dataset,
    train_loader,
)
from hmamba_asr.data.tokenizer import train_tokenizer
from hmamba_asr.system.ranks import Ranks

SECONDS = [0.3 + 0.1 * (i * 7 % 10) for i in range(20)]  # 0.3 to 1.2, shuffled


@pytest.fixture
def prepared(tiny_corpus, tmp_path):
    """Twenty utterances: folder, manifest and tokenizer."""
    for number, seconds in enumerate(SECONDS):
        tiny_corpus.say("many", number, f"WORD {'ABCDE'[number % 5]}", seconds=seconds)
    manifest = prepare_manifests(
        data_folder=tiny_corpus.root, splits=["many"], manifest_folder=tmp_path / "manifests"
    )["many"]
    model = train_tokenizer(
        manifest=[manifest], output_folder=tmp_path / "tokenizer", vocab_size=None, model_type="char"
    )
    return tiny_corpus, manifest, sentencepiece.SentencePieceProcessor(model_file=str(model))


@pytest.fixture
def dataset(prepared):
    corpus, manifest, tokenizer = prepared
    return load_dataset([manifest], data_folder=corpus.root, tokenizer=tokenizer)


# ---- items -----------------------------------------------------------------------------------------------


def test_item(dataset, prepared):
    item = dataset[3]
    assert item["id"] == "11-22-0003" and item["wrd"] == "WORD D"
    assert item["sig"].shape == (round(SECONDS[3] * 16000),) and item["sig"].dtype == torch.float32
    assert item["duration"] == pytest.approx(SECONDS[3])
    assert prepared[2].decode(item["tokens"].tolist()) == "WORD D"


def test_manifests_join_and_must_not_share_ids(prepared):
    corpus, manifest, tokenizer = prepared
    corpus.say("more", 5, chapter="23")
    more = prepare_manifests(data_folder=corpus.root, splits=["more"], manifest_folder=manifest.parent)[
        "more"
    ]
    joined = load_dataset([manifest, more], data_folder=corpus.root, tokenizer=tokenizer)
    assert len(joined) == 21
    with pytest.raises(
        ValueError, match=r"utterance 11-22-0000 \(and 19 more\) stands in .*name each split once"
    ):
        load_dataset([manifest, more, manifest], data_folder=corpus.root, tokenizer=tokenizer)


def test_unknown_characters_are_left_out_with_one_warning(prepared, caplog):
    corpus, manifest, tokenizer = prepared
    rows = list(csv.reader(manifest.open(encoding="utf-8")))
    column = rows[0].index("wrd")
    for row in rows[1:4]:
        row[column] = "WORÐ Ð"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    dataset = load_dataset([manifest], data_folder=corpus.root, tokenizer=tokenizer)
    with caplog.at_level(logging.WARNING):
        tokens = [dataset[i]["tokens"].tolist() for i in range(5)]
    assert all(tokenizer.unk_id() not in t for t in tokens)
    assert tokenizer.decode(tokens[1]).split() == ["WOR"]
    assert len(caplog.records) == 1
    assert "11-22-0000" in caplog.text and "does not know every character" in caplog.text


# ---- ranks -----------------------------------------------------------------------------------------------


class Batches(list):
    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_rank_shares(count, world_size):
    batches = Batches([[i] for i in range(count)])
    shares = [RankShare(batches, Ranks(rank, world_size)) for rank in range(world_size)]
    taken = [list(share) for share in shares]
    rounds = -(-count // world_size)
    assert [len(part) for part in taken] == [len(share) for share in shares] == [rounds] * world_size
    in_order = [part[step] for step in range(rounds) for part in taken]
    assert in_order[:count] == batches  # what one process with world_size accumulation steps goes through
    assert all(batch in batches for batch in in_order[count:])
    shares[0].set_epoch(5)
    assert batches.epoch == 5


def loaders(dataset, kind, ranks=None, seed=3):
    common = {"seed": seed, "num_workers": 0}
    if kind == "fixed":
        return train_loader(dataset, ranks or Ranks(), batch_size=3, **common)
    return dynamic_train_loader(
        dataset, ranks or Ranks(), max_batch_seconds=3.0, num_buckets=4, max_batch_size=5, **common
    )


def order(loader, epoch):
    loader.batch_sampler.set_epoch(epoch)
    return [list(batch) for batch in loader.batch_sampler]


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_order_is_a_function_of_seed_and_epoch(dataset, kind):
    first = loaders(dataset, kind)
    epochs = [order(first, epoch) for epoch in (1, 2, 3)]
    torch.rand(5)  # not of other random numbers, nor of what was read before
    assert order(loaders(dataset, kind), 3) == epochs[2]
    assert order(first, 1) == epochs[0]
    assert epochs[0] != epochs[1] and epochs[0] != order(loaders(dataset, kind, seed=4), 1)
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(20))
        assert len(batches) == len(first)


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_training_ranks_cover_the_data(dataset, kind):
    whole = order(loaders(dataset, kind), 2)
    parts = [order(loaders(dataset, kind, Ranks(rank, 3)), 2) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert [part[step] for step in range(len(parts[0])) for part in parts][: len(whole)] == whole


def test_dynamic_batches_stay_within_the_limits(dataset):
    for batch in order(loaders(dataset, "dynamic"), 1):
        assert len(batch) <= 5
        assert len(batch) * max(SECONDS[i] for i in batch) <= 3.0 + 1e-6


def test_too_small_batches_are_refused(dataset):
    with pytest.raises(
        ValueError, match=r"lasts 1\.2 s and max_batch_seconds is 1; raise it, or lower max_duration"
    ):
        dynamic_train_loader(dataset, Ranks(), max_batch_seconds=1, num_buckets=2, seed=0, num_workers=0)


def test_fixed_batches(dataset):
    assert sorted(map(len, ShuffledBatches(dataset, batch_size=6, seed=0))) == [2, 6, 6, 6]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shares(dataset, world_size):
    seen: list[int] = []
    for rank in range(world_size):
        loader = eval_loader(
            dataset, Ranks(rank, world_size), max_batch_seconds=2.5, max_batch_size=4, num_workers=0
        )
        for batch in loader.batch_sampler:
            assert len(batch) <= 4
            assert len(batch) == 1 or len(batch) * max(SECONDS[i] for i in batch) <= 2.5
            seen += batch
        durations = [max(SECONDS[i] for i in batch) for batch in loader.batch_sampler]
        assert durations == sorted(durations, reverse=True)  # the largest first: out of memory shows at once
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_evaluation_shares_are_equally_long(dataset, world_size):
    """Each rank has utterances of all durations; in seconds the shares differ by less than the longest
    utterance."""
    limits = {"max_batch_seconds": 2.5, "max_batch_size": 4, "num_workers": 0}
    shares = [
        eval_loader(dataset, Ranks(rank, world_size), **limits).batch_sampler for rank in range(world_size)
    ]
    totals = [sum(SECONDS[i] for batch in share for i in batch) for share in shares]
    assert max(totals) - min(totals) <= max(SECONDS) + 1e-6


def test_evaluation_goes_on_behind_the_batches_that_are_done(dataset):
    limits = {"max_batch_seconds": 2.5, "max_batch_size": 4, "num_workers": 0}
    whole = [batch.id for batch in eval_loader(dataset, Ranks(1, 2), **limits)]
    for skip in (0, 2, len(whole), len(whole) + 1):
        loader = eval_loader(dataset, Ranks(1, 2), **limits, skip=skip)
        assert len(loader) == max(0, len(whole) - skip)
        assert [batch.id for batch in loader] == whole[skip:]


def test_evaluation_batches_are_full(dataset):
    loader = eval_loader(dataset, Ranks(), max_batch_seconds=1000, max_batch_size=8, num_workers=0)
    assert [len(batch) for batch in loader.batch_sampler] == [8, 8, 4]


def test_evaluation_of_fewer_utterances_than_ranks(dataset):
    loader = eval_loader(dataset, Ranks(20, 21), max_batch_seconds=10, max_batch_size=8, num_workers=0)
    assert list(loader) == []


def test_evaluation_takes_utterances_longer_than_the_limit(dataset):
    loader = eval_loader(dataset, Ranks(), max_batch_seconds=0.5, max_batch_size=8, num_workers=0)
    batches = list(loader.batch_sampler)
    assert len(batches) == 20


def test_loading_in_workers_and_the_position_in_an_epoch(dataset):
    """What a checkpoint within an epoch saves, and a resumed run skips."""
    loader = train_loader(dataset, Ranks(), batch_size=4, seed=0, num_workers=1)
    ids = [batch.id for batch in loader]
    assert sorted(i for part in ids for i in part) == dataset.data_ids
    again = train_loader(dataset, Ranks(), batch_size=4, seed=0, num_workers=0)
    again._speechbrain_recovery_skip_to = 2
    assert [batch.id for batch in again] == ids[2:]
