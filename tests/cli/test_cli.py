from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import hmamba_asr
from hmamba_asr import cli
from hmamba_asr.data import librispeech


@pytest.fixture
def corpus(tmp_path):
    chapter = tmp_path / "data" / "dev" / "1" / "2"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "1-2-0000.flac", np.zeros(8000), 16000)
    (chapter / "1-2.trans.txt").write_text("1-2-0000 HELLO\n")
    return tmp_path / "data"


def prepare(corpus, *more: str) -> int:
    manifests = str(corpus.parent / "m")
    return cli.main(["prepare", "--data_folder", str(corpus), "--manifest_folder", manifests, *more])


def test_prepare_writes_the_manifests_and_names_them(corpus, capsys):
    assert prepare(corpus, "--splits", "dev") == 0
    path = corpus.parent / "m" / "dev.csv"
    assert capsys.readouterr().out == f"{path}\n"
    assert "1-2-0000,0.500000,$data_root/dev/1/2/1-2-0000.flac,1,HELLO" in path.read_text()


def test_every_option_of_prepare_arrives(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(librispeech, "prepare_manifests", lambda **options: seen.update(options) or {})
    command = ["prepare", "--data_folder", "D", "--splits", "a", "b", "--manifest_folder", "M"]
    command += ["--on_bad_data", "skip", "--sample_rate", "8000", "--min_duration", "0.5"]
    assert cli.main([*command, "--max_duration", "20", "--num_workers", "3"]) == 0
    assert seen == {
        "data_folder": "D",
        "splits": ["a", "b"],
        "manifest_folder": "M",
        "on_bad_data": "skip",
        "sample_rate": 8000,
        "min_duration": 0.5,
        "max_duration": 20.0,
        "num_workers": 3,
    }


def test_a_bad_corpus_is_an_error_message_without_traceback(corpus, capsys):
    (corpus / "dev" / "1" / "2" / "1-2-0001.flac").write_bytes(b"no audio")
    assert prepare(corpus, "--splits", "dev", "test") == 2
    error = capsys.readouterr().err
    assert "error: missing in data_folder" in error and "1-2-0001.flac" in error
    assert "Traceback" not in error
    assert prepare(corpus, "--splits", "dev", "--on_bad_data", "skip") == 0


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("no disk"), ModuleNotFoundError("install")])
def test_user_errors_are_one_line(monkeypatch, capsys, error):
    def fail(**options):
        raise error

    monkeypatch.setattr(cli.download, "download", fail)
    assert cli.main(["download", "dev-clean", "--dest", "D"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli.download, "download", lambda **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["download", "dev-clean", "--dest", "D"])


def test_download_passes_its_arguments_and_ctrl_c_is_calm(monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(
        cli.download, "download", lambda **options: seen.update(options) or {"dev-clean": "D/L"}
    )
    command = ["download", "dev-clean", "dev-other", "--dest", "D"]
    assert cli.main([*command, "--base_url", "http://m/12", "--retries", "2"]) == 0
    splits = ["dev-clean", "dev-other"]
    assert seen == {"splits": splits, "dest": "D", "base_url": "http://m/12", "retries": 2}
    assert capsys.readouterr().out == "D/L\n"

    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.download, "download", interrupt)
    assert cli.main(["download", "dev-clean", "--dest", "D"]) == 130


def test_demo_calls_the_builder(monkeypatch, capsys):
    from hmamba_asr.data import demo

    seen = []
    monkeypatch.setattr(demo, "build_demo_corpus", lambda **options: seen.append(options) or "where")
    assert cli.main(["demo", "--dest", "D", "--seed", "5"]) == 0
    assert cli.main(["demo", "--dest", "D"]) == 0
    assert seen == [{"dest": "D", "seed": 5}, {"dest": "D"}]
    assert capsys.readouterr().out == "where\nwhere\n"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["download"],
        ["prepare"],
        ["demo"],
        ["transcribe"],
        ["tune"],
        ["compare"],
        ["boundaries"],
        ["efficiency"],
        ["report"],
    ],
)
def test_help_and_missing_arguments(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([*command, "--help"])
    assert done.value.code == 0 and "usage: hmamba-asr" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        cli.main(command)
    assert refused.value.code == 2


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["tune", "--help"], ["demo", "--help"]])
def test_the_command_line_answers_without_heavy_imports(argv):
    """Look at the loaded modules in a process of its own, started as ``python -m hmamba_asr``."""
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = {argv}\n"
        "try: runpy.run_module('hmamba_asr', run_name='__main__')\n"
        "except SystemExit as done: status = done.code\n"
        "heavy = {'torch', 'speechbrain', 'sentencepiece', 'scipy', 'matplotlib', 'hyperpyyaml'}\n"
        "print('status', status, 'heavy', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "status 0 heavy []"
    assert "hmamba-asr" in result.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"hmamba-asr {hmamba_asr.__version__}\n"


def test_each_subcommand_is_its_module():
    """The list of commands, the modules of the folder and the names on the command line agree."""
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__"}
    assert {command.__name__.split(".")[-1] for command in cli.COMMANDS} == modules
    parsers = argparse.ArgumentParser().add_subparsers()
    for command in cli.COMMANDS:
        command.add_parser(parsers)
    assert set(parsers.choices) == modules
