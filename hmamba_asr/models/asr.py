"""The whole recogniser: front-end, any encoder, CTC head and attention decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    NormalizedEmbedding,
    PositionalEncoding,
    TransformerDecoder,
)
from speechbrain.nnet.linear import Linear
from torch import Tensor, nn

from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.outputs import EncoderOutput


@dataclass
class ASROutput:
    """Encoder output, CTC logits (B, T, vocab), with targets attention logits (B, U, vocab), and where asked
    for the CTC logits of the encoder's intermediate output."""

    encoded: EncoderOutput
    ctc_logits: Tensor
    attention_logits: Tensor | None
    intermediate_logits: Tensor | None = None


def ctc_frames_needed(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Frames (B,) that the CTC needs to emit each target: its labels, and a blank between repeated ones."""
    if targets.shape[1] < 2:
        return target_lengths
    inside = valid_mask(target_lengths, targets.shape[1])[:, 1:]
    return target_lengths + ((targets[:, 1:] == targets[:, :-1]) & inside).sum(1)


class ASRModel(nn.Module):
    """Hybrid CTC / attention model; does not know which encoder it has.

    The decoder is SpeechBrain's pre-norm ``TransformerDecoder``. ``ctc_head`` and ``output_head`` are
    SpeechBrain's linear layers d_model -> vocabulary, which the beam searcher shares. ``decode`` has the
    signature SpeechBrain's searchers call.

    Raises
    ------
    ValueError
        In ``forward``, if a target is longer than ``max_target_length`` tokens, or the encoder lacks the
        intermediate output that is asked for.
    """

    def __init__(
        self,
        *,
        frontend: nn.Module,
        encoder: nn.Module,
        ctc_head: Linear,
        output_head: Linear,
        d_model: int,
        num_decoder_layers: int,
        nhead: int,
        d_ffn: int,
        dropout: float,
        max_target_length: int = 2500,
    ):
        super().__init__()
        self.frontend, self.encoder = frontend, encoder
        self.ctc_head, self.output_head = ctc_head, output_head
        self.max_target_length = max_target_length
        self.embedding = NormalizedEmbedding(d_model, output_head.w.out_features)
        self.positions = PositionalEncoding(d_model, max_len=max_target_length)
        self.decoder = TransformerDecoder(
            num_layers=num_decoder_layers,
            nhead=nhead,
            d_ffn=d_ffn,
            d_model=d_model,
            dropout=dropout,
            activation=nn.GELU,
            normalize_before=True,
        )
        for module in (self.decoder, ctc_head, output_head):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_normal_(parameter)

    def encode(self, features: Tensor, lengths: Tensor, min_states: Tensor | None = None) -> EncoderOutput:
        """Features (B, T, n_mels) with lengths (B,) in frames -> encoder output at the subsampled rate.

        Where min_states (B,) are given, the encoder, one that shortens its output, keeps at least so many.
        """
        floor = () if min_states is None else (min_states,)
        return self.encoder(*self.frontend(features, lengths), *floor)

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        tokens_bos: Tensor | None = None,
        token_lengths: Tensor | None = None,
        intermediate: bool = False,
    ) -> ASROutput:
        """tokens_bos (B, U): begin-of-sentence and the labels, token_lengths (B,) counting both. With
        ``intermediate``, the CTC head reads the encoder's intermediate output too.

        In training an encoder that ``shortens`` is held to as many states as the CTC needs for the labels; in
        evaluation it does not know them.
        """
        floor = None
        if self.training and tokens_bos is not None and getattr(self.encoder, "shortens", False):
            floor = ctc_frames_needed(tokens_bos[:, 1:], token_lengths - 1)
        encoded = self.encode(features, lengths, floor)
        attention_logits = None
        if tokens_bos is not None:
            hidden, _ = self._decoder_states(tokens_bos, encoded.states, encoded.lengths, token_lengths)
            attention_logits = self.output_head(hidden)
        intermediate_logits = None
        if intermediate:
            if encoded.intermediate is None:
                raise ValueError(
                    "intermediate_ctc_weight is above 0, but the encoder has no intermediate output; give a ConMambaEncoder an "
                    "intermediate_layer."
                )
            intermediate_logits = self.ctc_head(encoded.intermediate.states)
        return ASROutput(encoded, self.ctc_head(encoded.states), attention_logits, intermediate_logits)

    def decode(self, tokens: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, U, d_model) after each prefix of ``tokens`` (B, U), and the last layer's
        attention (B, U, T)."""
        hidden, attentions = self._decoder_states(tokens.long(), states, lengths, None)
        return hidden, attentions[-1]

    def _decoder_states(self, tokens: Tensor, states: Tensor, lengths: Tensor, token_lengths: Tensor | None):
        if tokens.shape[1] > self.max_target_length:
            raise ValueError(
                f"a target has {tokens.shape[1]} tokens and the decoder's limit is {self.max_target_length}; leave such "
                "utterances out with max_duration or raise max_target_length."
            )
        embedded = self.embedding(tokens)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        hidden, _, attentions = self.decoder(
            embedded + self.positions(embedded),
            states,
            tgt_mask=steps > steps.unsqueeze(1),  # true where a step would see its future
            tgt_key_padding_mask=None
            if token_lengths is None
            else ~valid_mask(token_lengths, tokens.shape[1]),
            memory_key_padding_mask=~valid_mask(lengths, states.shape[1]),
        )
        return hidden, attentions
