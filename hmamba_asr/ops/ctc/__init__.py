"""CTC prefix scores (not the CTC loss), for a beam search that scores every label that may follow a prefix.

K prefixes of each of B utterances are described by their forward variables, float64 log-probabilities:

- ``in_label`` and ``in_blank`` (B, K, T): the paths over frames 0 to t that give the prefix and end in its
  last label, and those that end in a blank.
- ``score`` (B, K): all label sequences that begin with the prefix.
- ``last`` (B, K): the prefix' last label, -1 for the empty prefix.

:mod:`.reference` holds the plain steps (some eighty operations for a step of the search) and the source,
:mod:`.kernels` does the same in four launches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmamba_asr.ops.ctc import reference
from hmamba_asr.ops.ctc.reference import IMPOSSIBLE, Posteriors
from hmamba_asr.ops.dispatch import resolve_backend

__all__ = ["IMPOSSIBLE", "Posteriors", "extend", "next_scores"]


def next_scores(
    in_label: Tensor,
    in_blank: Tensor,
    score: Tensor,
    last: Tensor,
    posteriors: Posteriors,
    *,
    eos: int,
    window: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Score every label c that may follow each prefix g: log psi(g c) - log psi(g).

    Parameters
    ----------
    in_label, in_blank, score, last : Tensor
        The prefixes, as the package describes them.
    posteriors : Posteriors
        The utterances' CTC posteriors.
    eos : int
        The label whose score is that of "the prefix is the whole sequence".
    window : Tensor, optional
        (B, 2), the first frame and the last plus one at which a label may begin; all if None.
    backend : str
        "reference", "triton" (GPU, float32 posteriors), or "auto".

    Returns
    -------
    Tensor
        (B, K, vocab) in the posteriors' dtype; ``IMPOSSIBLE`` for the blank.

    Raises
    ------
    ValueError
        If the backend is unknown, or "triton" is asked for with other posteriors than float32.
    RuntimeError
        If "triton" cannot run here.
    """
    if _resolve(backend, posteriors) == "triton":
        from hmamba_asr.ops.ctc import kernels

        return kernels.next_scores(in_label, in_blank, score, last, posteriors, window=window, eos=eos)
    return reference.next_scores(in_label, in_blank, score, last, posteriors, window=window, eos=eos)


def extend(
    in_label: Tensor,
    in_blank: Tensor,
    last: Tensor,
    parents: Tensor,
    labels: Tensor,
    posteriors: Posteriors,
    *,
    eos: int,
    window: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Append a label to each of K' prefixes, and score the results exactly, in log space.

    Parameters
    ----------
    in_label, in_blank, last : Tensor
        The K prefixes, as the package describes them.
    parents : Tensor
        (B, K'), which of the prefixes goes on.
    labels : Tensor
        (B, K'), the label that follows.
    posteriors, eos, window, backend
        As in :func:`next_scores`, which also says what is raised.

    Returns
    -------
    tuple of Tensor
        in_label and in_blank (B, K', T), and score (B, K'). After ``eos`` the score is that of the parent
        being the whole sequence, and the forward variables mean nothing.
    """
    given = (in_label, in_blank, last, parents, labels, posteriors)
    if _resolve(backend, posteriors) == "triton":
        from hmamba_asr.ops.ctc import kernels

        return kernels.extend(*given, window=window, eos=eos)
    return reference.extend(*given, window=window, eos=eos)


def _resolve(backend: str, posteriors: Posteriors) -> str:
    dtype = posteriors.log_probs.dtype
    suits = dtype == torch.float32
    found = resolve_backend(backend, posteriors.log_probs, operation="CTC prefix", kernels_suit=suits)
    if found == "triton" and not suits:
        raise ValueError(f"the triton backend of CTC prefix scores takes float32 posteriors, not {dtype}.")
    return found
