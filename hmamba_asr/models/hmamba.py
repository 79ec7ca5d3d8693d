"""Encoders behind one contract: ``encoder(x, lengths) -> EncoderOutput``, x (B, T, d_model), lengths (B,)
integer frames."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from hmamba_asr.lengths import zero_padding
from hmamba_asr.models.outputs import EncoderOutput, StageOutput
from hmamba_asr.modules.chunk_ops import dechunk, smooth_chunks


class HierarchicalEncoder(nn.Module):
    """H-Mamba: an outer encoder at the frame rate, a chunker, and an inner encoder on fewer chunks
    (Hwang et al., https://arxiv.org/abs/2507.07955, around ConMamba blocks).

    ``forward(x, lengths, min_chunks=None)`` -> :class:`EncoderOutput`, one stage first its own and then the
    inner encoder's. ``output`` is "frames": chunk states return to their frames and are added to the outer
    states (H-Net's form); or "chunks": the chunk states themselves are the output, for heads at the chunk
    rate. ``inner`` may be hierarchical again, with output "frames" if this one's is. With ``inner_d_model``
    the inner encoder has another width than the outer one.

    With every frame a chunk (target_ratio 1) the output is that of the outer encoder followed by the inner
    one.

    Raises
    ------
    ValueError
        For an unknown ``output``, output "frames" around an inner encoder with output "chunks", an outer
        encoder with output "chunks", and one with an intermediate_layer: the intermediate output is the outer
        encoder's last.
    """

    def __init__(
        self,
        *,
        outer: nn.Module,
        chunker: nn.Module,
        inner: nn.Module,
        d_model: int,
        output: str = "frames",
        inner_d_model: int | None = None,
    ):
        super().__init__()
        if output not in ("frames", "chunks"):
            raise ValueError(f"output '{output}' is unknown; choose frames or chunks.")
        if getattr(outer, "shortens", False):
            raise ValueError(
                "the outer encoder's output is chunks, and the chunker reads frames; set its output to frames."
            )
        if getattr(outer, "intermediate_layer", None) is not None:
            raise ValueError(
                "intermediate_layer of outer does nothing, the intermediate CTC reads its last block; leave it out."
            )
        self.outer, self.chunker, self.inner, self.output = outer, chunker, inner, output
        self.shortens = output == "chunks"
        self.inner_shortens = getattr(inner, "shortens", False)
        if self.inner_shortens and not self.shortens:
            raise ValueError(
                "output is frames and the inner encoder's is chunks, which cannot return to their frames."
            )
        width = inner_d_model or d_model
        self.widen = nn.Identity() if width == d_model else nn.Linear(d_model, width)
        self.narrow = nn.Identity() if width == d_model else nn.Linear(width, d_model)
        if output == "frames":
            # Starts at nothing: with all frames chunks, training begins as in the flat encoder.
            self.residual = nn.Linear(d_model, d_model)
            nn.init.zeros_(self.residual.weight)
            nn.init.zeros_(self.residual.bias)

    def forward(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None = None) -> EncoderOutput:
        outer = self.outer(x, lengths)
        chunked = self.chunker(outer.states, lengths, min_chunks)
        floor = (min_chunks,) if self.inner_shortens and min_chunks is not None else ()
        # What an inner encoder that shortens returns are other chunks than those with probabilities here:
        # smoothed before it.
        chunks = (
            smooth_chunks(chunked.chunks, chunked)
            if self.chunker.smooths and self.inner_shortens
            else chunked.chunks
        )
        inner = self.inner(self.widen(chunks), chunked.chunk_lengths, *floor)
        stage = StageOutput(
            lengths=lengths,
            boundary_prob=chunked.boundary_prob,
            boundary_mask=chunked.boundary_mask,
            chunk_starts=chunked.chunk_frames,
            chunk_lengths=chunked.chunk_lengths,
            chosen=chunked.chosen,
            target_ratio=self.chunker.target_ratio,
        )
        nested = (
            replace(s, chunk_starts=chunked.chunk_frames.gather(1, s.chunk_starts)) for s in inner.stages
        )
        stages = (*outer.stages, stage, *nested)
        states = zero_padding(self.narrow(inner.states), inner.lengths)
        if self.inner_shortens:
            return EncoderOutput(states, inner.lengths, stages, outer)
        if self.chunker.smooths:
            states = smooth_chunks(states, chunked)
        if self.shortens:
            return EncoderOutput(states, inner.lengths, stages, outer)
        frames = dechunk(states, chunked, lengths) + self.residual(outer.states)
        return EncoderOutput(zero_padding(frames, lengths), lengths, stages, outer)
