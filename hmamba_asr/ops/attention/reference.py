"""Softmax attention in plain PyTorch, as matrix products.

Source: Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762, equation 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Turn (B, L, d_model) into (B, heads, L, d_head)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Turn (B, heads, L, d_head) into (B, L, d_model)."""
    return x.transpose(1, 2).flatten(2)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where the boolean ``mask`` is True, and -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def attention_weights(query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(query keys^T / sqrt(d_head) + mask).

    Parameters
    ----------
    query : Tensor
        (B, heads, Q, d_head).
    keys : Tensor
        (B, heads, T, d_head).
    mask : Tensor or None
        Additive, broadcastable to (B, heads, Q, T).

    Returns
    -------
    Tensor
        (B, heads, Q, T).
    """
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Compute :func:`hmamba_asr.ops.attention.attend`."""
    return merge_heads(attention_weights(split_heads(query, keys.shape[1]), keys, mask) @ values)
