"""The selective scan (S6) behind one signature.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
https://arxiv.org/abs/2312.00752, Algorithm 2.

Backends, one file each:

- ``reference``: a loop over time, the oracle.
- ``chunked``: PyTorch, any device, fast enough to train with on a CPU.
- ``triton``: our kernels. :mod:`.fused` allocates and launches, :mod:`.kernels` holds the kernels, and
  :mod:`.tiles` what these are made of.
- ``mamba_ssm``: the CUDA kernel of that package, where it is installed and asked for.

"auto" is ``triton`` on a GPU, and ``chunked`` elsewhere and for float64. A backend that cannot run here is an
error, never another backend.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import reverse_valid, zero_padding
from hmamba_asr.ops.dispatch import resolve_backend
from hmamba_asr.ops.selective_scan import chunked, fused, mamba_ssm, reference

PLAIN = ("reference", "chunked")
BACKENDS = ("auto", *PLAIN, "triton", "mamba_ssm")
DIRECTIONS = ("forward", "reverse")


def resolve_scan_backend(backend: str, x: Tensor) -> str:
    """Return the scan's backend that ``backend`` stands for with inputs like ``x``; for what it raises see
    :func:`~hmamba_asr.ops.dispatch.resolve_backend`."""
    optional = {"mamba_ssm": mamba_ssm.unavailable_reason}
    return resolve_backend(backend, x, operation="scan", plain=PLAIN, optional=optional)


def check_directions(directions: tuple[str, ...], groups: int) -> None:
    """Check names and number of ``directions``.

    Raises
    ------
    ValueError
        If a direction is unknown, or their number is not ``groups``, the number of sets of inputs.
    """
    if unknown := set(directions) - set(DIRECTIONS):
        raise ValueError(f"scan direction '{unknown.pop()}' is unknown; choose forward or reverse.")
    if len(directions) != groups:
        raise ValueError(f"{groups} sets of inputs were given for {len(directions)} directions.")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    direction: str = "forward",
    backend: str = "auto",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan one direction: h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = (C_t h_t + D u_t) silu(z_t), with
    dt = softplus(delta + delta_bias).

    Parameters
    ----------
    u, delta : Tensor
        (batch, L, D_inner).
    A : Tensor
        (D_inner, N), negative.
    B, C : Tensor
        (batch, L, N).
    D, delta_bias : Tensor, optional
        (D_inner,).
    z : Tensor, optional
        (batch, L, D_inner), the gate.
    lengths : Tensor, optional
        (batch,), valid frames of each utterance; all L if None.
    direction : str
        "forward", or "reverse": time runs backwards from each utterance's last valid frame.
    backend : str
        "auto", "reference", "chunked", "triton" or "mamba_ssm".
    initial_state : Tensor, optional
        (batch, D_inner, N), the state before the first frame in scan order; zeros if None.
    return_final_state : bool
        Whether to return the state after the last frame as well.

    Returns
    -------
    Tensor or tuple of Tensor
        y (batch, L, D_inner) in u's dtype, zero past the end; with ``return_final_state`` also the last state
        (batch, D_inner, N), in float32 at least.

    Raises
    ------
    ValueError
        If the direction or the backend is unknown, or the backend does not take the dtype.
    RuntimeError
        If the backend cannot run here.
    """
    groups = [None if x is None else x.unsqueeze(0) for x in (D, delta_bias, initial_state)]
    scanned = scan_directions(
        u.unsqueeze(0),
        delta.unsqueeze(0),
        A.unsqueeze(0),
        B.unsqueeze(0),
        C.unsqueeze(0),
        groups[0],
        groups[1],
        lengths=lengths,
        directions=(direction,),
        backend=backend,
        initial_state=groups[2],
        return_final_state=return_final_state,
    )
    y, state = (scanned[0][0], scanned[1][0]) if return_final_state else (scanned[0], None)
    if z is not None:
        y = (y * F.silu(z if lengths is None else zero_padding(z, lengths))).to(u.dtype)
    return y if state is None else (y, state)


def selective_scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan one frame, for streaming.

    Parameters
    ----------
    u, delta, A, B, C, D, z, delta_bias : Tensor
        As in :func:`selective_scan`, without the time axis.
    state : Tensor
        (batch, D_inner, N), what the frames before left, in float32 at least.

    Returns
    -------
    tuple of Tensor
        y (batch, D_inner) in u's dtype, and the new state (batch, D_inner, N).
    """
    with torch.autocast(u.device.type, enabled=False):
        wide = [x.to(state.dtype) for x in (u, delta, A, B, C)]
        dt = F.softplus(wide[1] if delta_bias is None else wide[1] + delta_bias.to(state.dtype))
        y, state = reference.selective_scan_step(wide[0], dt, wide[2], wide[3], wide[4], state)
        if D is not None:
            y = y + D.to(y.dtype) * wide[0]
    y = y.to(u.dtype)
    return (y if z is None else (y * F.silu(z)).to(u.dtype)), state


def scan_directions(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    directions: tuple[str, ...] = DIRECTIONS,
    backend: str = "auto",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan several directions at once, each with its own inputs and parameters, all in natural time order.

    Arguments, results and errors are those of :func:`selective_scan`, without a gate. All tensors but
    ``lengths`` have a leading axis of ``len(directions)``, whose number must fit.
    """
    check_directions(directions, u.shape[0])
    backend = resolve_scan_backend(backend, u)
    with torch.autocast(u.device.type, enabled=False):
        if backend == "triton" and u.numel():
            initial = None if initial_state is None else initial_state.float().transpose(2, 3).contiguous()
            reversed_groups = tuple(direction == "reverse" for direction in directions)
            y, state = fused.scan_directions(
                u, delta, A, B, C, D, delta_bias, lengths, initial, reversed_groups
            )
            state = state.transpose(2, 3)
        else:
            inputs = (u, delta, A, B, C, D, delta_bias, lengths, directions, backend, initial_state)
            y, state = _in_pytorch(*inputs, keep_state=return_final_state)
    return (y, state) if return_final_state else y


def _in_pytorch(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    directions: tuple[str, ...],
    backend: str,
    initial_state: Tensor | None,
    *,
    keep_state: bool,
) -> tuple[Tensor, Tensor]:
    """Run a backend that knows only the bare recurrence, and add softplus, skip, directions and lengths."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    wide, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None, None]
    dt = F.softplus(dt)
    if backend == "reference":
        starts = [None] * len(directions) if initial_state is None else initial_state.to(dtype)
        parts = [
            reference.selective_scan(
                wide[g],
                dt[g],
                A[g].to(dtype),
                B[g].to(dtype),
                C[g].to(dtype),
                lengths,
                direction == "reverse",
                starts[g],
            )
            for g, direction in enumerate(directions)
        ]
        y, state = (torch.stack(part) for part in zip(*parts, strict=True))
    else:
        if keep_state and lengths is not None:  # dt = 0 keeps the state that the utterance ended with
            wide, dt, B = (torch.stack([zero_padding(part, lengths) for part in x]) for x in (wide, dt, B))
        # Time is reversed within the valid frames, so the padding stays after the end.
        run = mamba_ssm.recurrence if backend == "mamba_ssm" else chunked.recurrence
        u_first, dt_first, B_first, C_first = (_time_first(x, lengths, directions) for x in (wide, dt, B, C))
        y, state = run(u_first, dt_first, A, B_first, C_first, initial_state)
        y = torch.stack(_turned(y.permute(1, 2, 0, 3), lengths, directions))
    if D is not None:
        y = y + D.to(dtype)[:, None, None] * wide
    if lengths is not None:
        y = torch.stack([zero_padding(part, lengths) for part in y])
    return y.to(u.dtype), state


def _turned(x: Tensor, lengths: Tensor | None, directions: tuple[str, ...]) -> list[Tensor]:
    """Reverse the time of the reverse directions of ``x`` (directions, batch, L, ...). Its own inverse."""
    return [
        reverse_valid(part, lengths) if direction == "reverse" else part
        for part, direction in zip(x, directions, strict=True)
    ]


def _time_first(x: Tensor, lengths: Tensor | None, directions: tuple[str, ...]) -> Tensor:
    """Turn (directions, batch, L, ...) into (L, directions, batch, ...), with all directions forwards."""
    return torch.stack([part.transpose(0, 1) for part in _turned(x, lengths, directions)], dim=1)
