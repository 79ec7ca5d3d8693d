"""A Mamba mixer in plain PyTorch, step by step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import zero_padding
from hmamba_asr.ops.depthwise_conv import depthwise_conv
from hmamba_asr.ops.selective_scan import scan_directions


def mamba_mixer(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    *,
    lengths: Tensor | None,
    directions: tuple[str, ...],
    backend: str,
) -> Tensor:
    """Compute :func:`hmamba_asr.ops.mixer.mamba_mixer`; ``backend`` is that of the scan."""
    inner, gate = F.linear(x, in_proj).chunk(2, dim=-1)
    if lengths is not None:
        inner, gate = zero_padding(inner, lengths), zero_padding(gate, lengths)
    u = torch.stack(
        [
            F.silu(depthwise_conv(inner, conv_weight[g], conv_bias[g], direction=direction))
            for g, direction in enumerate(directions)
        ]
    )
    projected = torch.bmm(u.flatten(1, 2), x_proj).view(*u.shape[:3], -1)
    A, n = -torch.exp(A_log.float()), A_log.shape[-1]
    B, C, dt = projected.split([n, n, dt_proj.shape[1]], dim=-1)
    delta = torch.bmm(dt.flatten(1, 2), dt_proj).view_as(u)
    y = scan_directions(
        u, delta, A, B, C, D, dt_bias, lengths=lengths, directions=directions, backend=backend
    )
    assert isinstance(y, Tensor)
    return F.linear(y.mean(0) * F.silu(gate), out_proj)
