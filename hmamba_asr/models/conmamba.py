"""A stack of ConMamba blocks at one frame rate."""

from __future__ import annotations

from torch import Tensor, nn

from hmamba_asr.lengths import zero_padding
from hmamba_asr.models.outputs import EncoderOutput
from hmamba_asr.modules.conmamba import ConMambaBlock


class ConMambaEncoder(nn.Module):
    """A stack of ConMamba blocks at one frame rate (Jiang et al., https://arxiv.org/abs/2407.09732). The
    intermediate output is that of its first ``intermediate_layer`` blocks."""

    def __init__(
        self,
        *,
        num_layers: int,
        d_model: int,
        d_ffn: int,
        kernel_size: int,
        dropout: float,
        causal: bool = False,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan_backend: str = "auto",
        intermediate_layer: int | None = None,
    ):
        super().__init__()
        if intermediate_layer is not None and not 0 < intermediate_layer < num_layers:
            raise ValueError(
                f"intermediate_layer must lie between 0 and num_layers = {num_layers}, not be {intermediate_layer}."
            )
        self.intermediate_layer = intermediate_layer
        self.blocks = nn.ModuleList(
            ConMambaBlock(
                d_model=d_model,
                d_ffn=d_ffn,
                kernel_size=kernel_size,
                dropout=dropout,
                causal=causal,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                scan_backend=scan_backend,
            )
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> EncoderOutput:
        intermediate = None
        for i, block in enumerate(self.blocks):
            if i == self.intermediate_layer:
                intermediate = EncoderOutput(zero_padding(x, lengths), lengths)
            x = block(x, lengths)
        return EncoderOutput(zero_padding(x, lengths), lengths, intermediate=intermediate)
