"""Which of an operation's implementations runs: a plain one, its oracle, or Triton kernels."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def unavailable_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run on tensors of ``device``, as one sentence; None where they can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"the triton backend needs the triton package ({error}); install it, or use another backend."
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return (
            f"the triton backend needs a CUDA GPU, and the tensors are on {device.type}; use another backend (or set "
            "TRITON_INTERPRET=1 to run the kernels slowly, for tests)."
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the triton backend needs a GPU of compute capability 8.0 or newer; use another backend."
    return None


def resolve(
    backend: str,
    x: Tensor,
    *,
    operation: str,
    plain: tuple[str, ...] = ("reference",),
    other: tuple[str, ...] = (),
) -> str:
    """What ``backend`` stands for with inputs like x: "auto" is "triton" on a GPU, but for float64, else the
    last of ``plain``; the ``other`` ones have to be asked for.

    Raises
    ------
    ValueError
        For an unknown backend, or float64 with "triton".
    RuntimeError
        If "triton" cannot run here.
    """
    backends = ("auto", *plain, "triton", *other)
    if backend not in backends:
        raise ValueError(f"{operation} backend '{backend}' is unknown; choose one of {', '.join(backends)}.")
    if backend == "auto":
        by_kernel = x.is_cuda and x.dtype != torch.float64 and unavailable_reason(x.device) is None
        return "triton" if by_kernel else plain[-1]
    if backend == "triton" and (reason := unavailable_reason(x.device)):
        raise RuntimeError(reason)
    if backend not in plain and x.dtype == torch.float64:
        raise ValueError(
            f"the {backend} backend has no float64; use backend {' or '.join(map(repr, reversed(plain)))}."
        )
    return backend
