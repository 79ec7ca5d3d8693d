"""SpeechBrain's Conformer under the contract of this package's encoders."""

from __future__ import annotations

from speechbrain.lobes.models.transformer import Conformer
from speechbrain.nnet.attention import RelPosEncXL
from torch import Tensor, nn

from hmamba_asr.lengths import valid_mask, zero_padding
from hmamba_asr.models.outputs import Encoder, EncoderOutput


class ConformerEncoder(Encoder):
    """SpeechBrain's Conformer with relative positions: the control that ConMamba is measured against.

    SpeechBrain masks padding after the depthwise convolution, not before, so the last frames of a padded
    utterance would read the biases of its padding. A hook zeroes the padding of the convolution's input;
    everything else is SpeechBrain's.

    Parameters
    ----------
    num_layers, nhead : int
        Number of layers, and of attention heads.
    d_model, d_ffn : int
        Width of the states and of the feed-forward modules.
    kernel_size : int
        Frames that the convolution module sees.
    dropout : float
        Dropout probability of every module.
    """

    def __init__(
        self, *, num_layers: int, d_model: int, d_ffn: int, nhead: int, kernel_size: int, dropout: float
    ):
        super().__init__()
        self.positions = RelPosEncXL(d_model)
        self.encoder = Conformer.ConformerEncoder(
            num_layers=num_layers,
            nhead=nhead,
            d_ffn=d_ffn,
            d_model=d_model,
            kernel_size=kernel_size,
            dropout=dropout,
            activation=nn.SiLU,
            attention_type="RelPosMHAXL",
            causal=False,
        )
        self._padding: Tensor | None = None  # of the current forward, for the hook
        for layer in self.encoder.layers:
            layer.convolution_module.conv.register_forward_pre_hook(self._zero_padding)

    def _zero_padding(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (x,) = inputs  # (B, d_model, T)
        assert self._padding is not None
        return x.masked_fill(self._padding.unsqueeze(1), 0.0)

    def forward(self, x: Tensor, lengths: Tensor, min_states: Tensor | None = None) -> EncoderOutput:
        self._padding = ~valid_mask(lengths, x.shape[1])
        states, _ = self.encoder(x, src_key_padding_mask=self._padding, pos_embs=self.positions(x))
        return EncoderOutput(zero_padding(states, lengths), lengths)
