"""A CTC head for states that each stand for more than one label."""

from __future__ import annotations

from speechbrain.nnet.linear import Linear
from torch import Tensor, nn


class SplittingCTCHead(nn.Module):
    """CTC logits (B, T x splits, n_neurons) of states (B, T, input_size): a state speaks ``splits`` times, in order.

    The CTC emits at most one label for each of its steps, so there can be fewer chunks than labels of a small vocabulary. Here
    each state is split into ``splits`` by as many projections, which share the layer into the vocabulary (Libovický and
    Helcl 2018, https://arxiv.org/abs/1811.04719): the encoder keeps its few states, the CTC has its many steps. With 1 split it
    is that layer alone.

    Raises
    ------
    ValueError
        If ``splits`` is below 1.
    """

    def __init__(self, *, input_size: int, n_neurons: int, splits: int = 1):
        super().__init__()
        if splits < 1:
            raise ValueError(f"splits must be 1 CTC step for a state or more, not {splits}.")
        self.splits = splits
        self.split = nn.Linear(input_size, splits * input_size) if splits > 1 else nn.Identity()
        self.w = Linear(input_size=input_size, n_neurons=n_neurons)

    def forward(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        return self.w(self.split(states).view(batch, length * self.splits, width))


def ctc_steps_per_state(head: nn.Module) -> int:
    """How many CTC steps ``head`` makes of a state; 1 unless it says otherwise."""
    return getattr(head, "splits", 1)
