"""Recognisers with random weights, and SpeechBrain's beam search as the reference of ours."""

import pytest
import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.nnet.linear import Linear

from hmamba_asr.models.asr import ASRModel
from hmamba_asr.models.conformer import ConformerEncoder
from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.modules.frontend import ConvSubsampling

EOS, VOCAB, N_MELS = 2, 12, 20


class ReferenceSearcher(S2STransformerBeamSearcher):
    """SpeechBrain's beam search, with step limits for each utterance and the attention of the newest token.

    SpeechBrain derives the limits from the longest utterance of the batch, and hands the attention of the
    whole prefix to rules that take it for that of one token. Here the open beams of an utterance are closed
    at its own limit, as SpeechBrain closes them at the batch's; a full utterance takes no further hypotheses.
    """

    def change_max_decoding_length(self, min_decode_steps, max_decode_steps):
        return min_decode_steps, max(1, min(max_decode_steps, getattr(self.model, "max_target_length", 2500)))

    def init_beam_search_data(self, enc_states, wav_len):
        data = super().init_beam_search_data(enc_states, wav_len)
        frames = data[-1].double()  # of each beam, (B x beam,)
        self.min_steps = (frames * self.min_decode_ratio).long()
        self.max_steps = (frames * self.max_decode_ratio).long().clamp(1, self.max_decode_steps)
        return data

    def forward_step(self, inp_tokens, memory, enc_states, enc_lens):
        log_probs, memory, attention = super().forward_step(inp_tokens, memory, enc_states, enc_lens)
        return log_probs, memory, attention[:, -1]

    def _set_eos_minus_inf_step(self, log_probs, step, min_decode_steps):
        log_probs[step < self.min_steps, self.eos_index] = self.minus_inf
        return log_probs

    def search_step(self, *state):
        result = super().search_step(*state)
        alived, finished, step, scores = result[0], result[3], state[-1], result[-1]
        last = self.max_steps == step + 1
        if last.any():
            tokens = torch.full_like(self.max_steps, -1).masked_fill(last, self.eos_index)
            self._update_hyps_and_scores_if_eos_token(tokens, alived, finished, scores)
        return result


@pytest.fixture(scope="session")
def reference_searcher():
    return ReferenceSearcher


@pytest.fixture(scope="session")
def recogniser():
    """Return a function that makes random recognisers with sharp heads.

    A higher ``eos_bias`` ends hypotheses earlier.
    """

    def make(kind="conmamba", seed=0, eos_bias=0.0, vocab=VOCAB):
        torch.manual_seed(seed)
        sizes = {"num_layers": 1, "d_model": 16, "d_ffn": 32, "kernel_size": 3, "dropout": 0.1}
        model = ASRModel(
            frontend=ConvSubsampling(n_mels=N_MELS, channels=[4, 4], d_model=16, dropout=0.1),
            encoder=ConMambaEncoder(**sizes, d_state=4)
            if kind == "conmamba"
            else ConformerEncoder(**sizes, nhead=2),
            ctc_head=Linear(input_size=16, n_neurons=vocab),
            output_head=Linear(input_size=16, n_neurons=vocab),
            d_model=16,
            num_decoder_layers=1,
            nhead=2,
            d_ffn=32,
            dropout=0.1,
            max_target_length=40,
        ).eval()
        with torch.no_grad():
            for head in (model.ctc_head, model.output_head):
                head.w.weight.mul_(2)
            model.output_head.w.bias[EOS] += eos_bias
        return model

    return make
