"""The contract of encoders: the base class, what ``forward`` returns, and when each state begins.

Shapes: B utterances, T encoder states, M chunks, D the width of the model. Lengths are absolute counts (B,).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmamba_asr.modules.chunkers import Chunker, ChunkerKind


class Encoder(nn.Module):
    """Base class of every encoder: ``forward(x, lengths, min_states=None)`` -> :class:`EncoderOutput`.

    ``forward`` is given frames x (B, T, D), whose padding may hold anything, and their lengths (B,). It owes
    its caller states that depend neither on batch mates nor on padding, with exact zeros past each
    utterance's end. If it shortens its output, it keeps at least ``min_states`` (B,) states of each
    utterance, or one for each frame if there are fewer frames; otherwise it ignores ``min_states``.

    A subclass implements ``forward`` and, where the defaults do not fit, sets the attributes below. Nothing
    else about an encoder is known outside it.

    Attributes
    ----------
    shortens : bool
        Whether the output has fewer states than the input has frames. Such an encoder says when they begin
        (``EncoderOutput.time_axis``), and is given ``min_states`` in training: as many as the CTC needs for
        the labels.
    reads_ctc : bool
        Whether ``forward`` takes the model's CTC head as its fourth argument, ``ctc_head``.
    chunkers : tuple of Chunker
        The chunker of each chunking stage, in the order of ``EncoderOutput.stages``.
    intermediate_layer : int or None
        The number of layers after which ``EncoderOutput.intermediate`` is taken, if that can be chosen.
    """

    shortens: bool = False
    reads_ctc: bool = False
    intermediate_layer: int | None = None

    @property
    def chunkers(self) -> tuple[Chunker, ...]:
        return ()


def check_encoder(encoder: nn.Module) -> None:
    """Refuse a module that does not keep the contract of :class:`Encoder`.

    Raises
    ------
    ValueError
        If it is no Encoder, or its ``forward`` takes no ``min_states``. The message names the line to write.
    """
    name = type(encoder).__name__
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{name} is not an encoder of this package; derive it from hmamba_asr.models.outputs.Encoder: "
            f"`class {name}(Encoder):`."
        )
    if "min_states" not in inspect.signature(encoder.forward).parameters:
        raise ValueError(
            f"{name}.forward takes no min_states; write `def forward(self, x, lengths, min_states=None):`, "
            "and ignore it unless the encoder shortens its output."
        )


@dataclass(frozen=True)
class TimeAxis:
    """When each encoder state begins and ends: in input frames, and through these in seconds.

    An input frame begins half-way between its own centre and the centre of the frame before. A state lasts
    until the next state begins, the last one until the last input frame ends.

    Attributes
    ----------
    starts : Tensor
        Input frame (B, T) at which each state begins.
    lengths : Tensor
        Number of states (B,).
    frames : Tensor
        Number of input frames (B,).
    first, second : float
        Positions, in feature frames, at which input frames 0 and 1 begin. The model sets them, because its
        front-end knows them.
    """

    starts: Tensor
    lengths: Tensor
    frames: Tensor
    first: float = 0.0
    second: float = 1.0

    @classmethod
    def of_frames(cls, lengths: Tensor, num_frames: int) -> TimeAxis:
        """Return the axis of an encoder with one state for each input frame."""
        starts = torch.arange(num_frames, device=lengths.device).expand(len(lengths), -1)
        return cls(starts, lengths, lengths)

    def scale(self, hop_seconds: float) -> tuple[float, float]:
        """Return ``(first, step)`` in seconds: input frame t begins at ``first + step * t``.

        ``hop_seconds`` is the distance of two feature frames.
        """
        first = hop_seconds * self.first
        return first, hop_seconds * self.second - first

    def seconds(self, frames: Tensor, hop_seconds: float) -> Tensor:
        """Return when input frames begin, in seconds, float64 on the CPU.

        ``frames`` may be fractions: at t + 0.5 is the centre of frame t.
        """
        first, step = self.scale(hop_seconds)
        return first + step * frames.double().cpu()

    def edges(self, row: int, hop_seconds: float) -> Tensor:
        """Return when each state of utterance ``row`` begins and the last one ends, in seconds (states +
        1,)."""
        starts = self.starts[row, : int(self.lengths[row])]
        return self.seconds(torch.cat([starts, self.frames[row : row + 1].to(starts)]), hop_seconds)


@dataclass
class StageOutput:
    """What one chunking stage decided about the states that it was given.

    Attributes
    ----------
    lengths : Tensor
        Number of states given (B,).
    boundary_prob, boundary_mask : Tensor
        The probability of each state to start a chunk (B, T), and whether it starts one.
    chunk_starts : Tensor
        Frame of the *encoder's* input at which each chunk begins (B, M), also where stages are nested.
    chunk_lengths : Tensor
        Number of chunks (B,).
    num_chosen : Tensor
        Number of chunks (B,) that the chunker itself chose; the others were added to reach ``min_states``.
    kind : str
        Kind of the chunker, :data:`~hmamba_asr.modules.chunkers.ChunkerKind`.
    target_ratio : float or None
        States that a chunk should have on average; None for a fixed stride, which has no target to miss.
    """

    lengths: Tensor
    boundary_prob: Tensor
    boundary_mask: Tensor
    chunk_starts: Tensor
    chunk_lengths: Tensor
    num_chosen: Tensor
    kind: ChunkerKind
    target_ratio: float | None

    @property
    def kept_fraction(self) -> Tensor:
        """Chunks for each state (B,)."""
        return self.chunk_lengths / self.lengths.clamp(min=1)

    @property
    def chosen_fraction(self) -> Tensor:
        """Chunks that the chunker itself chose, for each state (B,)."""
        return self.num_chosen / self.lengths.clamp(min=1)

    @property
    def mean_prob(self) -> Tensor:
        """Mean boundary probability (B,), including that of the first state, which is 1."""
        return self.boundary_prob.sum(1) / self.lengths.clamp(min=1)


@dataclass
class EncoderOutput:
    """What an encoder returns.

    Attributes
    ----------
    states : Tensor
        Encoder states (B, T, D), zero past the end.
    lengths : Tensor
        Number of states (B,).
    stages : tuple of StageOutput
        One record for each chunking stage, outermost first; empty for a flat encoder.
    time_axis : TimeAxis
        When each state begins. Left out, every state is an input frame.
    intermediate : EncoderOutput or None
        States that an intermediate CTC loss reads: those of a lower layer, or of the encoder before the
        chunker.
    """

    states: Tensor
    lengths: Tensor
    stages: tuple[StageOutput, ...] = ()
    time_axis: TimeAxis = None  # type: ignore[assignment]  # set below, never None for a caller
    intermediate: EncoderOutput | None = None

    def __post_init__(self) -> None:
        if self.time_axis is None:
            self.time_axis = TimeAxis.of_frames(self.lengths, self.states.shape[1])
