"""The layout of a run's output folder: the name of every file that one part writes and another reads."""

from __future__ import annotations

from pathlib import Path


class RunLayout:
    """Paths in the output folder of a run, whether or not they exist.

    Parameters
    ----------
    folder : str or Path
        The output folder of train.py.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def hyperparams(self) -> Path:
        """The resolved YAML."""
        return self.folder / "hyperparams.yaml"

    @property
    def training_log(self) -> Path:
        """The training journal, a JSON object on each line."""
        return self.folder / "train_log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints. Training takes it from the YAML: checkpoints_dir of the checkpointer."""
        return self.folder / "save"

    @property
    def manifests(self) -> Path:
        """Folder of the manifests."""
        return self.folder / "manifests"

    def manifest(self, split: str) -> Path:
        """Return the CSV with the recordings of a split."""
        return self.manifests / f"{split}.csv"

    @property
    def tokenizers(self) -> Path:
        """Folder of the tokenizer that the run trained."""
        return self.folder / "tokenizer"

    def tokenizer(self, model_type: str, vocab_size: int) -> Path:
        """Return the SentencePiece model that the run trained."""
        return self.tokenizers / tokenizer_name(model_type, vocab_size)

    @property
    def pretrained(self) -> Path:
        """Folder of the pretrained files that recognition collects."""
        return self.folder / "pretrained"

    @property
    def results(self) -> Path:
        """Results of the evaluation."""
        return self.folder / "results.json"

    @property
    def efficiency(self) -> Path:
        """Figures of ``hmamba-asr efficiency``."""
        return self.folder / "efficiency.json"

    @property
    def tests(self) -> Path:
        """Folder of what the evaluation decoded."""
        return self.folder / "test"

    def transcripts(self, split: str, search: str) -> Path:
        """Return the folder with the transcripts and alignments of one split with one search."""
        return self.tests / split / search

    def chunks(self, split: str) -> Path:
        """Return the file that says where the chunks of each utterance begin, the same for every search."""
        return self.tests / split / "chunks.jsonl"


def tokenizer_name(model_type: str, vocab_size: int) -> str:
    """Return the file name of a trained SentencePiece model."""
    return f"{model_type}{vocab_size}.model"
