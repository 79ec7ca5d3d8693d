"""What every search has in common: from the output of a model to tokens."""

from __future__ import annotations

from torch import nn

from hmamba_asr.models.asr import ASROutput


class Search(nn.Module):
    """Base class of the searches that a YAML names in ``valid_search`` and ``test_searches``.

    A subclass defines :meth:`forward`, which is all that training and evaluation call, and
    :meth:`first_tokens`, by which ``hmamba-asr efficiency`` measures the time to the first token. It needs no
    registration. It keeps these rules:

    - The tokens of an utterance do not depend on the other utterances of the batch.
    - A language model that belongs to the search alone is a submodule. It then follows the search to its
      device, and a change of its weights makes a repeated evaluation search again.
    - The recogniser is no submodule, nor is a part of it. Its owner moves it to a device and sets its mode.
      What refers to the recogniser is given as ``searcher``, which is not registered.

    Parameters
    ----------
    searcher
        What searches for this class, if anything. ``hmamba-asr tune`` changes its weights if it is a
        :class:`~hmamba_asr.decoding.beam.JointBeamSearcher`.
    lm_folder
        A folder from which the search read a language model, if any. A change of its files makes a repeated
        evaluation search again; the weights of submodules alone would not show that an n-gram has changed.
    """

    searcher: nn.Module | None
    lm_folder: str | None

    def __init__(self, *, searcher: nn.Module | None = None, lm_folder: str | None = None):
        super().__init__()
        object.__setattr__(self, "searcher", searcher)  # past nn.Module, which would register it
        self.lm_folder = lm_folder

    def forward(self, output: ASROutput) -> list[list[int]]:
        """Return the tokens of each utterance, without blanks and end of sentence."""
        raise NotImplementedError

    def first_tokens(self, output: ASROutput) -> list[int | None]:
        """Return the first token of each utterance as early as the search can give it.

        Returns
        -------
        list of int or None
            One token for each utterance; None for an utterance without tokens.

        Raises
        ------
        ValueError
            If the search cannot give a first token.
        """
        raise NotImplementedError
