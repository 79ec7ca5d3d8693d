"""The whole recogniser: front-end, any encoder, CTC head and attention decoder.

Shapes: B utterances, F feature frames, T encoder frames, S encoder states, U tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    NormalizedEmbedding,
    PositionalEncoding,
    TransformerDecoder,
)
from speechbrain.nnet.linear import Linear
from torch import Tensor, nn

from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.outputs import Encoder, EncoderOutput, check_encoder
from hmamba_asr.modules.frontend import ConvSubsampling


@dataclass
class ASROutput:
    """What a recogniser returns.

    Attributes
    ----------
    encoded : EncoderOutput
        The encoder's output.
    ctc_logits : Tensor
        Logits of the CTC (B, S, vocab).
    attention_logits : Tensor or None
        Logits of the decoder (B, U, vocab), if targets were given.
    intermediate_logits : Tensor or None
        Logits of the CTC head on the encoder's intermediate output (B, T, vocab), if they were asked for.
    """

    encoded: EncoderOutput
    ctc_logits: Tensor
    attention_logits: Tensor | None
    intermediate_logits: Tensor | None = None


def min_ctc_steps(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Return the minimum number of steps (B,) in which the CTC can emit each target.

    A step is one state that the CTC reads, a frame or a chunk. It takes one step per label of ``targets``
    (B, U), and one for a blank between repeated labels.
    """
    if targets.shape[1] < 2:
        return target_lengths
    inside = valid_mask(target_lengths, targets.shape[1])[:, 1:]
    return target_lengths + ((targets[:, 1:] == targets[:, :-1]) & inside).sum(1)


class ASRModel(nn.Module):
    """Hybrid CTC / attention model (Watanabe et al., https://doi.org/10.1109/JSTSP.2017.2763455).

    The encoder may be any :class:`~hmamba_asr.models.outputs.Encoder`. The decoder is SpeechBrain's pre-norm
    ``TransformerDecoder``, and ``decode`` has the signature that SpeechBrain's searchers call.

    Parameters
    ----------
    frontend : ConvSubsampling
        Features (B, F, n_mels) -> encoder frames (B, T, d_model).
    encoder : Encoder
        Encoder frames (B, T, d_model) -> states (B, S, d_model).
    ctc_head, output_head : Linear
        SpeechBrain's linear layers d_model -> vocabulary: of the CTC, and of the decoder. The model owns them
        and hands the CTC head to an encoder that reads the CTC.
    d_model : int
        Width of encoder states and decoder.
    num_decoder_layers, nhead, d_ffn, dropout
        The decoder's number of layers and attention heads, feed-forward width and dropout probability.
    max_target_length : int
        Largest number of tokens in a target.

    Raises
    ------
    ValueError
        If the encoder does not keep its contract; in ``forward`` and ``decode``, if the tokens are more than
        ``max_target_length``; in ``forward``, if the encoder lacks the intermediate output that is asked for.
    """

    def __init__(
        self,
        *,
        frontend: ConvSubsampling,
        encoder: Encoder,
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
        check_encoder(encoder)
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

    @property
    def chunking(self) -> list[dict[str, str | float | None]]:
        """What each chunking stage is, outermost first, as ``Chunker.describe`` says; empty for a flat
        encoder."""
        return [chunker.describe() for chunker in self.encoder.chunkers]

    def encode(self, features: Tensor, lengths: Tensor, min_states: Tensor | None = None) -> EncoderOutput:
        """Encode features (B, F, n_mels) of ``lengths`` (B,) feature frames.

        An encoder that shortens its output keeps at least ``min_states`` (B,) states, if they are given.
        """
        frames, lengths = self.frontend(features, lengths)
        if self.encoder.reads_ctc:
            encoded = self.encoder(frames, lengths, min_states, ctc_head=self.ctc_head)
        else:
            encoded = self.encoder(frames, lengths, min_states)
        if self.encoder.shortens and encoded.time_axis.per_frame:
            raise ValueError(
                f"{type(self.encoder).__name__} shortens its output and does not say when its states begin; "
                "return EncoderOutput(..., time_axis=TimeAxis(starts, lengths, frames))."
            )
        # Frame t begins at position t - 0.5: halfway between receptive-field centres.
        first, second = self.frontend.centres(-0.5), self.frontend.centres(0.5)
        return replace(encoded, time_axis=replace(encoded.time_axis, offset=first, hop=second - first))

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        tokens_bos: Tensor | None = None,
        token_lengths: Tensor | None = None,
        intermediate: bool = False,
    ) -> ASROutput:
        """Encode the features and compute the logits.

        In training, an encoder that shortens its output keeps as many states as the CTC needs for the labels.
        In evaluation it does not know the labels.

        Parameters
        ----------
        features, lengths : Tensor
            As for :meth:`encode`.
        tokens_bos, token_lengths : Tensor, optional
            Begin of sentence and labels (B, U), and how many of these there are (B,), begin of sentence
            included.
        intermediate : bool
            Whether the CTC head reads the encoder's intermediate output too.
        """
        min_states = None
        if self.training and tokens_bos is not None and self.encoder.shortens:
            assert token_lengths is not None
            min_states = min_ctc_steps(tokens_bos[:, 1:], token_lengths - 1)
        encoded = self.encode(features, lengths, min_states)
        attention_logits = None
        if tokens_bos is not None:
            hidden, _ = self._decoder_states(tokens_bos, encoded.states, encoded.lengths, token_lengths)
            attention_logits = self.output_head(hidden)
        intermediate_logits = None
        if intermediate:
            if encoded.intermediate is None:
                raise ValueError(
                    "intermediate logits are asked for, but the encoder has no intermediate output; "
                    "give a ConMambaEncoder an intermediate_layer."
                )
            intermediate_logits = self.ctc_head(encoded.intermediate.states)
        return ASROutput(encoded, self.ctc_head(encoded.states), attention_logits, intermediate_logits)

    def decode(self, tokens: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Decode after each prefix of ``tokens`` (B, U), given encoder states (B, S, d_model), lengths (B,).

        Returns
        -------
        tuple of Tensor
            Hidden states (B, U, d_model), and the last layer's attention (B, U, S).
        """
        hidden, attentions = self._decoder_states(tokens.long(), states, lengths, None)
        return hidden, attentions[-1]

    def _decoder_states(
        self, tokens: Tensor, states: Tensor, lengths: Tensor, token_lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if tokens.shape[1] > self.max_target_length:
            raise ValueError(
                f"the token sequence has {tokens.shape[1]} tokens; the decoder's positions end at "
                f"{self.max_target_length}; leave such utterances out or raise max_target_length."
            )
        embedded = self.embedding(tokens)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        padding = None if token_lengths is None else ~valid_mask(token_lengths, tokens.shape[1])
        hidden, _, attentions = self.decoder(
            embedded + self.positions(embedded),
            states,
            tgt_mask=steps > steps.unsqueeze(1),  # true where a step would see its future
            tgt_key_padding_mask=padding,
            memory_key_padding_mask=~valid_mask(lengths, states.shape[1]),
        )
        return hidden, attentions
