"""scripts/check_documents.py: figures without a source, wrong ones and stale sources are seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import check_documents
import document_sources
import pytest
from check_documents import BEGIN_MARKER, END_MARKER, Text, check_document, find_figures
from document_sources import Cited, SourceError, evaluate

WER = 'wer("hmamba_mini_e36", "test-clean-mini", "beam")'
BENCH = 'bench("speeds", "cases", "8+4, N=2", "beam")'


@pytest.fixture(autouse=True)
def _kept_files(tmp_path, repo, monkeypatch):
    """Copies of three kept results with rates that a test knows, and a benchmark's file."""
    results = tmp_path / "results"
    results.mkdir()
    for seed, rate in ((1234, 51.2), (1235, 51.6), (1236, 51.91)):
        file = repo / f"recipes/librispeech/results/hmamba_mini_e36.{seed}.results.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["evaluation"]["test-clean-mini"]["beam"]["wer"]["rate"] = rate
        (results / file.name).write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(repo / "recipes/librispeech/results/conmamba_an4.1234.results.json", results)
    speeds = {"low": 1.196, "median": 1.25, "high": 1.321, "ours": 0.5}
    times = {"min": 0.011, "median": 0.012, "max": 0.013}
    (results / "speeds.json").write_text(json.dumps({"cases": {"8+4, N=2": {"beam": speeds}}, "rows": [7]}))
    (results / "speeds.epyc.efficiency.json").write_text(json.dumps({"rtf": times, "split": "test"}))
    monkeypatch.setattr(document_sources, "DEFAULT_RESULTS", results)
    monkeypatch.setattr(document_sources, "BENCHMARKS", results)
    document_sources._read_kept.cache_clear()
    yield
    document_sources._read_kept.cache_clear()


def faults_of(document: str) -> list[str]:
    return [f"{fault.line}: {fault.figure}: {fault.what}" for fault in check_document(document)[1]]


def figures_of(words: str, **kind: bool) -> list[str]:
    return [figure.shown for figure in find_figures(Text(1, words, **kind)) if figure.required]


# ---- what a figure is ----


@pytest.mark.parametrize(
    "words, figures",
    [
        ("a WER of 51.57 ± 0.37 after 36 epochs with seed 1234", ["51.57 ± 0.37"]),
        ("1.25 (1.20 to 1.32) and 38 times, 1.25x", ["1.25 (1.20 to 1.32)", "38 times", "1.25x"]),
        (
            "50%, 1,308 audio-s/s, 14.1M parameters, 22M",
            ["50%", "1,308 audio-s/s", "14.1M parameters", "22M"],
        ),
        ("5.3 h, 40 ms, 7 GB, 12 min, a 30-second clip", ["5.3 h", "40 ms", "7 GB", "12 min", "30-second"]),
        ("from 4 to 5 h, 3–4%, 2-3 s", ["4", "5 h", "3", "4%", "2", "3 s"]),
        ("−0.8 points, +2.5, .144.", ["−0.8 points", "+2.5", ".144"]),
        ("12 blocks, 4 of 12, 3 seeds, 8+4, beam 66, the 2nd, 4 x A6000", []),
        ("Python 3.10 to any, torch 2.11.0, v1.2.3, CUDA 13.0, SpeechBrain 1.1, Apache 2.0", []),
        ("Python 3.10, 3.11 and 3.12, Python ≥ 3.10, a WER of 3.1", ["3.1"]),
        ("H100 80GB, RTX 4090, train-clean-100, dev-clean-2, conmamba_mini_2.63", []),
        ("on 2026-12-01, Section 3.2, §4.1, Figure 2.1, arXiv:2507.07955, arXiv 2507.07955", []),
    ],
)
def test_figures_of_a_text(words, figures):
    assert figures_of(words) == figures


@pytest.mark.parametrize(
    "cell, figures",
    [("3", ["3"]), ("7 / 8", ["7", "8"]), ("H-Mamba, N = 2", []), ("15 s", ["15 s"]), ("test-clean 2", [])],
)
def test_a_bare_number_is_a_figure_in_a_cell(cell, figures):
    assert figures_of(cell, is_cell=True) == figures


@pytest.mark.parametrize(
    "document",
    [
        "text\n\n```\npython x.py --ctc 0.3\n```\n",
        "`0.3` and [a link](https://example.org/0.5) and <https://example.org/0.7>",
        "<!-- 0.3 of a comment -->",
        f"a\n\n{BEGIN_MARKER}\n\n| 0.3 |\n| --- |\n| c831b5a |\n\n{END_MARKER}\n",
        "## 3.2 Speed",
    ],
)
def test_what_is_no_text_is_left_alone(document):
    assert faults_of(document) == []


@pytest.mark.parametrize(
    "document, line",
    [
        ("# A title of 3.5", 1),
        ("one\ntwo `x`\nthree 3.5", 3),
        ("- one\n- two\n  - three 3.5", 3),
        ("> quoted\n> 3.5", 2),
        ("| a |\n| --- |\n| b |\n| **3.5** |", 4),
        ("![the alternative 3.5](x.svg)", 1),
        ('<picture>\n  <img alt="up to\n3.5" src="x">\n</picture>', 3),
        ("<details>\n<summary>of 3.5</summary>\n</details>", 2),
        ('text with <img alt="3.5" src="x"> inside', 1),
        ("[3.5](https://example.org)", 1),
    ],
)
def test_a_figure_without_a_source_is_seen_everywhere(document, line):
    assert faults_of(document) == [f"{line}: 3.5: no source"]


# ---- the sources ----


@pytest.mark.parametrize(
    "figure, source",
    [
        ("51.57 ± 0.36", WER),
        ("51.57", WER),
        ("51.6", WER),
        ("51.2", WER[:-1] + ", seed=1234)"),
        ("49.7%", f"100 * (1 - {WER[:-1]}, seed=1234) / 100) + 0.9"),
        ("1.25 (1.20 to 1.32)", BENCH),
        ("1.25x", BENCH),
        ("1.2", BENCH),
        ("1.3", BENCH),
        ("125% (119.6 to 132.1)", f"100 * {BENCH}"),
        ("0.5", BENCH[:-1] + ', "ours")'),
        ("7.0", 'bench("speeds", "rows", 0)'),
        ("0.012 (0.011 to 0.013)", 'efficiency("speeds.epyc", "rtf")'),
        ("0.50", 'kept("hmamba_mini_e36", "test-clean-mini")'),
        ("1.0", 'kept("conmamba_an4", "an4-dev")'),
        ("8.3M", 'parameters("hmamba_mini_e36")'),
        ("3 times", 'seeds("hmamba_mini_e36")'),
        ("15.4 min", 'train_minutes("hmamba_mini_e36")'),
        ("0.26 h", 'train_hours("hmamba_mini_e36")'),
        ("5.3 h", 'data_hours("hmamba_mini_e36")'),
        ("0.00097", 'rtf("hmamba_mini_e36", "beam", seed=1234)'),
        ("36.0", 'result("hmamba_mini_e36", "training", "epochs")'),
        ("70.0", 'hparam("conmamba_small_ls100", "number_of_epochs")'),
        ("3.0", 'hparam("conmamba_mini+hmamba+n3", "chunker.target_ratio")'),
        ("7.3 GB", r'text("scripts/setup.sh", "need=(7\d+)") / 1000'),
        ("−0.5", "-" + BENCH[:-1] + ', "ours")'),
    ],
)
def test_a_figure_with_its_source_is_accepted(figure, source):
    assert faults_of(f"It is {figure}.\n<!-- sources\n{figure} = {source}\n-->\n") == []


@pytest.mark.parametrize(
    "figure, source, complaint",
    [
        ("51.58", WER, "the source gives 51.57"),
        ("51.57 ± 0.37", WER, "the source gives 51.57 ± 0.36"),
        ("1.25 (1.20 to 1.33)", BENCH, "the source gives 1.25 (1.20 to 1.32)"),
        ("0.5 ± 0.1", BENCH[:-1] + ', "ours")', "the source gives 0.5"),
        ("3.5", 'wer("gone", "test-clean-mini", "beam")', "there is no recipes/librispeech/results/gone"),
        ("3.5", 'bench("gone", "x")', "no such file: scripts/benchmarks/results/gone.json"),
        ("3.5", 'text("scripts/gone.sh", "(1)")', "no such file: scripts/gone.sh"),
        ("3.5", 'hparam("gone", "seed")', "there is no YAML"),
        ("3.5", 'hparam("conmamba_mini", "gone")', "conmamba_mini has no 'gone'"),
        ("3.5", 'wer("hmamba_mini_e36", "test-clean", "beam")', "no evaluation 'test-clean'"),
        ("3.5", 'wer("hmamba_mini_e36", "test-clean-mini", "beam", seed=7)', "no kept file of seed 7"),
        ("3.5", 'bench("speeds", "cases", "8+4, N=2", "lost")', "has no 'lost'; it has beam"),
        ("3.5", 'bench("speeds", "rows")', "speeds.json > rows is no number"),
        ("3.5", 'text("README.md", "(1)")', "README.md is a document, which is no source"),
        ("3.5", r'text("scripts/setup.sh", "need=(\d+)")', "has 2 different texts"),
        ("3.5", 'cited("someone, somewhere")', "cited, and the block has no link"),
        ("3.5", '2 * cited("someone, somewhere")', "only numbers and values of files"),
        ("3.5", "3.5", "names no file: 3.5"),
        ("3.5", "7 / 2", "names no file: 7 / 2"),
        ("3.5", "wer(", "not an expression: wer("),
        ("3.5", f"{BENCH} / 0", "division by zero"),
        ("3.5", "wer(1)", "missing 2 required positional arguments"),
        ("3.5", "__import__('os')", "no source can hold __import__('os')"),
        ("3.5", f"{BENCH}.number", "no source can hold"),
        ("3.5", "", "not an expression"),
    ],
)
def test_a_source_that_does_not_give_the_figure_is_seen(figure, source, complaint, monkeypatch, repo):
    if "gone" in source:  # messages name folders of the repository
        monkeypatch.setattr(document_sources, "DEFAULT_RESULTS", repo / "recipes/librispeech/results")
        monkeypatch.setattr(document_sources, "BENCHMARKS", repo / "scripts/benchmarks/results")
    (fault,) = faults_of(f"It is {figure}.\n<!-- sources\n{figure} = {source}\n-->\n")
    assert fault.startswith(f"3: {figure}: ") and complaint in fault


def test_cited_figures_need_a_link():
    cited = '<!-- sources 3.5 = cited("someone, 2025, table 2") -->'
    assert faults_of(f"[Someone](https://example.org) found 3.5.\n{cited}\n") == []
    assert isinstance(evaluate('cited("x")'), Cited)
    with pytest.raises(SourceError):
        evaluate("cited()")


def test_sources_stand_in_the_order_of_the_table():
    table = (
        "| a | b |\n| --- | --- |\n| x | {} |\n| y | {} |\n<!-- sources\n51.57 = " + WER + "\n1.25 = " + BENCH
    )
    assert faults_of(f"{table}\n-->\n".format("51.57", "1.25")) == []
    swapped = faults_of(f"{table}\n-->\n".format("1.25", "51.57"))
    assert swapped and all("at its place" in fault for fault in swapped)


def test_a_figure_that_stands_twice_has_two_sources():
    once = f"Either 1.25 or 1.25.\n<!-- sources\n1.25 = {BENCH}\n"
    assert faults_of(f"{once}-->\n")
    assert faults_of(f"{once}1.25 = {BENCH}\n-->\n") == []


def test_a_stale_source_is_seen_and_a_plain_count_may_have_one():
    document = f"It took 36 epochs.\n<!-- sources\n36 = {{}}\n1.25 = {BENCH}\n-->\n"
    epochs = 'result("hmamba_mini_e36", "training", "epochs")'
    stale = "4: 1.25: the source names no figure of its block or section at its place"
    assert faults_of(document.format(epochs)) == [stale]
    assert faults_of(document.format(f"2 * {epochs}")) == ["3: 36: the source gives 72 ± 0", stale]


def test_a_comment_is_about_the_block_above_it():
    line = f"<!-- sources 1.25 = {BENCH} -->"
    assert faults_of(f"1.25\n\n2.5\n{line}\n") != []
    assert faults_of(f"- a\n- 1.25\n\n{line}\n") == []
    assert faults_of(f"- 1.25\n  {line}\n- 1.25\n  {line}\n") == []
    assert faults_of(f"- 1.25\n- 1.25\n  {line}\n") == ["1: 1.25: no source"]
    assert faults_of(f'<picture>\n<img alt="1.25" src="x">\n</picture>\n{line}\n\n1.25\n{line}\n') == []
    assert faults_of(f"{line}\n") == [
        "1: 1.25: the source names no figure of its block or section at its place"
    ]


def test_a_long_source_goes_on_indented():
    parts = WER.split(", ")
    assert (
        faults_of(f"- 51.57\n  <!-- sources\n  51.57 = {parts[0]},\n    {parts[1]},\n    {parts[2]}\n  -->\n")
        == []
    )


@pytest.mark.parametrize(
    "words", ["commit c831b5a", "`c831b5a`", "at b5708615e45932fc9add305e894493ab6fb54bfa"]
)
def test_a_commit_is_seen(words):
    (fault,) = faults_of(f"Measured.\nSee {words}.")
    assert fault.startswith("2: ") and "a commit" in fault


@pytest.mark.parametrize(
    "words", ["1234567", "defaced", "`--hash c831b5a`", "#c831b5a", "[x](https://a.b/c831b5a)"]
)
def test_what_is_no_commit_is_left_alone(words):
    assert faults_of(f"See {words}.") == []


def test_the_command_says_all_that_is_wrong_at_once_and_lists_figures(tmp_path, capsys):
    document = tmp_path / "A.md"
    document.write_text(f"1.25\n<!-- sources\n1.25 = {BENCH}\n-->\n\n3.5 and 4.5\n", encoding="utf-8")
    assert check_documents.main([str(document), "--list"]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"{document}:6: 3.5: no source", f"{document}:6: 4.5: no source"]
    assert printed.out.splitlines() == [
        f"{document}:3: 1.25 = 1.2500 (1.1960 to 1.3210) = {BENCH}",
        f"{document}: 1 figures are what their sources say; 2 are not",
    ]
    document.write_text("Nothing.", encoding="utf-8")
    assert check_documents.main([str(document)]) == 0
    with pytest.raises(SystemExit):
        check_documents.main([str(tmp_path / "gone.md")])
    assert "there is no" in capsys.readouterr().err


def test_a_list_of_sources_goes_by_headings_and_order(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check_documents, "ROOT", tmp_path)
    monkeypatch.setattr(check_documents, "FIGURES", tmp_path / "scripts" / "figures")
    (tmp_path / "scripts" / "figures").mkdir(parents=True)
    document, listed = tmp_path / "PAGE.md", tmp_path / "scripts" / "figures" / "PAGE.txt"
    document.write_text("# One\n\nIt is 51.57.\n\n## Two\n\n1.25, then 51.57\n", encoding="utf-8")
    one, two = f"# One\n51.57 = {WER}\n", f"# Two\n1.25 = {BENCH}\n51.57 = {WER}\n"
    listed.write_text(f"{one}\n{two}", encoding="utf-8")
    assert check_documents.main([str(document)]) == 0, capsys.readouterr().err
    swapped = f"# Two\n51.57 = {WER}\n1.25 = {BENCH}\n"
    for wrong, what in (
        (one, "PAGE.md:7: 1.25: no source"),
        (f"{one}{swapped}", "no source at its place"),
        (
            f"{one}{two}# Three\n1.25 = {BENCH}\n",
            "scripts/figures/PAGE.txt:7: 1.25: the source names no figure",
        ),
        (f"{one}{two.replace('1.25', '1.35')}", "no source"),
    ):
        listed.write_text(wrong, encoding="utf-8")
        assert check_documents.main([str(document)]) == 1
        assert what in capsys.readouterr().err


def test_every_figure_of_the_documents_has_its_source():
    script = Path(check_documents.__file__)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
