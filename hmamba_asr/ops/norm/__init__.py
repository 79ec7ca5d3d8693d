"""Layer norm in the precision of its input.

PyTorch's own kernels do the work. :mod:`.reference` holds the formula, which only the tests use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise the last axes of ``x``, in x's dtype also under autocast.

    On a GPU autocast would make everything from here to the next product or convolution float32, at twice the
    bytes and with a cast on either side. PyTorch's GPU kernels compute in float32 whatever comes in, so that
    only weights and output are rounded to x's dtype. Its CPU kernels do not: their 16-bit gradients of the
    weights lose a third of their value over 100,000 frames. So on a CPU 16-bit inputs become float32 inside.

    Parameters
    ----------
    x : Tensor
        (..., *weight.shape), any floating dtype.
    weight, bias : Tensor
        Scale and shift, of the same shape.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor
        Like x.
    """
    with torch.autocast(x.device.type, enabled=False):
        inside = torch.float32 if x.device.type == "cpu" and x.element_size() == 2 else x.dtype
        return F.layer_norm(x.to(inside), weight.shape, weight.to(inside), bias.to(inside), eps).to(x.dtype)
