"""Language models that training left in an export folder, loaded as scorers of a beam search."""

from __future__ import annotations

from pathlib import Path

import torch
from speechbrain.decoders import scorer as speechbrain_scorers

from hmamba_asr.config.hparams import load_hparams
from hmamba_asr.decoding.scorers import NgramScorer, Scorer, TransformerLMScorer


def load_language_model(folder: str | Path, *, weight: float, vocab_size: int) -> Scorer:
    """Load the language model in an export folder as a scorer.

    Parameters
    ----------
    folder
        What train_lm.py exports (lm.yaml, lm.ckpt), or train_ngram.py (ngram.bin or ngram.arpa, tokens.txt).
    weight
        Weight of the scorer.
    vocab_size
        Number of tokens that the recogniser has.

    Returns
    -------
    Scorer
        A full scorer for a Transformer LM, a partial one for an n-gram.

    Raises
    ------
    FileNotFoundError
        If the folder lacks one of these files.
    ValueError
        If the model has another vocabulary, or an n-gram cannot be read or lacks the package kenlm.
    """
    folder = Path(folder)
    ngram = next((path for name in ("ngram.bin", "ngram.arpa") if (path := folder / name).is_file()), None)
    needed = [folder / name for name in (("lm.yaml", "lm.ckpt") if ngram is None else ("tokens.txt",))]
    for path in needed:
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}; lm_folder must be the export folder of train_lm.py or train_ngram.py."
            )
    if ngram is not None:
        tokens = needed[0].read_text(encoding="utf-8").rstrip("\n").split("\n")
        _require_vocabulary(folder, len(tokens), vocab_size)
        try:
            return NgramScorer(
                speechbrain_scorers.KenLMScorer(str(ngram), vocab_size, tokens), weight, partial=True
            )
        except ImportError as error:
            raise ValueError(f"{ngram} needs the package kenlm; install it: pip install kenlm.") from error
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"KenLM cannot read {ngram} ({' '.join(str(error).split())}); run train_ngram.py again."
            ) from error
    model = load_hparams(needed[0].read_text(encoding="utf-8"))["model"]
    model.load_state_dict(torch.load(needed[1], map_location="cpu", weights_only=True))
    _require_vocabulary(folder, model.custom_src_module.emb.num_embeddings, vocab_size)
    return TransformerLMScorer(speechbrain_scorers.TransformerLMScorer(model), weight, partial=False)


def _require_vocabulary(folder: Path, size: int, vocab_size: int) -> None:
    """Raise ValueError if the language model has another number of tokens than the recogniser."""
    if size != vocab_size:
        raise ValueError(
            f"the language model in {folder} has {size} tokens and the recogniser {vocab_size}; train it with"
            " the recogniser's tokenizer."
        )
