"""ConMamba: a stack of blocks at one frame rate."""

from __future__ import annotations

from torch import Tensor, nn

from hmamba_asr.lengths import zero_padding
from hmamba_asr.models.outputs import Encoder, EncoderOutput
from hmamba_asr.modules.conmamba import ConMambaBlock


class ConMambaEncoder(Encoder):
    """A stack of ConMamba blocks at one frame rate (Jiang et al., https://arxiv.org/abs/2407.09732).

    Parameters
    ----------
    num_layers : int
        Number of blocks.
    d_model, d_ffn : int
        Width of the states and of the feed-forward modules.
    kernel_size : int
        Frames that the convolution module sees.
    dropout : float
        Dropout probability of every module.
    causal : bool
        Whether a state depends on the frames up to its own only: one Mamba direction, causal convolutions.
    d_state, d_conv, expand : int
        Mamba's state size, convolution width and expansion factor.
    scan_backend : str
        Backend of the selective scan, see :func:`~hmamba_asr.ops.dispatch.resolve_backend`.
    intermediate_layer : int, optional
        Number of blocks after which the intermediate output is taken; by default there is none.

    Raises
    ------
    ValueError
        If ``num_layers`` is below 1, or ``intermediate_layer`` does not lie between 0 and ``num_layers``.
    """

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
        if num_layers < 1:
            raise ValueError(f"an encoder needs at least one block, and num_layers is {num_layers}.")
        if intermediate_layer is not None and not 0 < intermediate_layer < num_layers:
            raise ValueError(
                f"intermediate_layer must lie between 0 and num_layers = {num_layers}, "
                f"not be {intermediate_layer}."
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

    def forward(self, x: Tensor, lengths: Tensor, min_states: Tensor | None = None) -> EncoderOutput:
        intermediate = None
        for i, block in enumerate(self.blocks):
            if i == self.intermediate_layer:
                intermediate = EncoderOutput(zero_padding(x, lengths), lengths)
            x = block(x, lengths)
        return EncoderOutput(zero_padding(x, lengths), lengths, intermediate=intermediate)
