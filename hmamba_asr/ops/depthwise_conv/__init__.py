"""Short depthwise convolution in front of the scan: causal, or anti-causal for the reverse direction.

PyTorch's own convolution does the work. :mod:`.reference` holds the formula, which only the tests use. The
kernels that convolve for all directions of a mixer at once are part of :mod:`hmamba_asr.ops.mixer`.
"""

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
    """Convolve each channel over time, in one direction, with zeros outside each utterance.

    Parameters
    ----------
    x : Tensor
        (B, L, D).
    weight : Tensor
        (D, K); the last tap is for the frame itself, in either direction.
    bias : Tensor or None
        (D,).
    lengths : Tensor, optional
        (B,), valid frames of each utterance; all L if None.
    direction : str
        "forward" reads the K-1 frames before each frame, "reverse" the K-1 frames after it.

    Returns
    -------
    Tensor
        (B, L, D). Frames past the end mean nothing.

    Raises
    ------
    ValueError
        If the direction is unknown.
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
