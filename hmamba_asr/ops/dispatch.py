"""The one place that decides which backend of an operation runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def unavailable_reason(device: torch.device) -> str | None:
    """Say in one sentence why Triton kernels cannot run on tensors of ``device``; None where they can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"the triton backend needs the triton package ({error}); install it, or use another backend."
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return (
            f"the triton backend needs a CUDA GPU, and the tensors are on {device.type}; use another backend "
            "(or set TRITON_INTERPRET=1 to run the kernels slowly, for tests)."
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the triton backend needs a GPU of compute capability 8.0 or newer; use another backend."
    return None


def resolve_backend(
    backend: str,
    x: Tensor,
    *,
    operation: str,
    plain: tuple[str, ...] = ("reference",),
    optional: Mapping[str, Callable[[], str | None]] | None = None,
    kernels_suit: bool = True,
) -> str:
    """Return the backend that ``backend`` stands for with inputs like ``x``.

    "auto" is "triton" on a GPU, except for float64 and where ``kernels_suit`` is False; otherwise "auto" is
    the last of ``plain``.

    Parameters
    ----------
    backend : str
        "auto", one of ``plain``, "triton", or a key of ``optional``.
    x : Tensor
        An input; its device and dtype count.
    operation : str
        The name of the operation, for messages.
    plain : tuple of str
        The backends in plain PyTorch, which run anywhere and in any precision; the fastest comes last.
    optional : mapping of str to callable, optional
        Backends of other packages, which are only taken when asked for. Each comes with a function that
        returns the reason why the backend cannot run here, or None.
    kernels_suit : bool
        Whether "auto" may take the kernels.

    Raises
    ------
    ValueError
        If the backend is unknown, or takes no float64 and ``x`` is float64.
    RuntimeError
        If the backend cannot run here.
    """
    optional = optional or {}
    backends = ("auto", *plain, "triton", *optional)
    if backend not in backends:
        raise ValueError(f"{operation} backend '{backend}' is unknown; choose one of {', '.join(backends)}.")
    if backend == "auto":
        by_kernels = (
            kernels_suit and x.is_cuda and x.dtype != torch.float64 and unavailable_reason(x.device) is None
        )
        return "triton" if by_kernels else plain[-1]
    if backend in plain:
        return backend
    reason = unavailable_reason(x.device) if backend == "triton" else optional[backend]()
    if reason:
        raise RuntimeError(reason)
    if x.dtype == torch.float64:
        raise ValueError(
            f"the {backend} backend has no float64; use backend {' or '.join(map(repr, reversed(plain)))}."
        )
    return backend
