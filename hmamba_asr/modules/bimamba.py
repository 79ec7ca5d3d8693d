"""Inner bidirectional Mamba: both time directions share the input and the output projection.

Each direction has its own convolution, B, C, dt, A, D and selective scan; the outputs are averaged.

Sources: Gu and Dao, https://arxiv.org/abs/2312.00752, for the mixer and its initialisation; Zhu et al.,
"Vision Mamba", https://arxiv.org/abs/2401.09417, Algorithm 1, for the bidirectional form; Jiang et al.,
"Speech Slytherin", https://arxiv.org/abs/2407.09732, for its place in ConMamba.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hmamba_asr.ops.mixer import mamba_mixer
from hmamba_asr.ops.selective_scan import BACKENDS

DT_INIT_FLOOR = 1e-4  # mamba-ssm's dt_init_floor


class BiMamba(nn.Module):
    """Mamba mixer over padded batches: ``forward(x, lengths)``, (B, T, d_model), (B,) -> (B, T, d_model).

    The output is zero past each utterance's end. The parameters of the directions are stacked on a leading
    axis, those of the forward direction first. The columns of ``x_proj`` give B, C and dt, in this order;
    mamba-ssm has dt, B, C.

    Parameters
    ----------
    d_model : int
        Width of the frames.
    d_state : int
        Size of the state of each inner channel.
    d_conv : int
        Frames that the short convolution in front of the scan sees.
    expand : int
        Inner channels per channel of d_model.
    dt_rank : int, optional
        Rank of the projection that gives the step size dt; d_model / 16 by default.
    dt_min, dt_max : float
        Range of dt at the start.
    causal : bool
        Whether there is the forward direction only.
    scan_backend : str
        One of ``hmamba_asr.ops.selective_scan.BACKENDS``.

    Raises
    ------
    ValueError
        If ``scan_backend`` is unknown.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        causal: bool = False,
        scan_backend: str = "auto",
    ):
        super().__init__()
        if scan_backend not in BACKENDS:
            raise ValueError(
                f"scan_backend '{scan_backend}' is unknown; choose one of {', '.join(BACKENDS)}."
            )
        self.directions = ("forward",) if causal else ("forward", "reverse")
        self.scan_backend = scan_backend
        self.d_state, self.d_inner = d_state, expand * d_model
        self.dt_rank = dt_rank or math.ceil(d_model / 16)
        g, d = len(self.directions), self.d_inner

        self.in_proj = nn.Linear(d_model, 2 * d, bias=False)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(g, d, d_conv).uniform_(-1, 1) / math.sqrt(d_conv))
        self.conv_bias = nn.Parameter(torch.empty(g, d).uniform_(-1, 1) / math.sqrt(d_conv))
        self.x_proj = nn.Parameter(
            torch.empty(g, d, self.dt_rank + 2 * d_state).uniform_(-1, 1) / math.sqrt(d)
        )
        self.dt_proj = nn.Parameter(torch.empty(g, self.dt_rank, d).uniform_(-1, 1) / math.sqrt(self.dt_rank))
        # softplus(dt_bias) is log-uniform in [dt_min, dt_max]. At initialisation a channel's slowest state
        # (A = -1) thus remembers 1 / dt_max to 1 / dt_min frames, 10 to 1000 by default.
        dt = torch.exp(torch.rand(g, d) * math.log(dt_max / dt_min) + math.log(dt_min))
        dt = dt.clamp(min=DT_INIT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().expand(g, d, d_state).contiguous())
        self.D = nn.Parameter(torch.ones(g, d))
        for parameter in (self.conv_bias, self.dt_bias, self.A_log, self.D):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return mamba_mixer(
            x,
            self.in_proj.weight,
            self.conv_weight,
            self.conv_bias,
            self.x_proj,
            self.dt_proj,
            self.dt_bias,
            self.A_log,
            self.D,
            self.out_proj.weight,
            lengths=lengths,
            directions=self.directions,
            backend=self.scan_backend,
        )
