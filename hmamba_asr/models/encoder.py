"""Encoders behind one contract: ``encoder(x, lengths) -> EncoderOutput``, x (B, T, d_model), lengths (B,) integer frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.nnet.attention import RelPosEncXL
from torch import Tensor, nn

from hmamba_asr.lengths import valid_mask, zero_padding
from hmamba_asr.modules.chunks import dechunk, smooth_chunks
from hmamba_asr.modules.conmamba import ConMambaBlock


@dataclass
class StageOutput:
    """What one chunking stage decided about the lengths (B,) states it was given.

    boundary_prob and boundary_mask (B, T); chunk_lengths (B,), of which chosen (B,) are the chunker's own and the rest a floor's;
    chunk_starts (B, M): the frame of the *encoder's* input that each chunk begins at, also where stages are nested; target_ratio:
    states a chunk should have, None for a fixed stride.
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
    """Encoder states (B, T, d_model), zero past the end, their lengths (B,), one entry per chunking stage, and the output of an
    encoder that this one stands on, for an intermediate loss."""

    states: Tensor
    lengths: Tensor
    stages: tuple[StageOutput, ...] = ()
    intermediate: EncoderOutput | None = None


class ConMambaEncoder(nn.Module):
    """A stack of ConMamba blocks at one frame rate (Jiang et al., https://arxiv.org/abs/2407.09732). The intermediate output is
    that of its first ``intermediate_layer`` blocks."""

    def __init__(
        self, *, num_layers: int, d_model: int, d_ffn: int, kernel_size: int, dropout: float, causal: bool = False,
        d_state: int = 16, d_conv: int = 4, expand: int = 2, scan_backend: str = "auto", intermediate_layer: int | None = None,
    ):  # fmt: skip
        super().__init__()
        if intermediate_layer is not None and not 0 < intermediate_layer < num_layers:
            raise ValueError(f"intermediate_layer must lie between 0 and num_layers = {num_layers}, not be {intermediate_layer}.")
        self.intermediate_layer = intermediate_layer
        self.blocks = nn.ModuleList(
            ConMambaBlock(
                d_model=d_model, d_ffn=d_ffn, kernel_size=kernel_size, dropout=dropout, causal=causal,
                d_state=d_state, d_conv=d_conv, expand=expand, scan_backend=scan_backend,
            )
            for _ in range(num_layers)
        )  # fmt: skip

    def forward(self, x: Tensor, lengths: Tensor) -> EncoderOutput:
        intermediate = None
        for i, block in enumerate(self.blocks):
            if i == self.intermediate_layer:
                intermediate = EncoderOutput(zero_padding(x, lengths), lengths)
            x = block(x, lengths)
        return EncoderOutput(zero_padding(x, lengths), lengths, intermediate=intermediate)


class HierarchicalEncoder(nn.Module):
    """H-Mamba: an outer encoder at the frame rate, a chunker, and an inner encoder on fewer chunks
    (Hwang et al., https://arxiv.org/abs/2507.07955, around ConMamba blocks).

    ``forward(x, lengths, min_chunks=None)`` -> :class:`EncoderOutput`, one stage first its own and then the inner encoder's.
    ``output`` is "frames": chunk states return to their frames and are added to the outer states (H-Net's form); or "chunks":
    the chunk states themselves are the output, for heads at the chunk rate. ``inner`` may be hierarchical again, with output
    "frames" if this one's is. With ``inner_d_model`` the inner encoder has another width than the outer one.

    With every frame a chunk (target_ratio 1) the output is that of the outer encoder followed by the inner one.

    Raises
    ------
    ValueError
        For an unknown ``output``, output "frames" around an inner encoder with output "chunks", an outer encoder with output
        "chunks", and one with an intermediate_layer: the intermediate output is the outer encoder's last.
    """

    def __init__(
        self, *, outer: nn.Module, chunker: nn.Module, inner: nn.Module, d_model: int, output: str = "frames",
        inner_d_model: int | None = None,
    ):  # fmt: skip
        super().__init__()
        if output not in ("frames", "chunks"):
            raise ValueError(f"output '{output}' is unknown; choose frames or chunks.")
        if getattr(outer, "shortens", False):
            raise ValueError("the outer encoder's output is chunks, and the chunker reads frames; set its output to frames.")
        if getattr(outer, "intermediate_layer", None) is not None:
            raise ValueError("intermediate_layer of outer does nothing, the intermediate CTC reads its last block; leave it out.")
        self.outer, self.chunker, self.inner, self.output = outer, chunker, inner, output
        self.shortens = output == "chunks"
        self.inner_shortens = getattr(inner, "shortens", False)
        if self.inner_shortens and not self.shortens:
            raise ValueError("output is frames and the inner encoder's is chunks, which cannot return to their frames.")
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
        # What an inner encoder that shortens returns are other chunks than those with probabilities here: smoothed before it.
        chunks = smooth_chunks(chunked.chunks, chunked) if self.chunker.smooths and self.inner_shortens else chunked.chunks
        inner = self.inner(self.widen(chunks), chunked.chunk_lengths, *floor)
        stage = StageOutput(
            lengths=lengths, boundary_prob=chunked.boundary_prob, boundary_mask=chunked.boundary_mask,
            chunk_starts=chunked.chunk_frames, chunk_lengths=chunked.chunk_lengths, chosen=chunked.chosen,
            target_ratio=self.chunker.target_ratio,
        )  # fmt: skip
        nested = (replace(s, chunk_starts=chunked.chunk_frames.gather(1, s.chunk_starts)) for s in inner.stages)
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


class ConformerControl(nn.Module):
    """SpeechBrain's Conformer with relative positions: the control that ConMamba is measured against.

    SpeechBrain masks after the depthwise convolution, not before it, so the last frames of a padded utterance would read
    the biases of its padding. A hook zeroes them on the way in; everything else is SpeechBrain's.
    """

    def __init__(self, *, num_layers: int, d_model: int, d_ffn: int, nhead: int, kernel_size: int, dropout: float):
        super().__init__()
        self.positions = RelPosEncXL(d_model)
        self.encoder = ConformerEncoder(
            num_layers=num_layers, nhead=nhead, d_ffn=d_ffn, d_model=d_model, kernel_size=kernel_size, dropout=dropout,
            activation=nn.SiLU, attention_type="RelPosMHAXL", causal=False,
        )  # fmt: skip
        self._padding: Tensor | None = None
        for layer in self.encoder.layers:
            layer.convolution_module.conv.register_forward_pre_hook(self._zero_padding)

    def _zero_padding(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (x,) = inputs  # (B, d_model, T)
        return x.masked_fill(self._padding.unsqueeze(1), 0.0)

    def forward(self, x: Tensor, lengths: Tensor) -> EncoderOutput:
        self._padding = ~valid_mask(lengths, x.shape[1])
        states, _ = self.encoder(x, src_key_padding_mask=self._padding, pos_embs=self.positions(x))
        return EncoderOutput(zero_padding(states, lengths), lengths)
