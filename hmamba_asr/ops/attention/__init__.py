"""Attention of few queries to many keys, as a step of a beam search has it: each utterance's hypotheses
attend to the utterance's states, or to the keys of earlier tokens.

:mod:`.reference` holds the matrix products, :mod:`.kernels` the Triton kernel, and :mod:`.limits` says what
the kernel takes and when it pays.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.ops.attention import reference
from hmamba_asr.ops.attention.limits import MAX_D_HEAD, kernel_pays, kernel_takes
from hmamba_asr.ops.attention.reference import (
    additive_mask,
    attention_weights,
    merge_heads,
    split_heads,
)
from hmamba_asr.ops.dispatch import resolve_backend

__all__ = ["additive_mask", "attend", "attention_weights", "kernel_pays", "kernel_takes", "split_heads"]


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Compute softmax(query keys^T / sqrt(d_head) + mask) values for each head.

    Parameters
    ----------
    query : Tensor
        (B, Q, heads x d_head).
    keys, values : Tensor
        (B, heads, T, d_head).
    mask : Tensor, optional
        Additive, 0 or -inf, broadcastable to (B, heads, Q, T). A query that sees no key gets NaN.
    backend : str
        "reference" (matrix products), "sdpa" (PyTorch's fused attention), "triton" (GPU; see
        :func:`kernel_takes`), or "auto". On a GPU "auto" is "triton" where :func:`kernel_takes` and
        :func:`kernel_pays` hold, else "reference" in float32 and float64: there PyTorch's fused attention
        keeps only one program a head busy. In all other cases "auto" is "sdpa".

    Returns
    -------
    Tensor
        (B, Q, heads x d_head).

    Raises
    ------
    ValueError
        If the backend is unknown, or "triton" is asked for with inputs that the kernel does not take.
    RuntimeError
        If "triton" cannot run here.
    """
    suits = backend == "auto" and kernel_takes(query, keys, mask) and kernel_pays(query, keys)
    asked, backend = (
        backend,
        resolve_backend(
            backend, query, operation="attention", plain=("reference", "sdpa"), kernels_suit=suits
        ),
    )
    if backend == "triton":
        if asked == "triton" and not kernel_takes(query, keys, mask):
            raise ValueError(
                "the triton backend of attention takes float32 without gradient, heads of up to "
                f"{MAX_D_HEAD} and a float32 mask that all heads share; use another backend."
            )
        from hmamba_asr.ops.attention import kernels

        return kernels.attend(query, keys, values, mask)
    if backend == "reference" or (asked == "auto" and query.is_cuda and query.element_size() > 2):
        return reference.attend(query, keys, values, mask)
    heads = split_heads(query, keys.shape[1])
    return merge_heads(F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask))
