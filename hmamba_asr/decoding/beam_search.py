"""The beam search that a YAML names: a searcher, its language models, and how they take part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.language_models import load_language_model
from hmamba_asr.decoding.scorers import InternalLMScorer
from hmamba_asr.decoding.search import Search
from hmamba_asr.lengths import to_relative
from hmamba_asr.models.asr import ASROutput

LM_FUSIONS = ("shallow", "rescore", "ilm")


class BeamSearch(Search):
    """Beam search over the output of an :class:`~hmamba_asr.models.asr.ASRModel`.

    Parameters
    ----------
    searcher
        A :class:`~hmamba_asr.decoding.beam.JointBeamSearcher`. One of SpeechBrain's searchers works too, but
        its results depend on the other utterances of a batch.
    lm
        The language model that the searcher's scorers hold.
    lm_folder
        The export folder of train_lm.py or train_ngram.py, whose language model joins the scorers.
    lm_weight
        Weight of the language model in ``lm_folder``.
    lm_fusion
        How language models take part. ``shallow``: in the search, beside the decoder. ``rescore``: they rank
        the ``beam_size`` best results of a search without them
        (:meth:`~hmamba_asr.decoding.beam.JointBeamSearcher.enable_rescoring`). ``ilm``: in the search, which
        also subtracts the decoder's internal language model
        (:class:`~hmamba_asr.decoding.scorers.InternalLMScorer`).
    internal_lm_weight
        Weight of the internal language model, for ``ilm`` only.

    Raises
    ------
    ValueError
        If ``lm_fusion`` is unknown, if a setting has no effect or lacks another one that it needs, or if a
        language model is to join one of SpeechBrain's searchers.
    """

    def __init__(
        self,
        *,
        searcher: nn.Module,
        lm: nn.Module | None = None,
        lm_folder: str | None = None,
        lm_weight: float = 0.0,
        lm_fusion: str = "shallow",
        internal_lm_weight: float | None = None,
    ):
        super().__init__(searcher=searcher, lm_folder=lm_folder)
        if lm_fusion not in LM_FUSIONS:
            raise ValueError(f"lm_fusion is '{lm_fusion}'; choose one of {', '.join(LM_FUSIONS)}.")
        if internal_lm_weight is not None and lm_fusion != "ilm":
            raise ValueError(
                f"internal_lm_weight is {internal_lm_weight} and lm_fusion {lm_fusion}; set lm_fusion: ilm."
            )
        if internal_lm_weight is None and lm_fusion == "ilm":
            raise ValueError(
                "lm_fusion is ilm without an internal_lm_weight; set one, for example"
                " {lm_fusion: ilm, internal_lm_weight: 0.1}."
            )
        if isinstance(searcher, JointBeamSearcher):
            lm = _add_language_models(searcher, lm, lm_folder, lm_weight, lm_fusion, internal_lm_weight)
        elif lm_folder or lm_fusion != "shallow":
            raise ValueError(
                "lm_folder and lm_fusion need JointBeamSearcher; the searcher is a"
                f" {type(searcher).__name__}."
            )
        self.lm = lm

    @torch.no_grad()
    def forward(self, output: ASROutput) -> list[list[int]]:
        """Return the tokens of the best hypothesis of each utterance."""
        states, lengths = self._states(output)
        assert self.searcher is not None
        hypotheses, _, _, _ = self.searcher(states, to_relative(lengths, states.shape[1]).float())
        return hypotheses

    def first_tokens(self, output: ASROutput) -> list[int | None]:
        """Return the best first token of each utterance after one step.

        See :meth:`JointBeamSearcher.first_tokens <hmamba_asr.decoding.beam.JointBeamSearcher.first_tokens>`.

        Raises
        ------
        ValueError
            If an utterance has no encoder states, or the searcher is one of SpeechBrain's, which cannot stop
            after a step.
        """
        if not isinstance(self.searcher, JointBeamSearcher):
            raise ValueError(
                f"{type(self.searcher).__name__} cannot stop after its first step; use JointBeamSearcher."
            )
        return list(self.searcher.first_tokens(*self._states(output)))

    def _states(self, output: ASROutput) -> tuple[Tensor, Tensor]:
        """Return the states in float32, cut at the longest utterance: SpeechBrain's masks end there."""
        if self.lm is not None:
            self.lm.eval()
        lengths = output.encoded.lengths
        return output.encoded.states[:, : int(lengths.max())].float(), lengths


def _add_language_models(
    searcher: JointBeamSearcher,
    lm: nn.Module | None,
    lm_folder: str | None,
    lm_weight: float,
    lm_fusion: str,
    internal_lm_weight: float | None,
) -> nn.Module | None:
    """Give the searcher its language models; return the one that must follow the search to its device."""
    if lm_weight and not lm_folder and any(scorer.can_rescore for scorer in searcher.scorers):
        raise ValueError(
            f"lm_weight is {lm_weight} and there is no lm_folder; the weight of the scorers' language model"
            " stands among theirs: {searcher: {scorer: {weights: {transformerlm: ...}}}}."
        )
    if lm_folder:
        joining = load_language_model(lm_folder, weight=lm_weight, vocab_size=searcher.fc.w.out_features)
        searcher.add_scorer(joining)
        lm = joining.model
    if lm_fusion != "shallow" and not any(scorer.can_rescore for scorer in searcher.scorers):
        raise ValueError(
            f"lm_fusion is {lm_fusion} and the search has no language model; give --lm_folder, or its scorer"
            " in the YAML."
        )
    if lm_fusion == "rescore":
        searcher.enable_rescoring()
    elif lm_fusion == "ilm":
        assert internal_lm_weight is not None
        searcher.add_scorer(
            InternalLMScorer(
                searcher.decoder, searcher.fc, weight=internal_lm_weight, temperature=searcher.temperature
            )
        )
    return lm
