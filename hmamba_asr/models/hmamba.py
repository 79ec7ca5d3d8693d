"""H-Mamba: an encoder on frames, chunks of these, and an encoder on chunks."""

from __future__ import annotations

from dataclasses import replace

from speechbrain.nnet.linear import Linear
from torch import Tensor, nn

from hmamba_asr.hnet.dechunking import upsample_chunks
from hmamba_asr.lengths import zero_padding
from hmamba_asr.models.outputs import Encoder, EncoderOutput, StageOutput, TimeAxis, check_encoder
from hmamba_asr.modules.chunkers import Chunker


class HierarchicalEncoder(Encoder):
    """H-Mamba: an outer encoder on frames, a chunker, and an inner encoder on the fewer chunks.

    The form is that of H-Net (Hwang et al., https://arxiv.org/abs/2507.07955) around ConMamba blocks, without
    H-Net's network behind the chunks. With a target_ratio of 1 and equal widths, the output is that of the
    flat stack, the inner encoder on top of the outer one (with output "frames", at initialisation only).

    Parameters
    ----------
    outer : Encoder
        Encoder on frames. Its last states are the intermediate output.
    chunker : Chunker
        Decides where chunks begin.
    inner : Encoder
        Encoder on chunks. It may be a HierarchicalEncoder, with output "frames" if this one's is.
    d_model : int
        Width of the input and the output.
    output : str
        "chunks": the chunk states are the output, for a CTC and a decoder at the rate of chunks. "frames":
        chunk states are upsampled to their frames, and a linear projection of the outer states is added, as
        in H-Net. No further network follows on the frames.
    inner_d_model : int, optional
        Width of the inner encoder, if different from ``d_model``.

    Raises
    ------
    ValueError
        If ``output`` is unknown, or the parts do not fit together.
    """

    def __init__(
        self,
        *,
        outer: Encoder,
        chunker: Chunker,
        inner: Encoder,
        d_model: int,
        output: str = "frames",
        inner_d_model: int | None = None,
    ):
        super().__init__()
        if output not in ("frames", "chunks"):
            raise ValueError(f"output '{output}' is unknown; choose frames or chunks.")
        self.shortens = output == "chunks"
        _check_parts(outer, inner, self.shortens)
        self.outer, self.chunker, self.inner, self.output = outer, chunker, inner, output
        width = inner_d_model or d_model
        self.widen = nn.Identity() if width == d_model else nn.Linear(d_model, width)
        self.narrow = nn.Identity() if width == d_model else nn.Linear(width, d_model)
        if output == "frames":
            # Zero at initialisation: with a target_ratio of 1, training begins as in the flat stack.
            self.residual = nn.Linear(d_model, d_model)
            nn.init.zeros_(self.residual.weight)
            nn.init.zeros_(self.residual.bias)

    @property
    def reads_ctc(self) -> bool:  # type: ignore[override]
        return self.chunker.reads_ctc

    @property
    def chunkers(self) -> tuple[Chunker, ...]:
        return (*self.outer.chunkers, self.chunker, *self.inner.chunkers)

    def forward(
        self, x: Tensor, lengths: Tensor, min_states: Tensor | None = None, ctc_head: Linear | None = None
    ) -> EncoderOutput:
        minimum = min_states if self.shortens else None  # with output "frames", every frame has a state
        outer = self.outer(x, lengths)
        chunks = self.chunker(outer.states, lengths, minimum, ctc_head=ctc_head)

        # Smooth after the inner encoder (H-Net, eq. 5); before it if it chunks again, because its output then
        # has other chunks.
        states = self.chunker.smooth(chunks.states, chunks) if self.inner.shortens else chunks.states
        inner = self.inner(self.widen(states), chunks.num_chunks, minimum)
        states = zero_padding(self.narrow(inner.states), inner.lengths)
        states = states if self.inner.shortens else self.chunker.smooth(states, chunks)

        stage = StageOutput(
            lengths=lengths,
            prob=chunks.prob,
            mask=chunks.mask,
            starts=chunks.starts,
            num_chunks=chunks.num_chunks,
            num_chosen=chunks.num_chosen,
            kind=self.chunker.kind,
            target_ratio=self.chunker.target_ratio,
            has_router=self.chunker.has_router,
        )
        nested = (replace(s, starts=chunks.starts.gather(1, s.starts)) for s in inner.stages)
        stages = (*outer.stages, stage, *nested)
        if self.shortens:
            starts = chunks.starts.gather(1, inner.time_axis.starts)
            time_axis = TimeAxis(starts, inner.lengths, frames=lengths)
            return EncoderOutput(states, inner.lengths, stages, time_axis, intermediate=outer)
        frames = upsample_chunks(states, chunks, lengths) + self.residual(outer.states)
        return EncoderOutput(zero_padding(frames, lengths), lengths, stages, intermediate=outer)


def _check_parts(outer: Encoder, inner: Encoder, shortens: bool) -> None:
    """Refuse parts that do not fit together."""
    for part in (outer, inner):
        check_encoder(part)
        if part.reads_ctc:
            raise ValueError(
                "a chunker that reads the CTC must be the outermost encoder's; "
                "take another chunker in outer or inner."
            )
    if outer.shortens:
        raise ValueError(
            "the outer encoder's output is chunks, and the chunker reads frames; set its output to frames."
        )
    if outer.intermediate_layer is not None:
        raise ValueError(
            "intermediate_layer of outer does nothing, because the intermediate CTC reads its last block; "
            "leave it out."
        )
    if inner.shortens and not shortens:
        raise ValueError(
            "output is frames and the inner encoder's is chunks, which cannot return to their frames."
        )
