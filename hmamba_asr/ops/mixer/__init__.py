"""A Mamba mixer in any number of time directions.

:mod:`.reference` holds the plain steps, :mod:`.fused` the mixer as one operation, which runs the selective
scan's kernels and those of :mod:`.kernels` (convolution, gate, weights) between matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmamba_asr.ops.mixer import reference
from hmamba_asr.ops.selective_scan import check_directions, resolve_scan_backend


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
    """Mix frames over time: project in, scan in each direction, average, gate, project out.

    A direction is a short convolution with SiLU, the selective scan, and its skip connection. The mixer is
    that of Gu and Dao 2023, https://arxiv.org/abs/2312.00752, Figure 3; the directions share their input and
    gate as in Zhu et al. 2024, https://arxiv.org/abs/2401.09417, Algorithm 1.

    Parameters
    ----------
    x : Tensor
        (batch, L, d_model).
    in_proj : Tensor
        (2 D, d_model); gives the convolution's input, then the gate.
    conv_weight, conv_bias : Tensor
        (G, D, K) and (G, D), with G directions and K taps.
    x_proj : Tensor
        (G, D, 2 N + R); gives B, C and dt.
    dt_proj, dt_bias : Tensor
        (G, R, D) and (G, D).
    A_log : Tensor
        (G, D, N), where A = -exp(A_log).
    D : Tensor
        (G, D), the skip connection.
    out_proj : Tensor
        (d_out, D).
    lengths : Tensor, optional
        (batch,), valid frames of each utterance; all L if None.
    directions : tuple of str
        "forward" or "reverse" for each of the G directions.
    backend : str
        As in :func:`~hmamba_asr.ops.selective_scan.scan_directions`. "triton" runs the whole mixer as one
        operation, all others run the plain steps with that scan.

    Returns
    -------
    Tensor
        (batch, L, d_out), zero past the end.

    Raises
    ------
    ValueError
        If a direction or the backend is unknown, or the number of directions is not G.
    RuntimeError
        If the backend cannot run here.
    """
    weights = (in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj)
    check_directions(directions, conv_weight.shape[0])
    if not x.numel():  # no utterance, or none with a frame
        return F.linear(F.linear(x, in_proj)[..., : D.shape[1]], out_proj)
    if resolve_scan_backend(backend, x) != "triton":
        return reference.mamba_mixer(x, *weights, lengths=lengths, directions=directions, backend=backend)

    from hmamba_asr.ops.mixer import fused

    device = x.device.type
    x = x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
    with torch.autocast(device, enabled=False):
        return fused.mamba_mixer(
            x, *weights, lengths, tuple(direction == "reverse" for direction in directions)
        )
