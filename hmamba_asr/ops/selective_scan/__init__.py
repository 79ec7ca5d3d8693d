"""The selective scan (S6) behind one signature; the backend is chosen here and nowhere else.

Backends: ``reference`` (time loop, the oracle), ``chunked`` (PyTorch, any device), ``mamba_ssm`` (CUDA kernel of that
package, where it is installed and asked for). ``auto`` takes ``chunked``. Asking for one that is not there is an error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import reverse_valid, zero_padding
from hmamba_asr.ops.selective_scan import chunked, mamba_ssm, reference

BACKENDS = ("auto", "reference", "chunked", "mamba_ssm")
DIRECTIONS = ("forward", "reverse")


def resolve_backend(backend: str) -> str:
    """The backend that ``backend`` stands for. ValueError if it is unknown, RuntimeError if it cannot run here."""
    if backend not in BACKENDS:
        raise ValueError(f"scan backend '{backend}' is unknown; choose one of {', '.join(BACKENDS)}.")
    if backend == "mamba_ssm" and (reason := mamba_ssm.unavailable_reason()):
        raise RuntimeError(reason)
    return "chunked" if backend == "auto" else backend


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
) -> Tensor:
    """Selective scan of one direction: h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = (C_t h_t + D u_t) silu(z_t),
    with dt = softplus(delta + delta_bias).

    Shapes: u, delta, z (batch, L, D_inner); A (D_inner, N), negative; B, C (batch, L, N); D, delta_bias (D_inner,);
    lengths (batch,) integer. With direction "reverse" time runs from each utterance's last valid frame backwards.
    Returns y (batch, L, D_inner) in u's dtype, zero past the end; the state is float32 at least.
    """
    groups = [None if x is None else x.unsqueeze(0) for x in (D, delta_bias)]
    y = scan_directions(
        u.unsqueeze(0), delta.unsqueeze(0), A.unsqueeze(0), B.unsqueeze(0), C.unsqueeze(0), groups[0], groups[1],
        lengths=lengths, directions=(direction,), backend=backend,
    )[0]  # fmt: skip
    return y if z is None else y * F.silu(z)


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
) -> Tensor:
    """Scan several directions at once, each with its own inputs and parameters, all in natural time order.

    Shapes as in :func:`selective_scan` with a leading axis of ``len(directions)``. Returns (directions, batch, L, D_inner).
    """
    if unknown := set(directions) - set(DIRECTIONS):
        raise ValueError(f"scan direction '{unknown.pop()}' is unknown; choose forward or reverse.")
    if len(directions) != u.shape[0]:
        raise ValueError(f"{u.shape[0]} sets of inputs were given for {len(directions)} directions.")
    backend = resolve_backend(backend)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        dt = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)[:, None, None]
        dt = F.softplus(dt)
        if backend == "reference":
            wide = [x.to(dtype) for x in (u, dt, A, B, C)]
            y = torch.stack(
                [reference.scan(*(x[g] for x in wide), lengths, name == "reverse") for g, name in enumerate(directions)]
            )
        else:
            # Reversed within its valid frames, an utterance's padding always comes after its end, where nothing reads it.
            run = chunked.scan_groups if backend == "chunked" else mamba_ssm.scan_groups
            ordered = [_oriented(x, lengths, directions) for x in (u, dt, B, C)]
            y = _oriented(run(ordered[0], ordered[1], A, ordered[2], ordered[3]), lengths, directions)
        if D is not None:
            y = y + D.to(dtype)[:, None, None] * u.to(dtype)
    if lengths is not None:
        y = torch.stack([zero_padding(part, lengths) for part in y])
    return y.to(u.dtype)


def _oriented(x: Tensor, lengths: Tensor | None, directions: tuple[str, ...]) -> Tensor:
    """``x`` (directions, batch, L, ...) with the reverse directions' time axis turned round (its own inverse)."""
    if "reverse" not in directions:
        return x
    return torch.stack(
        [reverse_valid(part, lengths) if name == "reverse" else part for part, name in zip(x, directions, strict=True)]
    )
