"""A corpus of tones in LibriSpeech's layout, and runs of train.py on it that several tests look at."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
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
    "encoder": "{num_layers: 1, d_state: 4}",
    "model": "{num_decoder_layers: 1, nhead: 2}",
    "frontend": "{channels: [4, 4]}",
    "number_of_epochs": 2,
    "num_workers": 0,
    "log_every_steps": 1,
    "train_loader": "{max_batch_seconds: 4, num_buckets: 3}",
    "lr_schedule": "{n_warmup_steps: 5}",
    "beam_search": "{searcher: {beam_size: 2}}",
}
NO_RANDOMNESS = {"dropout": 0.0, "speed_perturb": "null", "spec_augment": "null"}


def write_corpus(root: Path) -> Path:
    """``root/<split>/<speaker>/<chapter>/``; utterances of 0.4 to 1.2 s, one to three words each."""
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
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))


def read_log(folder: Path, kind: str) -> list[dict]:
    """Whole lines of one kind in a train_log.jsonl, which a run may be writing just now."""
    path = folder / "train_log.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [record for record in records if record["kind"] == kind]


class Recipe:
    """Command lines of train.py for a tiny model on the tones, and runs of them."""

    script = REPO / "train.py"

    def __init__(self, corpus: Path):
        self.corpus = corpus

    def arguments(
        self, output: Path, *, yaml: str = "conmamba_mini", randomness: bool = True, **overrides: object
    ) -> list[str]:
        """Dropout and augmentation unless ``randomness`` is off; an override of True is a flag, of None
        leaves an option out; a ``yaml`` of "conmamba_mini+hmamba" is a base with a variant."""
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

    def start(self, argv: list[str], folder: Path, *, processes: int = 1) -> subprocess.Popen:
        """train.py as a user starts it: python, or torchrun for several processes."""
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
            launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(REPO),
        }
        with open(folder.with_suffix(".out"), "w") as out, open(folder.with_suffix(".err"), "w") as err:
            return subprocess.Popen(
                [*launcher, str(self.script), *argv], stdout=out, stderr=err, env=environment, cwd=REPO
            )

    def finish(self, process: subprocess.Popen, folder: Path, timeout: float = 150) -> Run:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun passes it on
            process.wait()
            raise
        return Run(
            folder, code, folder.with_suffix(".out").read_text(), folder.with_suffix(".err").read_text()
        )

    def look(self, folder: Path) -> Run:
        """At what a run inside this process left."""
        return Run(folder, 0, "", "")

    def train(self, argv: list[str], folder: Path, *, processes: int = 1) -> Run:
        return self.finish(self.start(argv, folder, processes=processes), folder)

    def interrupt(self, argv: list[str], folder: Path, *, at_step: int, with_signal: signal.Signals) -> Run:
        """Start a run and send it ``with_signal`` once its log shows optimizer step ``at_step``."""
        process = self.start(argv, folder)
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            if any(record["optimizer_step"] >= at_step for record in read_log(folder, "step")):
                break
            time.sleep(0.005)
        process.send_signal(with_signal)
        return self.finish(process, folder)


class LMRecipe(Recipe):
    """The same for train_lm.py with a tiny model, on made-up sentences that follow a pattern."""

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


@pytest.fixture(scope="session")
def lm_recipe(tmp_path_factory) -> LMRecipe:
    return LMRecipe(tmp_path_factory.mktemp("sentences"))


@pytest.fixture
def train_script():
    """train.py as a module, for runs inside this process; what such a run does to logging and sys is
    undone."""
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
    """Two epochs without interruption, dropout and augmentation on."""
    folder = tmp_path_factory.mktemp("full") / "run"
    run = recipe.train(recipe.arguments(folder), folder)
    assert run.code == 0, run.errors
    return run


@pytest.fixture
def new_brain(train_script, recipe, tmp_path):
    """Makes a Brain in this process with its training, validation and test sets, as train.py does."""

    def make(folder: Path = tmp_path / "run", **overrides: object):
        experiment = train_script.Experiment(recipe.arguments(folder, **overrides))
        sets = experiment.prepare()
        return train_script.ASRBrain.from_experiment(experiment), *sets

    return make
