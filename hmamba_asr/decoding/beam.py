"""Searches behind one call: ``search(output: ASROutput) -> token ids of the best hypothesis of each utterance``."""

from __future__ import annotations

import torch
from torch import nn

from hmamba_asr.decoding.ctc import ctc_greedy
from hmamba_asr.lengths import to_relative
from hmamba_asr.models.asr import ASROutput


class GreedySearch(nn.Module):
    """Greedy decoding of the CTC head."""

    def __init__(self, *, blank: int):
        super().__init__()
        self.blank = blank

    @torch.no_grad()
    def forward(self, output: ASROutput) -> list[list[int]]:
        return ctc_greedy(output.ctc_logits, output.encoded.lengths, blank=self.blank)


class BeamSearch(nn.Module):
    """SpeechBrain's joint beam search over the attention decoder and whatever its scorers add (CTC, language model).

    ``lm`` names the language model that the scorers hold, so that it follows the search to its device.
    """

    def __init__(self, *, searcher: nn.Module, lm: nn.Module | None = None):
        super().__init__()
        self.lm = lm
        # Not a submodule: the searcher holds the recogniser itself, whose device and mode are the Brain's business.
        object.__setattr__(self, "searcher", searcher)

    @torch.no_grad()
    def forward(self, output: ASROutput) -> list[list[int]]:
        encoded = output.encoded
        if self.lm is not None:
            self.lm.eval()
        relative = to_relative(encoded.lengths, encoded.states.shape[1]).float()
        hypotheses, _, _, _ = self.searcher(encoded.states.float(), relative)
        return hypotheses
