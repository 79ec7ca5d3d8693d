"""The contract of encoders: the base class, what ``forward`` returns, and when each state begins.

Shapes: B utterances, T input frames of the encoder, S encoder states, M chunks, D the width of the model.
Lengths are absolute counts (B,).
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
    utterance, or one per frame if there are fewer frames; otherwise it ignores ``min_states``.

    A subclass implements ``forward`` and, if the defaults do not fit, sets the attributes below. Code outside
    an encoder knows only two further things: evaluation/operations.py sets ``scan_backend`` of every module
    that has one, and counts submodules named ``outer`` and ``inner`` separately.

    Attributes
    ----------
    shortens : bool
        Whether the output has fewer states than the input has frames. Such an encoder says when they begin
        (``EncoderOutput.time_axis``), and is given ``min_states`` in training: as many as the CTC needs for
        the labels.
    reads_ctc : bool
        Whether ``forward`` takes the model's CTC head as the keyword argument ``ctc_head``.
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
        If it is not an Encoder, or its ``forward`` takes no ``min_states``, or no ``ctc_head`` although it
        reads the CTC. The message names the line to write.
    """
    name = type(encoder).__name__
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{name} is not an encoder of this package; derive it from hmamba_asr.models.outputs.Encoder: "
            f"`class {name}(Encoder):`."
        )
    arguments = inspect.signature(encoder.forward).parameters
    if "min_states" not in arguments:
        raise ValueError(
            f"{name}.forward takes no min_states; write `def forward(self, x, lengths, min_states=None):`, "
            "and ignore it unless the encoder shortens its output."
        )
    if encoder.reads_ctc and "ctc_head" not in arguments:
        raise ValueError(
            f"{name} reads the CTC and {name}.forward takes no ctc_head; write "
            "`def forward(self, x, lengths, min_states=None, ctc_head=None):`."
        )


@dataclass(frozen=True)
class TimeAxis:
    """When each encoder state begins and ends: in input frames, and through these in seconds.

    An input frame begins halfway between the centre of its receptive field and that of the frame before. A
    state lasts until the next state begins, the last one until the last input frame ends.

    Attributes
    ----------
    starts : Tensor
        Input frame (B, S) at which each state begins.
    lengths : Tensor
        Number of states (B,).
    frames : Tensor
        Number of input frames (B,).
    offset, hop : float
        Where input frame 0 begins, and the distance of two input frames, both in feature frames. The model
        sets them, because its front-end knows them.
    per_frame : bool
        Whether :meth:`of_frames` made the axis, so that every input frame has a state.
    """

    starts: Tensor
    lengths: Tensor
    frames: Tensor
    offset: float = 0.0
    hop: float = 1.0
    per_frame: bool = False

    @classmethod
    def of_frames(cls, lengths: Tensor, num_frames: int) -> TimeAxis:
        """Return the axis of an encoder with one state per input frame."""
        starts = torch.arange(num_frames, device=lengths.device).expand(len(lengths), -1)
        return cls(starts, lengths, lengths, per_frame=True)

    def scale(self, hop_seconds: float) -> tuple[float, float]:
        """Return ``offset`` and ``hop`` in seconds: input frame t begins at ``offset + hop * t``.

        ``hop_seconds`` is the distance of two feature frames.
        """
        return hop_seconds * self.offset, hop_seconds * self.hop

    def seconds(self, frames: Tensor, hop_seconds: float) -> Tensor:
        """Return when input frames begin, in seconds, float64 on the CPU.

        ``frames`` may be fractions: at t + 0.5 is the centre of frame t.
        """
        offset, hop = self.scale(hop_seconds)
        return offset + hop * frames.double().cpu()

    def edges(self, row: int, hop_seconds: float) -> Tensor:
        """Return when each state of utterance ``row`` begins, and when the last one ends, in seconds."""
        starts = self.starts[row, : int(self.lengths[row])]
        return self.seconds(torch.cat([starts, self.frames[row : row + 1].to(starts)]), hop_seconds)


@dataclass
class StageOutput:
    """What one chunking stage decided about the frames that it was given.

    The outermost stage is given frames at the encoder's rate, a nested one the chunks of the stage around it:
    these are then its T frames.

    Attributes
    ----------
    lengths : Tensor
        Number of frames given (B,).
    prob, mask : Tensor
        Soft selection score in [0, 1] of each frame (B, T), a probability only for H-Net's router; and
        whether the frame starts a chunk (B, T).
    starts : Tensor
        Frame of the *encoder's* input at which each chunk begins (B, M), also where stages are nested.
    num_chunks : Tensor
        Number of chunks (B,).
    num_chosen : Tensor
        Number of chunks (B,) that the chunker itself chose; the others were added to reach ``min_states``.
    kind : str
        Kind of the chunker, :data:`~hmamba_asr.modules.chunkers.ChunkerKind`.
    target_ratio : float or None
        Target frames per chunk (N) of the chunker; None for a fixed stride.
    has_router : bool
        Whether the chunker learns where chunks begin, and ``prob`` has a gradient.
    """

    lengths: Tensor
    prob: Tensor
    mask: Tensor
    starts: Tensor
    num_chunks: Tensor
    num_chosen: Tensor
    kind: ChunkerKind
    target_ratio: float | None
    has_router: bool

    @property
    def kept_fraction(self) -> Tensor:
        """Chunks per frame (B,)."""
        return self.num_chunks / self.lengths.clamp(min=1)

    @property
    def chosen_fraction(self) -> Tensor:
        """Chunks per frame (B,), only those that the chunker itself chose."""
        return self.num_chosen / self.lengths.clamp(min=1)

    @property
    def mean_prob(self) -> Tensor:
        """Mean of ``prob`` over the frames (B,), including that of the first frame, which is 1."""
        return self.prob.sum(1) / self.lengths.clamp(min=1)


@dataclass
class EncoderOutput:
    """What an encoder returns.

    Attributes
    ----------
    states : Tensor
        Encoder states (B, S, D), zero past the end.
    lengths : Tensor
        Number of states (B,).
    stages : tuple of StageOutput
        One record per chunking stage, outermost first; empty for a flat encoder.
    time_axis : TimeAxis
        When each state begins. If left out, every input frame has a state.
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
