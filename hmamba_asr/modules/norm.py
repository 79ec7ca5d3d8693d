"""Layer norm in the precision of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """PyTorch's, over the last axes of x (..., *weight.shape), under autocast in x's dtype.

    Autocast would have float32 from here to the next product or convolution, for twice the bytes and a cast on either side.
    The kernels compute in float32 all the same; what is rounded sooner is their output.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
