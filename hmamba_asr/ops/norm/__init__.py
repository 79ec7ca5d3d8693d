"""Layer norm in the precision of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """PyTorch's, over the last axes of x (..., *weight.shape), under autocast in x's dtype.

    On a GPU autocast would have float32 from here to the next product or convolution, for twice the bytes and
    a cast on either side. The kernels there compute in float32 whatever comes in, so that only weights and
    output are rounded to x's dtype. On a CPU they do not: their 16-bit gradients of the weights lose a third
    of their value over 100,000 frames. There it is float32 inside.
    """
    with torch.autocast(x.device.type, enabled=False):
        inside = torch.float32 if x.device.type == "cpu" and x.element_size() == 2 else x.dtype
        return F.layer_norm(x.to(inside), weight.shape, weight.to(inside), bias.to(inside), eps).to(x.dtype)
