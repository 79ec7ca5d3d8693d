"""The selective scan (S6) behind one signature; the backend is chosen here and nowhere else.

Backends: ``reference`` (time loop, the oracle), ``chunked`` (PyTorch, any device), ``triton`` (our kernels,
CUDA), ``mamba_ssm`` (CUDA kernel of that package, where it is installed and asked for). ``auto`` takes
``triton`` on a GPU and ``chunked`` elsewhere and for float64. Asking for one that is not there is an error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import reverse_valid, zero_padding
from hmamba_asr.ops.dispatch import resolve
from hmamba_asr.ops.selective_scan import chunked, fused, mamba_ssm, reference

PLAIN = ("reference", "chunked")
BACKENDS = ("auto", *PLAIN, "triton", "mamba_ssm")
DIRECTIONS = ("forward", "reverse")


def resolve_backend(backend: str, x: Tensor) -> str:
    """The backend that ``backend`` stands for with inputs like ``x``.

    Raises
    ------
    ValueError
        For an unknown backend, or one that does not take x's dtype.
    RuntimeError
        If the backend cannot run here.
    """
    if backend == "mamba_ssm" and (reason := mamba_ssm.unavailable_reason()):
        raise RuntimeError(reason)
    return resolve(backend, x, operation="scan", plain=PLAIN, other=("mamba_ssm",))


def check_directions(directions: tuple[str, ...], groups: int) -> None:
    """ValueError for an unknown direction, or where their number is not that of the sets of inputs."""
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
    """Selective scan of one direction: h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = (C_t h_t + D u_t)
    silu(z_t), with dt = softplus(delta + delta_bias).

    Shapes: u, delta, z (batch, L, D_inner); A (D_inner, N), negative; B, C (batch, L, N); D, delta_bias
    (D_inner,); lengths (batch,) integer; initial_state (batch, D_inner, N), zeros if None. With direction
    "reverse" time runs from each utterance's last valid frame backwards. Returns y (batch, L, D_inner) in u's
    dtype, zero past the end, and with ``return_final_state`` also the state after the last frame met (batch,
    D_inner, N), in float32 at least.
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
    return (y, state) if return_final_state else y


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
    """One frame of :func:`selective_scan`, for streaming: y (batch, D_inner) and the new state (batch,
    D_inner, N).

    Shapes as there without the time axis; ``state`` is what the frames before left, in float32 at least.
    """
    with torch.autocast(u.device.type, enabled=False):
        wide = [x.to(state.dtype) for x in (u, delta, A, B, C)]
        dt = F.softplus(wide[1] if delta_bias is None else wide[1] + delta_bias.to(state.dtype))
        y, state = reference.step(wide[0], dt, wide[2], wide[3], wide[4], state)
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

    Shapes as in :func:`selective_scan` with a leading axis of ``len(directions)``. Returns (directions,
    batch, L, D_inner), and with ``return_final_state`` also (directions, batch, D_inner, N).
    """
    check_directions(directions, u.shape[0])
    backend = resolve_backend(backend, u)
    with torch.autocast(u.device.type, enabled=False):
        if backend == "triton" and u.numel():
            initial = None if initial_state is None else initial_state.float().transpose(2, 3).contiguous()
            reversed_groups = tuple(name == "reverse" for name in directions)
            y, state = fused.scan_groups(u, delta, A, B, C, D, delta_bias, lengths, initial, reversed_groups)
            state = state.transpose(2, 3)
        else:
            inputs = (u, delta, A, B, C, D, delta_bias, lengths, directions, backend, initial_state)
            y, state = _in_pytorch(*inputs, keep_state=return_final_state)
    return (y, state) if return_final_state else y


def _in_pytorch(
    u, delta, A, B, C, D, delta_bias, lengths, directions, backend, initial_state, *, keep_state: bool
) -> tuple[Tensor, Tensor]:
    """The backends that know only the bare recurrence: softplus, skip, directions and lengths are added
    here."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    wide, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None, None]
    dt = F.softplus(dt)
    if backend == "reference":
        inputs = [wide, dt, A.to(dtype), B.to(dtype), C.to(dtype)]
        starts = [None] * len(directions) if initial_state is None else initial_state.to(dtype)
        parts = [
            reference.scan(*(x[g] for x in inputs), lengths, name == "reverse", starts[g])
            for g, name in enumerate(directions)
        ]
        y, state = (torch.stack(part) for part in zip(*parts, strict=True))
    else:
        if (
            keep_state and lengths is not None
        ):  # dt = 0 leaves the state as it is, so that it ends as the utterance ended
            wide, dt, B = (torch.stack([zero_padding(part, lengths) for part in x]) for x in (wide, dt, B))
        # Reversed within its valid frames, an utterance's padding always comes after its end.
        run = mamba_ssm.scan_groups if backend == "mamba_ssm" else chunked.scan_groups
        u_first, dt_first, B_first, C_first = (_time_first(x, lengths, directions) for x in (wide, dt, B, C))
        y, state = run(u_first, dt_first, A, B_first, C_first, initial_state)
        y = torch.stack(_turned(y.permute(1, 2, 0, 3), lengths, directions))
    if D is not None:
        y = y + D.to(dtype)[:, None, None] * wide
    if lengths is not None:
        y = torch.stack([zero_padding(part, lengths) for part in y])
    return y.to(u.dtype), state


def _turned(x: Tensor, lengths: Tensor | None, directions: tuple[str, ...]) -> list[Tensor]:
    """The directions of ``x`` (directions, batch, L, ...), the reverse ones with their time turned round (its
    own inverse)."""
    return [
        reverse_valid(part, lengths) if name == "reverse" else part
        for part, name in zip(x, directions, strict=True)
    ]


def _time_first(x: Tensor, lengths: Tensor | None, directions: tuple[str, ...]) -> Tensor:
    """(directions, batch, L, ...) -> (L, directions, batch, ...), all running forwards, in one copy more than
    turning takes."""
    return torch.stack([part.transpose(0, 1) for part in _turned(x, lengths, directions)], dim=1)
