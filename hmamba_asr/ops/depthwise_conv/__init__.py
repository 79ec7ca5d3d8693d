"""Short depthwise convolution before the scan: causal, or anti-causal for the backward direction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import zero_padding


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    lengths: Tensor | None = None,
    direction: str = "forward",
) -> Tensor:
    """Depthwise convolution in one time direction, seeing zeros outside each utterance.

    Shapes: x (B, L, D); weight (D, K), whose last tap is the current frame in either direction; bias (D,);
    lengths (B,). "forward" reads the K-1 frames before, "reverse" the K-1 frames after. Returns (B, L, D).
    """
    taps = weight.shape[1]
    if lengths is not None:
        x = zero_padding(x, lengths)
    if direction == "reverse":
        weight, padding = weight.flip(1), (0, taps - 1)
    elif direction == "forward":
        padding = (taps - 1, 0)
    else:
        raise ValueError(f"convolution direction '{direction}' is unknown; choose forward or reverse.")
    channels_first = F.pad(x.transpose(1, 2), padding)
    return F.conv1d(channels_first, weight.unsqueeze(1), bias, groups=x.shape[2]).transpose(1, 2)
