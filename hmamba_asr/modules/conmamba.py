"""The ConMamba block: a Conformer block whose self-attention is a bidirectional Mamba.

Source: Jiang et al., "Speech Slytherin", https://arxiv.org/abs/2407.09732, after Gulati et al., "Conformer",
https://arxiv.org/abs/2005.08100.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmamba_asr.lengths import zero_padding
from hmamba_asr.modules.bimamba import BiMamba
from hmamba_asr.ops.norm import layer_norm


def feed_forward(d_model: int, d_ffn: int, dropout: float) -> nn.Sequential:
    """Return a pre-norm feed-forward module, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(
        nn.LayerNorm(d_model),
        nn.Linear(d_model, d_ffn),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(d_ffn, d_model),
        nn.Dropout(dropout),
    )


class ConvolutionModule(nn.Module):
    """Conformer's convolution module, (B, T, d_model) -> (B, T, d_model): a gated depthwise convolution.

    A LayerNorm replaces Conformer's BatchNorm, with which a frame would depend on its batch mates. Frames
    past an utterance's end are zeroed right before the depthwise convolution, because biases upstream have
    made them non-zero. If ``causal``, the convolution's window ends at the current frame.

    Raises
    ------
    ValueError
        If ``kernel_size`` is even.
    """

    def __init__(self, *, d_model: int, kernel_size: int, dropout: float, causal: bool):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"the convolution's kernel_size must be odd, not {kernel_size}.")
        self.padding = (kernel_size - 1, 0) if causal else (kernel_size // 2, kernel_size // 2)
        self.norm = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel_size, groups=d_model)
        self.depthwise_norm = nn.LayerNorm(d_model)
        self.project = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        gated = zero_padding(F.glu(self.expand(self.norm(x))), lengths)
        mixed = self.depthwise(F.pad(gated.transpose(1, 2), self.padding)).transpose(1, 2)
        norm = self.depthwise_norm
        # Not norm(mixed): ops.norm keeps 16 bit under autocast, which here saves a cast each way.
        return self.dropout(self.project(F.silu(layer_norm(mixed, norm.weight, norm.bias, norm.eps))))


class ConMambaBlock(nn.Module):
    """Two half-step (macaron) feed-forward modules around a bi-Mamba and a convolution module; then a norm.

    Each of the four is added to its input, a half-step module with the factor 1/2.

    ``forward(x, lengths)``: (B, T, d_model), (B,) -> (B, T, d_model). Frames past an utterance's end hold no
    defined value. The parameters are those of :class:`~hmamba_asr.models.conmamba.ConMambaEncoder`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_ffn: int,
        kernel_size: int,
        dropout: float,
        causal: bool = False,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan_backend: str = "auto",
    ):
        super().__init__()
        self.ffn_in = feed_forward(d_model, d_ffn, dropout)
        self.mamba_norm = nn.LayerNorm(d_model)
        self.mamba = BiMamba(
            d_model=d_model,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            causal=causal,
            scan_backend=scan_backend,
        )
        self.mamba_dropout = nn.Dropout(dropout)
        self.conv = ConvolutionModule(
            d_model=d_model, kernel_size=kernel_size, dropout=dropout, causal=causal
        )
        self.ffn_out = feed_forward(d_model, d_ffn, dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = torch.add(x, self.ffn_in(x), alpha=0.5)
        x = x + self.mamba_dropout(self.mamba(self.mamba_norm(x), lengths))
        x = x + self.conv(x, lengths)
        x = torch.add(x, self.ffn_out(x), alpha=0.5)
        return self.norm(x)
