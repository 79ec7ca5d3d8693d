"""What an encoder owes its caller."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class StageOutput:
    """What one chunking stage decided about the lengths (B,) states it was given.

    boundary_prob and boundary_mask (B, T); chunk_lengths (B,), of which chosen (B,) are the chunker's own and
    the rest a floor's; chunk_starts (B, M): the frame of the *encoder's* input that each chunk begins at,
    also where stages are nested; target_ratio: states a chunk should have, None for a fixed stride.
    """

    lengths: Tensor
    boundary_prob: Tensor
    boundary_mask: Tensor
    chunk_starts: Tensor
    chunk_lengths: Tensor
    chosen: Tensor
    target_ratio: float | None

    @property
    def kept_fraction(self) -> Tensor:
        """Chunks for each state (B,)."""
        return self.chunk_lengths / self.lengths.clamp(min=1)

    @property
    def chosen_fraction(self) -> Tensor:
        """The same without the floor's (B,)."""
        return self.chosen / self.lengths.clamp(min=1)

    @property
    def mean_prob(self) -> Tensor:
        """Mean boundary probability (B,), the first state's 1 included."""
        return self.boundary_prob.sum(1) / self.lengths.clamp(min=1)


@dataclass
class EncoderOutput:
    """Encoder states (B, T, d_model), zero past the end, their lengths (B,), one entry per chunking stage,
    and the output of an encoder that this one stands on, for an intermediate loss."""

    states: Tensor
    lengths: Tensor
    stages: tuple[StageOutput, ...] = ()
    intermediate: EncoderOutput | None = None
