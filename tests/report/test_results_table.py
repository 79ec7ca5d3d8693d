"""The table of results: a golden one, what shares a table or a row, empty cells."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import resolve
from hmamba_asr.evaluation.results import load_results
from hmamba_asr.report.results_table import REMOVED, render_table, same_experiment

ROOT = Path(__file__).resolve().parents[2]

GOLDEN = """\
### test-clean, test-other

Scored: test-clean 2620 utterances, 52576 words; test-other 2939 utterances, 52343 words.

| model | train data | params (M) | epochs | test-clean WER greedy | test-clean WER beam | \
test-clean WER beam+lm | test-other WER beam | RTF greedy | RTF beam | RTF beam+lm | training audio-s/s | \
train time | hardware | commit |
|:---|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|:---|:---|
| conformer | | 14.1 | | | 9.51 | | | | 0.01 (batch 16) | | | | \
4 × NVIDIA RTX A6000, RTF on EPYC (2 cores) | |
| conmamba | train-clean-100 | 14.1 | 70 | 7.61 | 5.71 | 3.80 | 15.28 | 0.002 (batch 16) | \
0.0225 (batch 16) | | 1543 | 4 h 32 min | 4 × NVIDIA RTX A6000, bf16 | 01234567 |

### test-clean

Scored: test-clean 60 utterances, 500 words.

| model | train data | params (M) | epochs | test-clean WER greedy | RTF greedy | training audio-s/s | \
train time | hardware | commit |
|:---|:---|---:|---:|---:|---:|---:|---:|:---|:---|
| demo | train \\| small + more | 0.853 | 20 | 4.00 | 0.05 (batch 16) | 120 | 4 min 04 s | \
EPYC (2 cores), fp32 | fedcba98 (dirty) |

### Not measured yet

| model | train data | params (M) | epochs | WER | RTF | training audio-s/s | train time | hardware | commit |
|:---|:---|---:|---:|---:|---:|---:|---:|:---|:---|
| hmamba | | | | | | | | | |"""


def _squeezed(table: str) -> str:
    """Take the padding out."""
    return re.sub("-{3,}", "---", re.sub(" +", " ", table))


def test_golden_table_in_any_order(golden_results):
    for seed in range(6):
        random.Random(seed).shuffle(golden_results)
        assert _squeezed(render_table(golden_results, ["hmamba", "conmamba", "demo"])) == GOLDEN


def test_without_results_the_table_is_empty():
    (heading, _, header, line) = render_table([]).splitlines()
    assert heading == "### Not measured yet"
    names = [cell.strip() for cell in header.strip("|").split("|")]
    assert names == [
        *("model", "train data", "params (M)", "epochs", "WER", "RTF"),
        *("training audio-s/s", "train time", "hardware", "commit"),
    ]
    assert line.count("|") == header.count("|")


def _rows(table: str) -> list[dict[str, str]]:
    """Rows of the table's Markdown as {header: cell}."""
    rows, header = [], None
    for line in table.splitlines():
        if not line.startswith("|"):
            header = None
        else:
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if header is None:
                header = cells
            elif not cells[0].startswith(":--"):
                rows.append(dict(zip(header, cells, strict=True)))
    return rows


def test_seeds_are_named_only_where_there_are_several(make_results, make_entry):
    scored = {"dev": {"greedy": make_entry(words=10, sentences=2, errors=1, audio=None)}}
    results = [
        make_results("a", scored, seed=20),
        make_results("a", scored, seed=3, hparams="size: 2\n"),  # not the same experiment
        make_results("b", scored),
    ]
    assert [row["model"] for row in _rows(render_table(results))] == ["a (seed 3)", "a (seed 20)", "b"]


def test_variants_of_a_yaml_are_models_of_their_own(make_results, make_entry):
    scored = {"dev": {"greedy": make_entry(words=10, sentences=2, errors=1, audio=None)}}
    changed = {"overrides": {"chunker": "{target_ratio: 3.0}"}}
    results = [
        make_results("a", scored, **changed, seed=1),
        make_results("a", scored, overrides={}),
        make_results("a", scored, **changed),
    ]
    models = [row["model"] for row in _rows(render_table(results, ["a"]))]
    assert models == ["a", "a --chunker {target_ratio: 3.0} (2 seeds)"]


@pytest.fixture
def seeds(make_results, make_entry, change):
    """Three seeds of one YAML on two splits, the third evaluated on one; of different commits, folders and
    kept fractions."""
    results = []
    for seed, errors, kept in ((1, 10, 0.50), (2, 12, 0.52), (3, 17, 0.54)):
        evaluation = {
            "dev": {
                "beam": make_entry(
                    words=100, sentences=9, errors=errors, audio=100.0, processing=0.01 * errors
                )
            },
            "test": {"beam": make_entry(words=200, sentences=9, errors=errors, audio=None)},
        }
        for searches in evaluation.values():
            searches["beam"] |= {"stages": [{"kept": kept}]}
            searches["beam"]["wer"]["interval_95"] = [0.0, 99.0]  # of one run; not shown for several
        if seed == 3:
            del evaluation["test"]
        text = f"seed: {seed}\noutput_folder: r/{seed}\nsave: r/{seed}/save\n"
        text += f"loader:\n  seed: {seed}\ndata_folder: /d{seed}\n"
        result = make_results("a", evaluation, seed=seed, hparams=text)
        git = {"commit": f"{min(seed, 2)}" * 16, "dirty": False}
        results.append(change(result, environment={"git": git}, training={"seconds": 60.0 * seed}))
    return results


def test_what_differs_in_the_seed_alone_is_one_row_of_means(seeds):
    for order in (seeds, seeds[::-1]):
        (row,) = _rows(render_table(order))
        assert row["model"] == "a (3 seeds)"
        assert row["dev WER beam"] == "13.00 ± 3.61 (3 seeds)"
        assert row["test WER beam"] == "5.50 ± 0.71 (2 seeds)"
        assert (row["dev kept"], row["test kept"]) == ("0.52", "0.51")
        assert row["RTF beam"] == "0.0013 ± 0.000361 (3 seeds, batch 16)"
        assert (row["train time"], row["commit"]) == ("2 min 00 s", "11111111 / 22222222")
    del seeds[0].evaluation["test"]
    (row,) = _rows(render_table(seeds))
    assert row["test WER beam"] == "6.00 (1 seed)"


def test_rtfs_of_seeds_on_different_machines_are_not_averaged(seeds, change):
    other = {"efficiency": {"hardware": {"gpu": "NVIDIA H100"}}}
    seeds[1] = change(seeds[1], evaluation={"dev": {"beam": other}})
    (row,) = _rows(render_table(seeds))
    assert row["RTF beam"] == "0.001 / 0.0012 / 0.0017 (batch 16)"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},  # twice the same
        {"overrides": {"size": "3"}},
        {"hparams": "seed: 2\nsize: 3\n"},
        {"training": None},
    ],
    ids=str,
)
def test_what_differs_in_more_keeps_its_row(seeds, change, changes):
    seeds[1] = change(seeds[1], **changes)
    models = sorted(row["model"] for row in _rows(render_table(seeds)))
    assert len(models) == 2 and sum("(2 seeds)" in model for model in models) == 1


def test_the_projects_yamls_with_two_seeds_are_one_experiment(make_results, change):
    for path in sorted((ROOT / "hparams").glob("*.yaml")):
        one, other = (
            make_results(
                path.stem,
                {},
                seed=seed,
                hparams=resolve(compose(path, []), {"seed": seed, "data_folder": f"/d{seed}"}),
            )
            for seed in (7, 8)
        )
        assert same_experiment(one, other), path
        less = other.hparams.replace("weight_decay: 0.01", "weight_decay: 0.1")
        assert less != other.hparams and not same_experiment(one, change(other, hparams=less))


def test_unmeasured_numbers_are_empty_cells(make_results, make_entry, change):
    entry = make_entry(words=10, sentences=2, errors=1, audio=1.0, processing=1.0)
    entry["efficiency"]["processing_seconds"] = None
    result = make_results("a", {"dev": {"greedy": entry}})
    result = change(result, training=dict.fromkeys(("epochs", "seconds", "audio_seconds_per_second")))
    (row,) = _rows(render_table([result]))
    assert [row[key] for key in ("epochs", "train time", "training audio-s/s", "RTF greedy")] == [""] * 4
    assert row["dev WER greedy"] == "10.00"


def test_kept_fractions_have_a_column_where_an_encoder_chunks(make_results, make_entry):
    def evaluation(*kept: float) -> dict:
        entry = make_entry(words=10, sentences=2, errors=1, audio=None) | {
            "stages": [{"kept": value} for value in kept]
        }
        return {"dev": {"greedy": entry, "beam": entry}}

    without = evaluation()
    del without["dev"]["greedy"]["stages"]  # a file of an earlier version
    flat, old = make_results("a", evaluation()), make_results("b", without)
    assert "kept" not in render_table([flat, old])
    rows = _rows(
        render_table(
            [flat, old, make_results("c", evaluation(0.517)), make_results("d", evaluation(0.5, 0.3))]
        )
    )
    assert [row["dev kept"] for row in rows] == ["", "", "0.52", "0.50 / 0.30"]
    assert list(rows[0]).index("dev kept") == list(rows[0]).index("dev WER beam") + 1


def test_the_interval_stands_beside_the_wer_where_there_is_one(make_results, make_entry):
    old, new = (
        {"dev": {"greedy": make_entry(words=1000, sentences=20, errors=50, audio=None)}} for _ in range(2)
    )
    new["dev"]["greedy"]["wer"]["interval_95"] = [3.5, 6.9]  # 5.00, skewed
    rows = _rows(render_table([make_results("a", old), make_results("b", new)]))
    assert [row["dev WER greedy"] for row in rows] == ["5.00", "5.00 ± 1.70"]


def test_results_that_were_not_evaluated_share_a_table(make_results):
    rows = _rows(render_table([make_results("a", {}), make_results("b", {})]))
    assert [(row["model"], row["WER"], row["train time"]) for row in rows] == [
        ("a", "", "4 h 32 min"),
        ("b", "", "4 h 32 min"),
    ]


def test_a_split_of_two_sizes_in_one_table_has_two_columns(make_results, make_entry):
    """Both share dev; their test splits have one name but are not the same material."""

    def evaluation(test_words: int) -> dict:
        return {
            "dev": {"greedy": make_entry(words=10, sentences=2, errors=1, audio=None)},
            "test": {"greedy": make_entry(words=test_words, sentences=4, errors=5, audio=None)},
        }

    rows = _rows(render_table([make_results("a", evaluation(20)), make_results("b", evaluation(50))]))
    wers = {key: [row[key] for row in rows] for key in rows[0] if "WER" in key}
    assert wers == {
        "dev WER greedy": ["10.00", "10.00"],
        "test (4 utterances, 20 words) WER greedy": ["25.00", ""],
        "test (4 utterances, 50 words) WER greedy": ["", "10.00"],
    }


@pytest.mark.parametrize(
    ("seconds", "cell"),
    [(42.4, "42 s"), (90.0, "1 min 30 s"), (3599.0, "59 min 59 s"), (16_320.0, "4 h 32 min")],
)
def test_train_time(make_results, change, seconds, cell):
    result = change(make_results("a", {}), training={"seconds": seconds})
    assert _rows(render_table([result]))[0]["train time"] == cell


def test_results_of_a_removed_model_are_marked(make_results):
    folder = ROOT / "recipes" / "librispeech" / "results"
    (removed,) = load_results([folder / "router_an4.1234.results.json"])
    table = render_table([removed])
    assert f"| router_an4 {REMOVED} " in table and table.endswith("has this model; its results stay.")
    assert REMOVED not in render_table(load_results([folder / "hmamba_an4.1234.results.json"]))
