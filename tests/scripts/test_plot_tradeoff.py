"""scripts/plot_tradeoff.py: figures hold the numbers of kept files, and the kept figures those of today."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import plot_tradeoff
import pytest

from hmamba_asr.evaluation.results import write_results

RESULTS = plot_tradeoff.DEFAULT_RESULTS
SVG = "{http://www.w3.org/2000/svg}"
WORDS = 1000
CASES = {f"15 s, 8+4, N={n}, chunks": {"beam": {"low": 1.1, "median": n / 2, "high": 1.9}} for n in (3, 3.4)}
SPEED = ("flat=ConMamba", "chunked@8+4:3=H-Mamba/N = 2", "shorter@8+4:3.4=H-Mamba/N = 4")


@pytest.fixture
def kept(tmp_path, make_results, make_entry):
    """Two models of two seeds and one of one seed, and a benchmark of two cases."""
    training = make_results("x", {}).training

    def keep(name: str, seed: int, errors: int, chunks: float | None = None, *, epochs: int = 18) -> None:
        entry = make_entry(words=WORDS, errors=errors, sentences=50, audio=None)
        entry["stages"] = [] if chunks is None else [{"kept": chunks}]
        spent = {"train_splits": training.train_splits, "epochs": epochs, "seconds": 60.0 * errors / 10}
        known = {key: getattr(training, key) for key in training.__struct_fields__} | spent
        results = make_results(name, {"test": {"beam": entry}}, seed=seed, training=known)
        write_results(tmp_path / f"{name}.{seed}.results.json", results)

    keep("flat", 1, 500)
    keep("flat", 2, 520)
    keep("flat_2", 1, 999)  # another model, whose name begins alike
    keep("chunked", 1, 530, 0.5)
    keep("chunked", 2, 530, 0.4)
    keep("shorter", 1, 560, 0.25)
    keep("longer_training", 1, 400, epochs=36)
    (tmp_path / "chunking.json").write_text(json.dumps({"cases": CASES}), encoding="utf-8")
    return tmp_path


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _draw(folder: Path, cost: str, *more: str, models: tuple[str, ...] = ()) -> int:
    models = models or ("flat=ConMamba", "chunked=H-Mamba/N = 2", "shorter=H-Mamba/N = 4")
    rest = [
        "--split",
        "test",
        "--search",
        "beam",
        "--results",
        str(folder),
        "--output",
        str(folder / "figure"),
    ]
    return plot_tradeoff.main([cost, *rest, *more, "--models", *models])


def _speed(folder: Path) -> int:
    return _draw(folder, "speed", "--benchmark", str(folder / "chunking.json"), models=SPEED)


def _svg(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def _words(path: Path) -> list[str]:
    return ["".join(text.itertext()) for text in _svg(path).iter(f"{SVG}text")]


def _description(path: Path) -> list[str]:
    return _svg(path).find(f"{SVG}desc").text.removesuffix(".").split(". ")


def test_a_figure_in_both_themes(kept, capsys):
    assert _draw(kept, "frames") == 0
    light, dark = (Path(line) for line in capsys.readouterr().out.split())
    assert (light.name, dark.name) == ("figure_light.svg", "figure_dark.svg")
    for path in (light, dark):
        # Each line has its name once, and what tells its points apart.
        words = _words(path)
        assert [words.count(word) for word in ("ConMamba", "N = 2", "H-Mamba, N = 4")] == [1, 1, 1]
    assert light.read_text() != dark.read_text()


def test_wer_against_frames(kept):
    assert _draw(kept, "frames") == 0
    assert [line.rpartition(", ")[2] for line in _description(kept / "figure_light.svg")] == [
        "frames per chunk 1",
        "frames per chunk 2.25 (1.9 to 2.6)",
        "frames per chunk 4",
    ]


def test_wer_against_relative_speed(kept):
    """The first model is the flat one; its WER at GOAL_SPEED is the goal."""
    assert _speed(kept) == 0
    assert _description(kept / "figure_light.svg") == [
        "beam search, ConMamba: WER 51.00 ± 1.41% (2 seeds), relative speed 1",
        "beam search, H-Mamba, N = 2: WER 53.00 ± 0.00% (2 seeds), relative speed 1.5 (1.1 to 1.9)",
        "beam search, H-Mamba, N = 4: WER 56.00% (1 seed), relative speed 1.7 (1.1 to 1.9)",
    ]
    words = _words(kept / "figure_light.svg")
    assert f"goal: ConMamba's WER at {plot_tradeoff.GOAL_SPEED} times its speed" in words
    assert "speed of encoder and search relative to ConMamba (right is faster)" in words


def test_the_same_numbers_are_the_same_file(kept):
    found = []
    for _ in range(2):
        assert _speed(kept) == 0
        found.append([(kept / f"figure_{theme}.svg").read_bytes() for theme in ("light", "dark")])
    assert found[0] == found[1]
    assert not re.search(rb"<dc:date>|https?://(?!www\.w3\.org)", found[0][0])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"models": ("flat=ConMamba", "absent=H-Mamba")}, "there is no .*absent.results.json"),
        (
            {"models": ("flat=ConMamba", "chunked@7+5:3=H-Mamba")},
            "has 0 cases of 7\\+5:3 with the search beam",
        ),
        ({"models": ("flat=ConMamba", "chunked=H-Mamba")}, "the first model is the flat one; every other is"),
        ({"models": ("flat@8+4:3=ConMamba",)}, "the first model is the flat one"),
        ({"more": ("--benchmark", "gone.json")}, "No such file .*gone.json"),
        (
            {"more": ("--benchmark", "pyproject.toml")},
            "pyproject.toml is no file of scripts/benchmarks/chunking",
        ),
        ({"more": ()}, "speed needs --benchmark"),
        ({"cost": "frames"}, "only speed has it"),
        ({"models": ("ConMamba",)}, "--models needs NAME=LABEL, not 'ConMamba'"),
        (
            {"cost": "frames", "more": ("--split", "other")},
            "flat has no WER of other with the search beam",
        ),
        (
            {"cost": "frames", "more": (), "models": ("flat=ConMamba", "longer_training=H-Mamba")},
            "flat and longer_training do not compare: .*epochs",
        ),
        (
            {"cost": "frames", "more": (), "models": tuple(f"flat={number}" for number in range(6))},
            "at most 5 models, not 6",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(kept, capsys, command, message):
    benchmark = ("--benchmark", str(kept / "chunking.json"))
    given = {"cost": "speed", "more": benchmark, "models": SPEED, **command}
    assert _draw(kept, given["cost"], *given["more"], models=given["models"]) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err) and printed.err.count("\n") == 1 and printed.out == ""
    assert not list(kept.glob("*.svg"))


def test_files_that_do_not_compare_are_refused(kept, capsys):
    _edit(kept / "flat.2.results.json", overrides={"lr": "1"})
    assert _draw(kept, "frames") == 2
    assert "of flat in" in capsys.readouterr().err


KEPT = sorted(path for path in RESULTS.glob("*_light.svg"))


def test_there_are_kept_figures():
    assert KEPT


@pytest.mark.parametrize("light", KEPT, ids=lambda path: path.name)
def test_a_kept_figure_shows_what_the_kept_files_say(light, tmp_path):
    """The figure's own command gives its numbers and its words."""
    dark = light.with_name(light.name.replace("_light", "_dark"))
    program, script, *arguments = shlex.split(_svg(light).find(f"{SVG}metadata").text)
    assert (program, script) == ("python", "scripts/plot_tradeoff.py")
    output = arguments.index("--output") + 1
    assert arguments[output] == f"recipes/librispeech/results/{light.name.removesuffix('_light.svg')}"
    arguments[output] = str(tmp_path / "new")
    assert plot_tradeoff.main(arguments) == 0
    for kept, theme in ((light, "light"), (dark, "dark")):
        new = tmp_path / f"new_{theme}.svg"
        assert _description(kept) == _description(new) and _words(kept) == _words(new)
