"""scripts/plot_tradeoff.py: figures hold the numbers of kept files, and the kept figures those of today."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import plot_tradeoff
import pytest
from results_files import CPU, GPU

from hmamba_asr.evaluation.results import write_results
from hmamba_asr.evaluation.speed import RUN_KIND

RESULTS = plot_tradeoff.DEFAULT_RESULTS
SVG = "{http://www.w3.org/2000/svg}"
WORDS = 1000
MACHINES = {"laptop": {**CPU, "gpu_memory_mib": None}, "server": GPU}


@pytest.fixture
def kept(tmp_path, make_results, make_entry):
    """Two models of two seeds and one of one seed, and how fast they were on two machines."""
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
    for number, name in enumerate(("flat", "chunked", "shorter"), start=1):
        for machine, hardware in MACHINES.items():
            rtf = {"min": 0.01 / number, "median": 0.02 / number, "max": 0.04 / number}
            figures = {
                "kind": RUN_KIND,
                "split": "test",
                "hardware": hardware,
                "torch": "2.11.0",
                "precision": "fp32",
                "protocol": {"utterances": 16, "batch": 8},
                "subjects": {
                    "beam": {
                        "batch_1": {"rtf": rtf},
                        "batched": {"rtf": {end: value / 4 for end, value in rtf.items()}},
                    }
                },
            }
            (tmp_path / f"{name}.{machine}.efficiency.json").write_text(json.dumps(figures))
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


def _svg(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def _words(path: Path) -> list[str]:
    return ["".join(text.itertext()) for text in _svg(path).iter(f"{SVG}text")]


def _description(path: Path) -> list[str]:
    return _svg(path).find(f"{SVG}desc").text.removesuffix(".").split(". ")


def test_wer_against_real_time_factor(kept, capsys):
    assert _draw(kept, "rtf", "--machines", "laptop", "server") == 0
    light, dark = (Path(line) for line in capsys.readouterr().out.split())
    assert (light.name, dark.name) == ("figure_light.svg", "figure_dark.svg")
    points = [
        "ConMamba: WER 51.00 ± 1.41% (2 seeds), RTF 0.02 (0.01 to 0.04)",
        "H-Mamba, N = 2: WER 53.00 ± 0.00% (2 seeds), RTF 0.01 (0.005 to 0.02)",
        "H-Mamba, N = 4: WER 56.00% (1 seed), RTF 0.00667 (0.00333 to 0.0133)",
    ]
    devices = "EPYC, 2 threads", "NVIDIA RTX A6000"
    for path in (light, dark):
        assert _description(path) == [f"{device}, {point}" for device in devices for point in points]
        # Each panel has the name of each line once, and what tells its points apart.
        words = _words(path)
        for word in ("ConMamba", "N = 2", "H-Mamba, N = 4"):
            assert words.count(word) == 2
        assert [word for word in words if word in devices] == list(devices)
    assert light.read_text() != dark.read_text()
    assert _draw(kept, "rtf", "--machines", "laptop", "--way", "batched") == 0
    assert _description(light)[0].endswith("RTF 0.005 (0.0025 to 0.01)")


def test_two_searches_are_points_of_one_panel(kept):
    """And the speed may be that of another run: here each has the other's."""
    for path in kept.glob("*.results.json"):
        evaluation = json.loads(path.read_text())["evaluation"]
        wer = evaluation["test"]["beam"]["wer"]
        greedy = {**evaluation["test"]["beam"], "wer": {**wer, "rate": wer["rate"] + 5}}
        _edit(path, evaluation={"test": {"beam": evaluation["test"]["beam"], "greedy": greedy}})
    for path in kept.glob("*.laptop.efficiency.json"):
        beam = json.loads(path.read_text())["subjects"]["beam"]
        greedy = {"batch_1": {"rtf": {end: value / 10 for end, value in beam["batch_1"]["rtf"].items()}}}
        _edit(path, subjects={"beam": beam, "greedy": greedy})
    models = ("flat@chunked=ConMamba", "chunked@flat=H-Mamba/N = 2")
    assert _draw(kept, "rtf", "--search", "greedy", "beam", "--machines", "laptop", models=models) == 0
    figure = kept / "figure_light.svg"
    assert _description(figure) == [
        "EPYC, 2 threads, ConMamba, greedy: WER 56.00 ± 1.41% (2 seeds), RTF 0.001 (0.0005 to 0.002)",
        "EPYC, 2 threads, ConMamba, beam: WER 51.00 ± 1.41% (2 seeds), RTF 0.01 (0.005 to 0.02)",
        "EPYC, 2 threads, H-Mamba, N = 2, greedy: WER 58.00 ± 0.00% (2 seeds), RTF 0.002 (0.001 to 0.004)",
        "EPYC, 2 threads, H-Mamba, N = 2, beam: WER 53.00 ± 0.00% (2 seeds), RTF 0.02 (0.01 to 0.04)",
    ]
    names = {
        f"{model}, {search}" for model in ("ConMamba", "H-Mamba, N = 2") for search in ("greedy", "beam")
    }
    assert names <= set(_words(figure))


def test_wer_against_frames(kept):
    assert _draw(kept, "frames") == 0
    assert [line.rpartition(", ")[2] for line in _description(kept / "figure_light.svg")] == [
        "frames per chunk 1",
        "frames per chunk 2.25 (1.9 to 2.6)",
        "frames per chunk 4",
    ]


def test_wer_against_relative_speed(kept, capsys):
    """A model without a case is the flat one; its WER at GOAL_SPEED is the goal."""
    cases = {
        f"15 s, 8+4, N={n}, chunks": {"beam": {"low": 1.1, "median": n / 2, "high": 1.9}} for n in (3, 30)
    }
    benchmark = kept / "chunking.json"
    benchmark.write_text(json.dumps({"cases": cases}), encoding="utf-8")
    models = ("flat=ConMamba", "chunked@8+4:3=H-Mamba, N = 3/8+4")
    assert _draw(kept, "speed", "--benchmark", str(benchmark), models=models) == 0
    assert _description(kept / "figure_light.svg") == [
        "beam search, ConMamba: WER 51.00 ± 1.41% (2 seeds), relative speed 1",
        "beam search, H-Mamba, N = 3, 8+4: WER 53.00 ± 0.00% (2 seeds), relative speed 1.5 (1.1 to 1.9)",
    ]
    words = _words(kept / "figure_light.svg")
    assert f"goal: ConMamba's WER at {plot_tradeoff.GOAL_SPEED} times its speed" in words
    assert "speed of encoder and search relative to ConMamba (right is faster)" in words
    capsys.readouterr()
    missing = ("flat=ConMamba", "chunked@7+5:3=H-Mamba")
    assert _draw(kept, "speed", "--benchmark", str(benchmark), models=missing) == 2
    assert capsys.readouterr().err == ("error: the benchmark has 0 cases of 7+5:3 with the search beam.\n")
    assert _draw(kept, "speed") == 2
    assert "speed needs --benchmark" in capsys.readouterr().err


def test_the_same_numbers_are_the_same_file(kept):
    command = ("rtf", "--machines", "laptop", "server")
    found = []
    for _ in range(2):
        assert _draw(kept, *command) == 0
        found.append([(kept / f"figure_{theme}.svg").read_bytes() for theme in ("light", "dark")])
    assert found[0] == found[1]
    assert not re.search(rb"<dc:date>|https?://(?!www\.w3\.org)", found[0][0])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"models": ("flat=ConMamba", "absent=H-Mamba")}, "there is no .*absent.results.json"),
        ({"more": ("--machines", "phone")}, "there is no .*flat.phone.efficiency.json"),
        ({"more": ()}, "rtf needs --machines"),
        ({"cost": "frames", "more": ("--machines", "laptop")}, "only rtf has them"),
        ({"models": ("ConMamba",)}, "--models needs NAME=LABEL, not 'ConMamba'"),
        (
            {"more": ("--machines", "laptop", "--split", "other")},
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
    given = {"cost": "rtf", "more": ("--machines", "laptop"), "models": (), **command}
    assert _draw(kept, given["cost"], *given["more"], models=given["models"]) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err) and printed.err.count("\n") == 1 and printed.out == ""
    assert not list(kept.glob("*.svg"))


def test_files_that_do_not_compare_are_refused(kept, capsys):
    speed = kept / "chunked.laptop.efficiency.json"
    before = speed.read_text()
    changes = {"protocol": {"utterances": 8, "batch": 8}, "torch": "2.8.0", "hardware": GPU, "split": "dev"}
    for key, value in changes.items():
        _edit(speed, **{key: value})
        assert _draw(kept, "rtf", "--machines", "laptop") == 2
        assert f"chunked was not measured as flat on laptop: another {key}." in capsys.readouterr().err
        speed.write_text(before)
    _edit(speed, subjects={})
    assert _draw(kept, "rtf", "--machines", "laptop") == 2
    assert "chunked has no speed of the search beam on laptop." in capsys.readouterr().err
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
