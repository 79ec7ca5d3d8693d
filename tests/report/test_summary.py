"""The table: a golden one, what shares a table, empty cells, and the file that holds it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hmamba_asr.config.difference import differ_in_seed_only
from hmamba_asr.report.summary import (
    BEGIN_MARKER,
    END_MARKER,
    load_results,
    render_table,
    update_summary,
    write_results,
)

ROOT = Path(__file__).resolve().parents[2]

GOLDEN = """\
### test-clean, test-other

Scored: test-clean 2620 utterances, 52576 words; test-other 2939 utterances, 52343 words.

| model | train data | params (M) | epochs | test-clean WER greedy | test-clean WER beam | \
test-clean WER beam+lm | test-other WER beam | RTF greedy | RTF beam | RTF beam+lm | training audio-s/s | \
train time | hardware | commit |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
| conformer |  | 14.1 |  |  | 9.51 |  |  |  | 0.01 (batch 16) |  |  |  | \
4 × NVIDIA RTX A6000, RTF on EPYC (2 cores) |  |
| conmamba | train-clean-100 | 14.1 | 70 | 7.61 | 5.71 | 3.80 | 15.28 | 0.002 (batch 16) | \
0.0225 (batch 16) |  | 1543 | 4 h 32 min | 4 × NVIDIA RTX A6000, bf16 | 01234567 |

### test-clean

Scored: test-clean 60 utterances, 500 words.

| model | train data | params (M) | epochs | test-clean WER greedy | RTF greedy | training audio-s/s | \
train time | hardware | commit |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
| demo | train \\| small + more | 0.853 | 20 | 4.00 | 0.05 (batch 16) | 120 | 4 min | \
EPYC (2 cores), fp32 | fedcba98 (dirty) |

### Not measured yet

| model | train data | params (M) | epochs | WER | RTF | training audio-s/s | train time | hardware | commit |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
| hmamba |  |  |  |  |  |  |  |  |  |"""


@pytest.fixture
def golden_results(make_results, make_entry):
    cpu = {"device": "cpu", "cpu": "EPYC", "cores": 2, "gpu": None}
    clean = {"words": 52576, "sentences": 2620}
    # RTF of the beam over both splits: (300 + 600) / (20000 + 20000).
    conmamba = make_results(
        "conmamba",
        {
            "test-other": {
                "beam": make_entry(words=52343, sentences=2939, errors=8000, audio=20000.0, processing=600.0)
            },
            "test-clean": {
                "beam+lm": make_entry(**clean, errors=2000, audio=None),
                "greedy": make_entry(**clean, errors=4000, audio=20000.0, processing=40.0),
                "beam": make_entry(**clean, errors=3000, audio=20000.0, processing=300.0),
            },
        },
    )
    # Evaluated only, elsewhere, on one split, outside git.
    conformer = make_results(
        "conformer",
        {"test-clean": {"beam": make_entry(**clean, errors=5000, audio=1e4, processing=100.0, hardware=cpu)}},
        training=None,
    )
    conformer["environment"] |= {"git": None}
    # The same split name, but another corpus.
    demo = make_results(
        "demo",
        {
            "test-clean": {
                "greedy": make_entry(
                    words=500, sentences=60, errors=20, audio=1.0, processing=0.05, hardware=cpu
                )
            }
        },
        parameters={"total": 853_000, "trainable": 853_000, "by_module": {}},
    )
    demo["environment"] |= {"hardware": cpu, "git": {"commit": "fedcba9876543210", "dirty": True}}
    demo["training"] |= {
        "train_splits": ["train | small", "more"],
        "epochs": 20,
        "seconds": 244.0,
        "audio_seconds_per_second": 120.4,
        "precision": "fp32",
        "world_size": 1,
    }
    return [conmamba, conformer, demo]


def test_golden_table_in_any_order(golden_results):
    for seed in range(6):
        random.Random(seed).shuffle(golden_results)
        assert render_table(golden_results, ["hmamba", "conmamba", "demo"]) == GOLDEN


def test_without_results_the_table_is_empty():
    assert render_table([]) == (
        "### Not measured yet\n\n"
        "| model | train data | params (M) | epochs | WER | RTF | training audio-s/s | train time | hardware"
        " | commit |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
    )


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
            elif cells[0] != "---":
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
def seeds(make_results, make_entry):
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
        text = f"seed: {seed}\noutput_folder: r/{seed}\nsave: r/{seed}/save\nloader:\n  seed: {seed}\ndata_folder: /d{seed}\n"
        results.append(make_results("a", evaluation, seed=seed, hparams=text))
        results[-1]["environment"] |= {"git": {"commit": f"{min(seed, 2)}" * 16, "dirty": False}}
        results[-1]["training"] |= {"seconds": 60.0 * seed}
    return results


def test_what_differs_in_the_seed_alone_is_one_row_of_means(seeds):
    for order in (seeds, seeds[::-1]):
        (row,) = _rows(render_table(order))
        assert row["model"] == "a (3 seeds)"
        assert row["dev WER beam"] == "13.00 ± 3.61 (3 seeds)"
        assert row["test WER beam"] == "5.50 ± 0.71 (2 seeds)"
        assert (row["dev kept"], row["test kept"]) == ("0.52", "0.51")
        assert row["RTF beam"] == "0.0013 ± 0.000361 (3 seeds, batch 16)"
        assert (row["train time"], row["commit"]) == ("2 min", "11111111 / 22222222")
    del seeds[0]["evaluation"]["test"]
    (row,) = _rows(render_table(seeds))
    assert row["test WER beam"] == "6.00 (1 seed)"


def test_rtfs_of_seeds_on_different_machines_are_not_averaged(seeds):
    seeds[1]["evaluation"]["dev"]["beam"]["efficiency"]["hardware"] |= {"gpu": "NVIDIA H100"}
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
def test_what_differs_in_more_keeps_its_row(seeds, changes):
    seeds[1] |= changes
    models = sorted(row["model"] for row in _rows(render_table(seeds)))
    assert len(models) == 2 and sum("(2 seeds)" in model for model in models) == 1


def test_the_projects_yamls_with_two_seeds_are_one_experiment(make_results):
    from hyperpyyaml import resolve_references

    for path in sorted((ROOT / "hparams").glob("*.yaml")):
        texts = [
            resolve_references(path.read_text(), {"seed": seed, "data_folder": f"/d{seed}"}).read()
            for seed in (7, 8)
        ]
        one, other = (
            make_results(path.stem, {}, seed=seed, hparams=text)
            for seed, text in zip((7, 8), texts, strict=True)
        )
        assert differ_in_seed_only(one, other), path
        assert not differ_in_seed_only(
            one, {**other, "hparams": texts[1].replace("weight_decay: 0.01", "weight_decay: 0.1")}
        )


def test_unmeasured_numbers_are_empty_cells(make_results, make_entry):
    entry = make_entry(words=10, sentences=2, errors=1, audio=1.0, processing=1.0)
    entry["efficiency"]["processing_seconds"] = None
    result = make_results("a", {"dev": {"greedy": entry}})
    result["training"] |= dict.fromkeys(("epochs", "seconds", "audio_seconds_per_second"))
    (row,) = _rows(render_table([result]))
    assert [row[key] for key in ("epochs", "train time", "training audio-s/s", "RTF greedy")] == [""] * 4
    assert row["dev WER greedy"] == "10.00"


def test_kept_fractions_have_a_column_where_an_encoder_chunks(make_results, make_entry):
    def evaluation(*kept: float) -> dict:
        entry = make_entry(words=10, sentences=2, errors=1, audio=None) | {
            "stages": [{"kept": value} for value in kept]
        }
        return {"dev": {"greedy": entry, "beam": entry}}

    flat, old = make_results("a", evaluation()), make_results("b", evaluation())
    del old["evaluation"]["dev"]["greedy"]["stages"]  # of an earlier version
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
    ("seconds", "cell"), [(42.4, "42 s"), (90.0, "2 min"), (3599.0, "1 h 00 min"), (16_320.0, "4 h 32 min")]
)
def test_train_time(make_results, seconds, cell):
    result = make_results("a", {})
    result["training"]["seconds"] = seconds
    assert _rows(render_table([result]))[0]["train time"] == cell


@pytest.fixture
def summary(tmp_path):
    path = tmp_path / "SUMMARY.md"
    path.write_text(f"# Title\n\n{BEGIN_MARKER}\nstale\n{END_MARKER}\n\nMore text.\n")
    return path


def test_only_the_text_between_the_markers_is_replaced(summary, golden_results):
    update_summary(summary, golden_results, expected=["hmamba"])
    assert summary.read_text() == (f"# Title\n\n{BEGIN_MARKER}\n\n{GOLDEN}\n\n{END_MARKER}\n\nMore text.\n")
    update_summary(summary, golden_results, check=True, expected=["hmamba"])
    assert len(list(summary.parent.iterdir())) == 1


def test_check_fails_when_stale_and_changes_nothing(summary, golden_results):
    update_summary(summary, golden_results)
    before = summary.read_text()
    with pytest.raises(ValueError, match=r"SUMMARY\.md: the table is not up to date"):
        update_summary(summary, golden_results[:1], check=True)
    assert summary.read_text() == before


@pytest.mark.parametrize(
    "text",
    ["", f"{BEGIN_MARKER}\n", f"{END_MARKER}\n{BEGIN_MARKER}\n", f"{BEGIN_MARKER}\n{END_MARKER}\n" * 2],
)
def test_a_file_without_one_pair_of_markers_is_refused(summary, text):
    summary.write_text(text)
    with pytest.raises(ValueError, match=r"SUMMARY\.md: needs one line"):
        update_summary(summary, [])
    assert summary.read_text() == text


def _summarize(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "summarize.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_the_script_updates_checks_and_complains(tmp_path, summary, golden_results):
    folder = tmp_path / "results"
    for result in [*golden_results, {**golden_results[2], "seed": 5}]:
        names = {5: f"{result['name']}.5"}  # several seeds of a row
        write_results(folder / f"{names.get(result['seed'], result['name'])}.results.json", result)
    stale = _summarize(folder, "--summary", summary, "--check")
    assert stale.returncode == 1 and "not up to date" in stale.stderr
    done = _summarize(folder, "--summary", summary)
    assert done.returncode == 0, done.stderr
    expected = [path.stem for path in (ROOT / "hparams").glob("*.yaml")]
    assert done.stdout.strip() == render_table(load_results([folder]), expected)
    assert done.stdout.strip() in summary.read_text() and "| demo (2 seeds) |" in done.stdout
    assert _summarize(folder, "--summary", summary, "--check").returncode == 0
    (folder / "demo.results.json").write_text("{")
    broken = _summarize(folder, "--summary", summary)
    assert broken.returncode == 1 and "demo.results.json: not readable as JSON" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_the_summary_of_this_repository_is_up_to_date():
    done = _summarize("--check")
    assert done.returncode == 0, done.stderr
