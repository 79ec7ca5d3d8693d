"""The CUDA kernel of the ``mamba-ssm`` package behind our signature (optional: the ``cuda`` extra)."""

from __future__ import annotations

import torch
from torch import Tensor


def unavailable_reason() -> str | None:
    """Say in one sentence why the kernel cannot be used here; None where it can.

    mamba-ssm installs without its Mamba-1 kernel unless it is built with MAMBA_KEEP_CUDA_BUILD=TRUE. So it
    does not suffice that the package can be imported: the compiled extension must be there.
    """
    if not torch.cuda.is_available():
        return (
            "the mamba_ssm backend needs a CUDA GPU and PyTorch sees none; use backend 'auto' or 'chunked'."
        )
    try:
        import selective_scan_cuda  # noqa: F401
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: F401
    except ImportError as error:
        return (
            f"the mamba_ssm backend is not installed with its Mamba-1 kernel ({error}); install it with "
            "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation 'hmamba_asr[cuda]', or use backend "
            "'auto' or 'chunked'."
        )
    return None


def recurrence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scan with one kernel call for each group.

    The contract is that of :func:`hmamba_asr.ops.selective_scan.chunked.recurrence`, except that no gradient
    goes through the last state.

    Raises
    ------
    ValueError
        If an initial state is given, which the kernel does not take.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if initial is not None:
        raise ValueError("the mamba_ssm backend cannot start from a given state; use backend 'auto'.")
    outputs, states = [], []
    for g in range(u.shape[1]):
        channels_first = [x[:, g].float().permute(1, 2, 0).contiguous() for x in (u, delta, B, C)]
        y, state = selective_scan_fn(
            channels_first[0],
            channels_first[1],
            A[g].float(),
            channels_first[2],
            channels_first[3],
            return_last_state=True,
        )
        outputs.append(y.permute(2, 0, 1))
        states.append(state.detach())
    return torch.stack(outputs, 1), torch.stack(states)
