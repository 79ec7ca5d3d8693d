"""Searches behind one call: ``search(output: ASROutput) -> token ids of the best hypothesis of each utterance``."""

from __future__ import annotations

import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from torch import Tensor, nn

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


class BeamSearcher(S2STransformerBeamSearcher):
    """SpeechBrain's beam searcher with every utterance's step limits taken from its own length.

    SpeechBrain derives them from the longest utterance of the batch, so that a shorter one goes on where it would have been
    closed alone, and its hypothesis depends on its batch mates. Here its open beams are closed at its own limit, as
    SpeechBrain closes them at the batch's; a full utterance takes no further hypotheses. The limit is also kept within the
    decoder's ``max_target_length``. Same arguments as the parent.
    """

    def change_max_decoding_length(self, min_decode_steps: int, max_decode_steps: int) -> tuple[int, int]:
        return min_decode_steps, max(1, min(max_decode_steps, self.model.max_target_length))

    def init_beam_search_data(self, enc_states: Tensor, wav_len: Tensor):
        data = super().init_beam_search_data(enc_states, wav_len)
        frames = data[-1].double()  # of each beam, (B x beam,)
        self.min_steps = (frames * self.min_decode_ratio).long()
        self.max_steps = (frames * self.max_decode_ratio).long().clamp(1, self.max_decode_steps)
        return data

    def _set_eos_minus_inf_step(self, log_probs: Tensor, step: int, min_decode_steps: int) -> Tensor:
        log_probs[step < self.min_steps, self.eos_index] = self.minus_inf
        return log_probs

    def search_step(self, *state):
        """Arguments and results as the parent's; closes the utterances whose last step this is."""
        result = super().search_step(*state)
        alived, finished, step, scores = result[0], result[3], state[-1], result[-1]
        last = self.max_steps == step + 1
        if last.any():
            tokens = torch.full_like(self.max_steps, -1).masked_fill(last, self.eos_index)
            self._update_hyps_and_scores_if_eos_token(tokens, alived, finished, scores)
        return result


class BeamSearch(nn.Module):
    """Joint beam search over the attention decoder and whatever its scorers add (CTC, language model).

    ``searcher`` is a :class:`BeamSearcher`; any other of SpeechBrain's runs too, but lets batch mates matter.
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
        longest = int(encoded.lengths.max())  # the searcher's masks allow no frames past it
        relative = to_relative(encoded.lengths, longest).float()
        hypotheses, _, _, _ = self.searcher(encoded.states[:, :longest].float(), relative)
        return hypotheses
