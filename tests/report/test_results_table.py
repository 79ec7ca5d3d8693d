"""The tables of results: golden ones, what shares a table or a row, empty cells, the width of lines."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import resolve
from hmamba_asr.evaluation.results import Results, load_files
from hmamba_asr.report.blocks import Details, Paragraph, Table, to_markdown, to_text
from hmamba_asr.report.results_table import REMOVED, describe_results, model_name, row_names, same_experiment

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "recipes" / "librispeech" / "results"

GOLDEN = """\
WER is in percent. ± is the standard deviation over seeds; a row of one seed has none. \
An empty cell was not measured.
Greedy is greedy CTC decoding, beam is joint CTC/attention beam search.

Audio-s/s is seconds of audio in a second of training. Training time leaves validation out. \
RTF × 1000 is milliseconds
of recognition for a second of audio.

### test-clean and test-other

Test sets: test-clean (2,620 utterances, 52,576 words) and test-other (2,939 utterances, 52,343 words).

| model | training data | seeds | epochs | clean greedy | clean beam | clean beam+lm | other beam |
|:---|:---|---:|---:|---:|---:|---:|---:|
| conformer | | 1 | | | 9.51 | | |
| conmamba | train-clean-100 | 1 | 70 | 7.61 | 5.71 | 3.80 | 15.28 |

Speed on A: 4 × NVIDIA RTX A6000, bf16; B: recognition on EPYC (2 cores). \
Recognition in batches of 16 utterances.

| model | on | seeds | training audio-s/s | training time | RTF × 1000 greedy | RTF × 1000 beam |
|:---|:---|---:|---:|---:|---:|---:|
| conformer | B | 1 | | | | 10.0 |
| conmamba | A | 1 | 1543 | 4 h 32 min | 2.00 | 22.5 |

<details><summary>What the rows are: overrides, parameters, seeds, commits</summary>

- `conformer`: 14.1M parameters; seed 1234
- `conmamba`: 14.1M parameters; seed 1234; commit 01234567

</details>

### test-clean

Test sets: test-clean (60 utterances, 500 words). Training data: train | small + more.

| model | seeds | epochs | greedy |
|:---|---:|---:|---:|
| demo | 1 | 20 | 4.00 |

Speed on EPYC (2 cores), fp32. Recognition in batches of 16 utterances.

| model | seeds | training audio-s/s | training time | RTF × 1000 greedy |
|:---|---:|---:|---:|---:|
| demo | 1 | 120 | 4 min 04 s | 50.0 |

<details><summary>What the rows are: overrides, parameters, seeds, commits</summary>

- `demo`: 0.853M parameters; seed 1234; commit fedcba98 (dirty)

</details>

### Not measured yet

`hmamba`."""


def _runs(results: Sequence[Results]) -> dict[Path, Results]:
    """Give each result the path of a run's results.json."""
    return {Path(f"{index}/results.json"): result for index, result in enumerate(results)}


def _markdown(results: Sequence[Results], expected: Sequence[str] = ()) -> str:
    return to_markdown(describe_results(_runs(results), expected))


def _squeezed(table: str) -> str:
    """Take the padding out."""
    return re.sub("-{3,}", "---", re.sub(" +", " ", table))


def test_golden_tables_in_any_order(golden_results):
    for seed in range(6):
        random.Random(seed).shuffle(golden_results)
        assert _squeezed(_markdown(golden_results, ["hmamba", "conmamba", "demo"])) == GOLDEN


def test_without_results_there_is_no_table():
    assert describe_results({}, ["a"])[1:] == [Paragraph("`a`.")]
    assert describe_results({}) == [Paragraph("There are no results.")]


def _rows(results: Sequence[Results] | Mapping[Path, Results]) -> list[dict[str, str]]:
    """Rows of all tables of accuracy as {header: cell}."""
    return _rows_of(results, lambda headers: not _is_speed(headers))


def _speed_rows(results: Sequence[Results] | Mapping[Path, Results]) -> list[dict[str, str]]:
    return _rows_of(results, _is_speed)


def _is_speed(headers: Sequence[str]) -> bool:
    return any(name.startswith(("training audio", "training time", "RTF")) for name in headers)


def _rows_of(results, wanted) -> list[dict[str, str]]:
    files = results if isinstance(results, Mapping) else _runs(results)
    tables = [block for block in describe_results(files) if isinstance(block, Table)]
    return [
        dict(zip(table.headers, row, strict=True))
        for table in tables
        if wanted(table.headers)
        for row in table.rows
    ]


def _settings(results: Mapping[Path, Results]) -> list[str]:
    return [item for block in describe_results(results) if isinstance(block, Details) for item in block.items]


def test_rows_that_would_share_a_name_are_numbered(make_results, make_entry):
    scored = {"dev": {"greedy": make_entry(words=10, sentences=2, errors=1, audio=None)}}
    results = [
        make_results("a", scored, seed=20),
        make_results("a", scored, seed=3, hparams="size: 2\n"),  # not the same experiment
        make_results("b", scored),
        make_results("a", {}, seed=4),  # in a table of its own
    ]
    assert [row["model"] for row in _rows(results)] == ["a", "a #2", "b", "a #3"]
    settings = _settings(_runs(results))
    assert settings[0].startswith("`a`: ") and "; seed 3; " in settings[0]
    assert settings[1].startswith("`a #2`: `a`; ") and "; seed 20; " in settings[1]


def test_variants_of_a_yaml_are_models_of_their_own(make_results, make_entry):
    scored = {"dev": {"greedy": make_entry(words=10, sentences=2, errors=1, audio=None)}}
    changed = {"overrides": {"chunker": "{target_ratio: 3.0}"}}
    results = [
        make_results("a", scored, **changed, seed=1),
        make_results("a", scored, overrides={}),
        make_results("a", scored, **changed),
        make_results("a", scored, overrides={"outer": "{num_layers: 7, d_ffn: 288}", "size": "3000"}),
    ]
    rows = [(row["model"], row["seeds"]) for row in _rows(results)]
    assert rows == [("a", "1"), ("a #2", "1"), ("a, chunker {target_ratio: 3.0}", "2")]
    long, short = _settings(_runs(results))[1:]
    assert long.startswith("`a #2`: `a --outer {num_layers: 7, d_ffn: 288} --size 3000`; ")
    assert short.startswith("`a, chunker {target_ratio: 3.0}`: `a --chunker {target_ratio: 3.0}`; ")


def test_kept_results_have_the_name_of_their_files(make_results, make_entry):
    scored = {"dev": {"greedy": make_entry(words=10, sentences=2, errors=1, audio=None)}}
    changed = {"overrides": {"chunker": "{target_ratio: 3.0}"}}
    files = {
        Path("a_n3.1.results.json"): make_results("a", scored, **changed, seed=1),
        Path("a_n3.2.results.json"): make_results("a", scored, **changed, seed=2),
        Path("b.1.5.results.json"): make_results("b", scored, seed=5),
        Path("c_2.9.results.json"): make_results("c", scored, seed=5),
    }
    assert row_names(files) == [row["model"] for row in _rows(files)] == ["a_n3", "b.1", "c_2.9"]
    assert "Each row is named after its files" in to_markdown(describe_results(files))
    assert "named after" not in _markdown([*files.values()])


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
        (row,) = _rows(order)
        assert (row["model"], row["seeds"]) == ("a", "3")
        assert row["dev beam"] == "13.00 ± 3.61"
        assert row["test beam"] == "5.50 ± 0.71 (2)"
        assert row["kept"] == "0.52"  # of three seeds on dev and two on test
        (speed,) = _speed_rows(order)
        assert speed["seeds"] == "3" and speed["RTF × 1000 beam"] == "1.30 ± 0.36"
        assert speed["training time"] == "2 min 00 s"
        (settings,) = _settings(_runs(order))
        assert settings.endswith("; seeds 1, 2, 3; commits 11111111, 22222222")
        assert "(n) counts the seeds of a WER where it is fewer" in _markdown(order)
    del seeds[0].evaluation["test"]
    (row,) = _rows(seeds)
    assert row["test beam"] == "6.00 (1)"
    assert "(n) counts" not in _markdown(seeds[:1])


def test_seeds_on_different_machines_have_rows_of_speed(seeds, change):
    other = {"efficiency": {"hardware": {"gpu": "NVIDIA H100"}}}
    seeds[1] = change(seeds[1], evaluation={"dev": {"beam": other}})
    (row,) = _rows(seeds)
    assert row["seeds"] == "3"
    rows = [(row["on"], row["seeds"], row["RTF × 1000 beam"]) for row in _speed_rows(seeds)]
    assert rows == [("A", "2", "1.35 ± 0.49"), ("B", "1", "1.20")]
    note = next(line for line in _markdown(seeds).splitlines() if line.startswith("Speed on "))
    machine = "4 × NVIDIA RTX A6000, bf16"
    assert note.startswith(f"Speed on A: {machine}; B: {machine}, recognition on NVIDIA H100. ")


def test_batches_that_differ_are_said_for_each_letter(make_results, make_entry):
    small, large = (make_entry(words=10, sentences=2, errors=1, audio=1.0, processing=0.5) for _ in range(2))
    large["efficiency"]["batch"] = "at most 400 s of audio"
    results = [make_results("a", {"dev": {"greedy": small}}), make_results("b", {"dev": {"greedy": large}})]
    assert [row["on"] for row in _speed_rows(results)] == ["A", "B"]
    text = " ".join(_markdown(results).split())
    machine = "4 × NVIDIA RTX A6000, bf16, recognition in batches of"
    assert f"A: {machine} 16 utterances; B: {machine} at most 400 s of audio. |" in text


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
    assert sorted(row["seeds"] for row in _rows(seeds)) == ["1", "2"]


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
    measured = make_entry(words=10, sentences=2, errors=1, audio=1.0, processing=1.0)
    unmeasured = make_entry(words=10, sentences=2, errors=1, audio=1.0, processing=1.0)
    unmeasured["efficiency"]["processing_seconds"] = None
    result = make_results("a", {"dev": {"greedy": unmeasured}})
    result = change(result, training=dict.fromkeys(("epochs", "seconds", "audio_seconds_per_second")))
    other = make_results("b", {"dev": {"greedy": measured}})
    row, _ = _rows([result, other])
    assert (row["epochs"], row["greedy"]) == ("", "10.00")
    speed, _ = _speed_rows([result, other])
    assert [speed[key] for key in ("training time", "training audio-s/s", "RTF × 1000 greedy")] == [""] * 3


def test_kept_fractions_have_a_column_where_an_encoder_chunks(make_results, make_entry):
    def evaluation(*kept: float) -> dict:
        entry = make_entry(words=10, sentences=2, errors=1, audio=None) | {
            "stages": [{"kept": value} for value in kept]
        }
        return {"dev": {"greedy": entry, "beam": entry}}

    without = evaluation()
    del without["dev"]["greedy"]["stages"]  # a file of an earlier version
    flat, old = make_results("a", evaluation()), make_results("b", without)
    assert "kept" not in _markdown([flat, old]).lower()
    rows = _rows(
        [flat, old, make_results("c", evaluation(0.517)), make_results("d", evaluation(0.5, 0.3))],
    )
    assert [row["kept"] for row in rows] == ["", "", "0.52", "0.50 × 0.30"]


def test_results_that_were_not_evaluated_share_a_table(make_results):
    results = [make_results("a", {}), make_results("b", {})]
    assert [row["model"] for row in _rows(results)] == ["a", "b"]
    assert [row["training time"] for row in _speed_rows(results)] == ["4 h 32 min"] * 2
    assert _markdown(results).count("### Not evaluated") == 1


def test_a_split_of_two_sizes_in_one_table_has_two_columns(make_results, make_entry):
    """Both share dev; their test splits have one name but are not the same material."""

    def evaluation(test_words: int) -> dict:
        return {
            "dev": {"greedy": make_entry(words=10, sentences=2, errors=1, audio=None)},
            "test": {"greedy": make_entry(words=test_words, sentences=4, errors=5, audio=None)},
        }

    rows = _rows([make_results("a", evaluation(20)), make_results("b", evaluation(50))])
    wers = {key: [row[key] for row in rows] for key in rows[0] if "greedy" in key}
    assert wers == {
        "dev greedy": ["10.00", "10.00"],
        "test (4 utterances, 20 words) greedy": ["25.00", ""],
        "test (4 utterances, 50 words) greedy": ["", "10.00"],
    }


@pytest.mark.parametrize(
    ("splits", "columns"),
    [
        (["dev-clean-mini", "test-clean-mini"], ["dev", "test"]),
        (["dev-clean", "test-clean", "test-other"], ["dev-clean", "test-clean", "test-other"]),
        (["test", "test-noisy"], ["test", "test-noisy"]),
        (["an4-dev"], [""]),
    ],
)
def test_columns_are_named_by_what_tells_splits_apart(make_results, make_entry, splits, columns):
    entry = make_entry(words=10, sentences=2, errors=1, audio=None)
    (row,) = _rows([make_results("a", {split: {"beam": entry} for split in splits})])
    assert [name for name in row if "beam" in name] == [f"{column} beam".strip() for column in columns]


@pytest.mark.parametrize(
    ("seconds", "cell"),
    [(42.4, "42 s"), (90.0, "1 min 30 s"), (3599.0, "59 min 59 s"), (16_320.0, "4 h 32 min")],
)
def test_training_time(make_results, change, seconds, cell):
    result = change(make_results("a", {}), training={"seconds": seconds})
    assert _speed_rows([result])[0]["training time"] == cell


def test_results_of_a_removed_model_are_marked():
    note = f"{REMOVED} marks a model that the code no longer has"
    removed = load_files([KEPT / "router_an4.1234.results.json"])
    text = " ".join(to_markdown(describe_results(removed)).split())
    assert [row["model"] for row in _rows(removed)] == [f"router_an4 {REMOVED}"] and note in text
    assert row_names(removed) == ["router_an4"]
    assert REMOVED not in to_markdown(describe_results(load_files([KEPT / "hmamba_an4.1234.results.json"])))


# ---- width ------------------------------------------------------------------------------------------------


def _longest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_all_kept_results_fit_a_page_and_a_terminal():
    blocks = describe_results(load_files([KEPT]), ["conmamba_small_ls100"])
    assert _longest(to_markdown(blocks)) <= 120 and _longest(to_text(blocks)) <= 120
    tables = [block for block in blocks if isinstance(block, Table)]
    assert len(tables) == 6 and max(len(table.headers) for table in tables) <= 8
    for table in tables:
        assert all(len(row) == len(table.headers) for row in table.rows)


def test_every_kept_file_is_in_the_row_of_its_name():
    files = load_files([KEPT])
    rows = {row["model"].removesuffix(f" {REMOVED}"): row for row in _rows(files)}
    names = {}
    for path, result in files.items():
        name = path.name.removesuffix(".results.json").removesuffix(f".{result.seed}")
        names.setdefault(name, []).append(result)
    assert sorted(rows) == sorted(names) == sorted(row_names(files))
    settings = {item.split("`")[1]: item for item in _settings(files)}
    for name, results in names.items():
        assert rows[name]["seeds"] == str(len(results))
        said = settings[name]
        assert all(f"{result.seed}" in said and model_name(result) in said for result in results)
        assert all(result.environment.git.commit[:8] in said for result in results)
        speed = [row for row in _speed_rows(files) if row["model"].removesuffix(f" {REMOVED}") == name]
        assert sum(int(row["seeds"]) for row in speed) == len(results)


def test_a_librispeech_table_with_a_language_model_is_split_by_test_set(make_results, make_entry):
    def evaluation(errors: int) -> dict:
        searches = {
            search: make_entry(words=52576, sentences=2620, errors=errors, audio=1e4, processing=100.0)
            for search in ("greedy", "beam", "beam+lm")
        }
        return {split: searches for split in ("test-clean", "test-other")}

    results = [
        make_results(name, evaluation(errors), seed=seed, hparams=f"seed: {seed}\n")
        for name in ("conmamba_small_ls100", "conmamba_small_ls100+hmamba+fixedstride")
        for seed, errors in ((1, 3000), (2, 3300), (3, 3100))
    ]
    blocks = describe_results(_runs(results))
    for text in (to_markdown(blocks), to_text(blocks)):
        assert _longest(text) <= 120
        headers = [line for line in text.splitlines() if "clean beam+lm" in line or "other beam+lm" in line]
        assert len(headers) == 2
        assert "clean greedy" in headers[0] and "other greedy" in headers[1]
        assert "other" not in headers[0] and "clean" not in headers[1]
        assert all("seeds" in header for header in headers)
