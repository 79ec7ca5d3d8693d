"""A corpus of tones in LibriSpeech's layout, and runs of train.py on it that tests share."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import speechbrain.utils.logger
import torch

from hmamba_asr.data.tokenizer import train_tokenizer

REPO = Path(__file__).resolve().parents[1]
SAMPLE_RATE = 16000
WORDS = {"DO": 262, "RE": 330, "MI": 392, "FA": 523, "SO": 659, "LA": 784}  # a word is a tone, in Hz
SPLITS = {"train": 24, "dev-clean": 6, "test-clean": 6, "test-other": 6}
TINY_RUN = {
    "valid_wer_every": 1,
    "train_splits": "[train]",
    "valid_splits": "[dev-clean]",
    "test_splits": "[test-clean, test-other]",
    "precision": "fp32",
    "n_mels": 20,
    "d_model": 16,
    "d_ffn": 32,
    "vocab_size": 16,
    "num_layers": 1,
    "d_state": 4,
    "model": "{num_decoder_layers: 1, nhead: 2}",
    "frontend": "{channels: [4, 4]}",
    "number_of_epochs": 2,
    "num_workers": 0,
    "log_every_steps": 1,
    "train_loader": "{max_batch_seconds: 4, num_buckets: 3}",
    "lr_schedule": "{n_warmup_steps: 5}",
    "beam_search": "{searcher: {beam_size: 2}}",
}
# One layer on frames and one on chunks.
H_MAMBA = {"yaml": "conmamba_mini+hmamba", "num_layers": 2, "outer_layers": 1}
H_NET = {
    "yaml": "conmamba_an4+hmamba+hnet",
    "num_layers": 2,
    "outer_layers": 1,
    "ratio_loss": "{weight: 0.5, warmup_steps: 16, ramp_steps: 20}",
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NO_RANDOMNESS = {"dropout": 0.0, "speed_perturb": "null", "spec_augment": "null"}


def write_corpus(root: Path) -> Path:
    """Write ``root/<split>/<speaker>/<chapter>/`` with utterances of 0.4 to 1.2 s and one to three words."""
    random = np.random.default_rng(0)
    for number, (split, utterances) in enumerate(SPLITS.items()):
        folder = root / split / str(10 + number) / "1"
        folder.mkdir(parents=True)
        lines = []
        for index in range(utterances):
            words = random.choice(list(WORDS), size=1 + index % 3)
            seconds = (
                np.arange(round((0.4 + 0.8 * index / (utterances - 1)) * SAMPLE_RATE / len(words)))
                / SAMPLE_RATE
            )
            tones = np.concatenate([0.3 * np.sin(2 * np.pi * WORDS[word] * seconds) for word in words])
            name = f"{10 + number}-1-{index:04d}"
            soundfile.write(
                folder / f"{name}.flac", tones + 0.01 * random.normal(size=len(tones)), SAMPLE_RATE
            )
            lines.append(f"{name} {' '.join(words)}\n")
        (folder / f"{10 + number}-1.trans.txt").write_text("".join(lines), encoding="utf-8")
    return root


@dataclass
class Run:
    """A finished run of train.py."""

    folder: Path
    code: int
    output: str
    errors: str

    def records(self, kind: str = "step") -> list[dict]:
        return read_log(self.folder, kind)

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8")

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))


def read_log(folder: Path, kind: str) -> list[dict]:
    """Read the records of one kind from a train_log.jsonl. A last line that is still being written is left
    out."""
    path = folder / "train_log.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [record for record in records if record["kind"] == kind]


class Processes:
    """The processes of a run, one for each rank."""

    def __init__(self, ranks: list[BaseProcess]):
        self.ranks = ranks

    @property
    def running(self) -> bool:
        return any(rank.is_alive() for rank in self.ranks)

    def send_signal(self, with_signal: signal.Signals) -> None:
        for rank in self.ranks:
            if rank.is_alive():
                os.kill(rank.pid, with_signal)

    def wait(self, timeout: float) -> int:
        """Return the exit code of a rank that failed (negative after a signal), or 0 if none did."""
        deadline = time.monotonic() + timeout
        try:
            for rank in self.ranks:
                rank.join(deadline - time.monotonic())
                if rank.is_alive():
                    raise TimeoutError(f"a process still runs after {timeout} s")
        finally:
            for rank in self.ranks:
                if rank.is_alive():
                    rank.kill()
        return next((rank.exitcode for rank in self.ranks if rank.exitcode), 0)


def start_script(script: Path, argv: list[str], folder: Path, *, processes: int = 1) -> Processes:
    """Run a script as ``python script argv`` does, in real processes of their own.

    They are forked from a server that has imported PyTorch and SpeechBrain, which takes longer than a tiny
    run. What they print goes to ``folder``.out and ``folder``.err.
    """
    server = multiprocessing.get_context("forkserver")
    with mock.patch.dict(os.environ, ENVIRONMENT):  # the server starts at the first call, and keeps it
        server.set_forkserver_preload(
            ["hmamba_asr.training.asr", "hmamba_asr.training.lm", "hmamba_asr.evaluation.run"]
        )
        forkserver.ensure_running()
    streams = [folder.with_suffix(suffix) for suffix in (".out", ".err")]
    for stream in streams:
        stream.write_text("")
    ranks = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        together = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        ranks = [{**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    packages = speechbrain.utils.logger.get_environment_description()
    started = []
    for rank in ranks:
        environment = {**os.environ, **ENVIRONMENT, **rank}
        started.append(
            server.Process(target=_run_as_main, args=(script, argv, streams, environment, packages))
        )
        started[-1].start()
    return Processes(started)


def _run_as_main(
    script: Path, argv: list[str], streams: list[Path], environment: dict[str, str], packages: str
) -> None:
    for descriptor, stream in zip((1, 2), streams, strict=True):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPO)
    torch.set_num_threads(1)
    speechbrain.utils.logger.get_environment_description = lambda: packages
    # The loader's workers are forked from this process, not from the server.
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")


class Recipe:
    """Command lines of train.py for a tiny model on the tones, and runs of them."""

    script = REPO / "train.py"

    def __init__(self, corpus: Path):
        self.corpus = corpus

    def arguments(
        self, output: Path, *, yaml: str = "conmamba_mini", randomness: bool = True, **overrides: object
    ) -> list[str]:
        """Build a command line. ``yaml`` "conmamba_mini+hmamba" is a base with a variant.

        An override of True is a flag, and None leaves an option out. Without ``randomness`` there is no
        dropout and no augmentation.
        """
        quiet = {} if randomness else NO_RANDOMNESS
        options = {"data_folder": self.corpus, "output_folder": output, **TINY_RUN, **quiet, **overrides}
        base, *variants = yaml.split("+")
        argv = [str(REPO / "hparams" / f"{base}.yaml"), "--noprogressbar"]
        for variant in variants:
            argv += ["--variant", str(REPO / "hparams" / "variants" / f"{variant}.yaml")]
        for name, value in options.items():
            if value is not None:
                argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return argv

    def start(self, argv: list[str], folder: Path, *, processes: int = 1) -> Processes:
        """Start the script in one process for each rank."""
        return start_script(self.script, argv, folder, processes=processes)

    def finish(self, processes: Processes, folder: Path, timeout: float = 150) -> Run:
        """Wait for the end of a run."""
        code = processes.wait(timeout)
        out, err = (folder.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return Run(folder, code, out, err)

    def look(self, folder: Path) -> Run:
        """Return what a run inside this process left."""
        return Run(folder, 0, "", "")

    def train(self, argv: list[str], folder: Path, *, processes: int = 1) -> Run:
        return self.finish(self.start(argv, folder, processes=processes), folder)

    def torchrun(self, argv: list[str], folder: Path, *, processes: int, timeout: float = 150) -> Run:
        """Run the script under torchrun, which ends all ranks when one fails."""
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(self.script), *argv]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPO)}
        with open(folder.with_suffix(".out"), "w") as out, open(folder.with_suffix(".err"), "w") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=REPO)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun passes it on
            process.wait()
            raise
        out, err = (folder.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return Run(folder, code, out, err)

    def interrupt(self, argv: list[str], folder: Path, *, at_step: int, with_signal: signal.Signals) -> Run:
        """Start a run and send it ``with_signal`` once its log shows optimizer step ``at_step``."""
        process = self.start(argv, folder)
        deadline = time.monotonic() + 90
        while process.running and time.monotonic() < deadline:
            if any(record["optimizer_step"] >= at_step for record in read_log(folder, "step")):
                break
            time.sleep(0.005)
        process.send_signal(with_signal)
        return self.finish(process, folder)


class LMRecipe(Recipe):
    """The same for train_lm.py, with a tiny model and sentences that follow a pattern."""

    script = REPO / "recipes" / "librispeech" / "train_lm.py"

    def __init__(self, folder: Path):
        draw, words = np.random.default_rng(3), ["one", "two", "three", "four", "five", "six", "seven"]
        lines = [
            " ".join((words * 3)[(start := draw.integers(7)) : start + draw.integers(1, 9)])
            for _ in range(40)
        ]
        self.text = folder / "sentences.txt"
        self.text.write_text("\n\n".join(lines), encoding="utf-8")  # empty lines between, none after
        manifest = folder / "manifest.csv"
        manifest.write_text(
            "ID,wrd\n" + "".join(f"{i},{line}\n" for i, line in enumerate(lines)), encoding="utf-8"
        )
        self.tokenizer = train_tokenizer(manifest=manifest, output_folder=folder, vocab_size=20)
        self.manifest = manifest

    def arguments(self, output: Path, **overrides: object) -> list[str]:
        options = {
            "output_folder": output,
            "tokenizer_file": self.tokenizer,
            "train_text": f"[{self.text}]",
            "valid_text": f"[{self.manifest}]",
            "vocab_size": 20,
            "train_loader": "{batch_size: 4}",
            "log_every_steps": 1,
            "number_of_epochs": 2,
            "model": "{d_model: 16, nhead: 2, d_ffn: 32}",
            "lr_schedule": "{n_warmup_steps: 10}",
            **overrides,
        }
        argv = [str(REPO / "hparams" / "lm" / "transformer_lm_demo.yaml"), "--noprogressbar"]
        return argv + [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="session", autouse=True)
def _packages_are_listed_once():
    """SpeechBrain lists the installed packages at every start, which takes longer than a tiny run."""
    described = functools.cache(speechbrain.utils.logger.get_environment_description)
    with mock.patch.object(speechbrain.utils.logger, "get_environment_description", described):
        yield


@pytest.fixture(scope="session")
def lm_recipe(tmp_path_factory) -> LMRecipe:
    return LMRecipe(tmp_path_factory.mktemp("sentences"))


@pytest.fixture
def train_script():
    """train.py as a module, for runs inside this process. Their changes of logging and sys are undone."""
    yield from _as_module(REPO / "train.py")


@pytest.fixture
def train_lm_script():
    yield from _as_module(LMRecipe.script)


@pytest.fixture
def train_ngram_script():
    yield from _as_module(REPO / "recipes" / "librispeech" / "train_ngram.py")


def _as_module(script: Path):
    specification = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(specification)
    root = logging.getLogger()
    before = root.level, root.handlers[:], sys.excepthook
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is tiny
    specification.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    for handler in root.handlers:
        if handler not in before[1]:
            handler.close()
    root.level, root.handlers[:], sys.excepthook = before


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def recipe(corpus) -> Recipe:
    return Recipe(corpus)


@pytest.fixture(scope="session")
def full_run(recipe, tmp_path_factory) -> Run:
    """A run of two epochs with dropout and augmentation."""
    folder = tmp_path_factory.mktemp("full") / "run"
    run = recipe.train(recipe.arguments(folder), folder)
    assert run.code == 0, run.errors
    return run


@pytest.fixture(scope="session")
def h_mamba_run(recipe, tmp_path_factory) -> Run:
    """The same run of an H-Mamba, whose heads read the chunks."""
    folder = tmp_path_factory.mktemp("hmamba") / "run"
    run = recipe.train(recipe.arguments(folder, **H_MAMBA), folder)
    assert run.code == 0, run.errors
    return run


@pytest.fixture(scope="session")
def h_net_run(recipe, tmp_path_factory) -> Run:
    """The same run with H-Net's router and ratio loss. The heads read frames."""
    folder = tmp_path_factory.mktemp("hnet") / "run"
    run = recipe.train(recipe.arguments(folder, **H_NET), folder)
    assert run.code == 0, run.errors
    return run


@pytest.fixture
def new_brain(train_script, recipe, tmp_path):
    """A function that builds a brain and its training, validation and test sets in this process."""

    def make(folder: Path = tmp_path / "run", **overrides: object):
        experiment = train_script.Experiment(recipe.arguments(folder, **overrides))
        sets = experiment.prepare()
        return train_script.ASRBrain.from_experiment(experiment), *sets

    return make
