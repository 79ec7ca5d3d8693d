"""A Mamba mixer in any number of time directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.lengths import zero_padding
from hmamba_asr.ops.depthwise_conv import depthwise_conv
from hmamba_asr.ops.selective_scan import check_directions, resolve_backend, scan_directions


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
    lengths: Tensor | None = None,
    directions: tuple[str, ...] = ("forward", "reverse"),
    backend: str = "auto",
) -> Tensor:
    """Input projection, convolution and SiLU, selective scan and skip for each direction, then their mean,
    gated and projected.

    Shapes, with G directions: x (batch, L, d_model); in_proj (2 D, d_model), giving the convolution's input
    and the gate; conv_weight (G, D, K), conv_bias (G, D); x_proj (G, D, 2 N + R), giving B, C and dt; dt_proj
    (G, R, D), dt_bias (G, D); A_log (G, D, N), for A = -exp(A_log); D (G, D); out_proj (d_out, D); lengths
    (batch,). Returns (batch, L, d_out), zero past the end.

    Gu and Dao, https://arxiv.org/abs/2312.00752, Figure 3; both directions as in Zhu et al.,
    https://arxiv.org/abs/2401.09417, Algorithm 1.
    """
    check_directions(directions, conv_weight.shape[0])
    if not x.numel():  # no utterance, or none with a frame
        return F.linear(F.linear(x, in_proj)[..., : D.shape[1]], out_proj)
    if resolve_backend(backend, x) == "triton":
        from hmamba_asr.ops.mixer.fused import mixer

        kind = x.device.type
        x = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
        with torch.autocast(kind, enabled=False):
            reversed_groups = tuple(name == "reverse" for name in directions)
            return mixer(
                x,
                in_proj,
                conv_weight,
                conv_bias,
                x_proj,
                dt_proj,
                dt_bias,
                A_log,
                D,
                out_proj,
                lengths,
                reversed_groups,
            )
    inner, gate = F.linear(x, in_proj).chunk(2, dim=-1)
    if lengths is not None:
        inner, gate = zero_padding(inner, lengths), zero_padding(gate, lengths)
    u = torch.stack(
        [
            F.silu(depthwise_conv(inner, conv_weight[g], conv_bias[g], direction=name))
            for g, name in enumerate(directions)
        ]
    )
    projected = torch.bmm(u.flatten(1, 2), x_proj).view(*u.shape[:3], -1)
    A, n = -torch.exp(A_log.float()), A_log.shape[-1]
    B, C, dt = projected.split([n, n, dt_proj.shape[1]], dim=-1)
    delta = torch.bmm(dt.flatten(1, 2), dt_proj).view_as(u)
    y = scan_directions(
        u, delta, A, B, C, D, dt_bias, lengths=lengths, directions=directions, backend=backend
    )
    return F.linear(y.mean(0) * F.silu(gate), out_proj)
