"""What the attention kernel takes, and when it pays. Needs no Triton."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_Q = 16  # queries of a program
MAX_D_HEAD = 64  # a block of keys and one of values must fit the registers
MIN_PROGRAMS, MAX_KEYS = 64, 2048  # fewer programs, or longer walks of each, leave a GPU idle


def kernel_takes(query: Tensor, keys: Tensor, mask: Tensor | None) -> bool:
    """Tell whether the kernel takes these inputs: float32, heads of up to ``MAX_D_HEAD``, a float32 mask that
    all heads share, and no gradient wanted.

    With 16 bits the kernel would round the scores, as matrix products do.
    """
    return (
        keys.shape[-1] <= MAX_D_HEAD
        and (mask is None or (mask.shape[1] == 1 and mask.dtype == torch.float32))
        and query.dtype == keys.dtype == torch.float32
        and not (torch.is_grad_enabled() and query.requires_grad)
    )


def kernel_pays(query: Tensor, keys: Tensor) -> bool:
    """Tell whether a GPU has enough to do: ``MIN_PROGRAMS`` heads and more, as of 16 utterances with 4."""
    programs = keys.shape[0] * keys.shape[1] * -(-query.shape[1] // BLOCK_Q)
    return programs >= MIN_PROGRAMS and keys.shape[2] <= MAX_KEYS
