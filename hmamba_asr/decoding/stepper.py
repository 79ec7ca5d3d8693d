"""SpeechBrain's Transformer decoder and Transformer LM, one token at a time.

The modules stay SpeechBrain's, and so do their parameters; only the way they are run is ours. What has been
computed for a prefix is kept: self-attention keys and values in a :class:`KeyValuePool`, cross-attention keys
and values projected once for each utterance and read by all of its hypotheses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.transformer.Transformer import TransformerDecoderLayer, TransformerEncoderLayer
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.attention import MultiheadAttention, PositionalwiseFeedForward
from torch import Tensor, nn

from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.asr import ASRModel
from hmamba_asr.ops.attention import additive_mask, attend, attention_weights, split_heads


class KeyValuePool:
    """Self-attention keys and values of all hypotheses of a batch: each token's once, however many hypotheses
    go through it.

    A slot holds the keys and values of one token in all layers; each step takes one slot for each hypothesis.
    Which slots a hypothesis attends to, its ancestors, stands in ``ancestors`` (B, hypotheses, capacity):
    when the beam is reordered, rows of this mask move and keys and values stay where they are. When the pool
    is full, slots that no hypothesis descends from are given up; if that frees less than half, the pool
    grows.

    The calls of a step are ``reserve``, which is the host's part, then ``append``, then ``write`` for each
    layer: these are the same work on the same addresses in every step, so that a CUDA graph can repeat them,
    and attend to empty slots too. On a CPU, where that would only cost time, attention ends at the last slot
    taken (``whole`` overrules that).
    """

    def __init__(self, num_layers: int, first_capacity: int = 256, whole: bool | None = None):
        self.num_layers, self.capacity, self.whole = num_layers, first_capacity, whole
        self.slots = 0  # taken; on the device ``taken``, which ``append`` brings up to it
        self.taken: Tensor | None = None
        self.ancestors: Tensor | None = None
        self._here: Tensor | None = None
        self._buffer: Tensor | None = (
            None  # (layers, 2, B, heads, capacity, d_head); made when the keys are known
        )

    def reserve(self, hypotheses: int) -> None:
        """Room for the next token of each hypothesis; may wait for the device."""
        if self.slots + hypotheses > self.capacity:
            self._make_room(hypotheses)
        self.slots += hypotheses

    def append(self, visible: Tensor) -> Tensor:
        """The reserved slots become the hypotheses' own; ``visible`` (B, hypotheses) is false where nobody
        may attend to it. Gives what each may attend to (B, hypotheses, slots)."""
        batch, hypotheses = visible.shape
        if self.ancestors is None:
            self.whole = visible.is_cuda if self.whole is None else self.whole
            self.ancestors = visible.new_zeros(batch, hypotheses, self.capacity)
            self.taken = torch.zeros(1, dtype=torch.long, device=visible.device)
        self._here = self.taken + torch.arange(hypotheses, device=visible.device)
        self.ancestors = self.ancestors.index_copy(2, self._here, torch.diag_embed(visible))
        self.taken = self.taken + hypotheses
        return self.ancestors[..., : self._reach]

    def write(self, layer: int, keys_values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Fill the newest slots of ``layer`` from (B, hypotheses, 2 d_model), the same number of heads in all
        layers; gives the layer's keys and values (B, heads, slots, d_head)."""
        new = keys_values.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        if self._buffer is None:
            self._buffer = new.new_zeros(self.num_layers, *new.shape[:3], self.capacity, new.shape[-1])
        keys, values = self._buffer[layer].index_copy_(3, self._here, new)[..., : self._reach, :]
        return keys, values

    def reorder(self, parents: Tensor) -> None:
        """Hypothesis i of each utterance goes on from hypothesis ``parents[:, i]``; parents (B,
        hypotheses)."""
        self.ancestors = self.ancestors.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.capacity))

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""
        self.ancestors = self.ancestors[rows]
        self._buffer = self._buffer[:, :, rows]

    @property
    def _reach(self) -> int:
        return self.capacity if self.whole else self.slots

    def _make_room(self, wanted: int) -> None:
        if self._buffer is None:  # more hypotheses at once than the first capacity
            self.capacity = max(2 * self.capacity, wanted)
            return
        used = self.ancestors.any(1)
        count = int(used.sum(1).max())
        if 2 * (count + wanted) > self.capacity:
            larger = max(2 * self.capacity, self.slots + wanted)
            self._buffer = F.pad(self._buffer, (0, 0, 0, larger - self.capacity))
            self.ancestors = F.pad(self.ancestors, (0, larger - self.capacity))
            self.capacity = larger
            return
        order = used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        for row, chosen in zip(
            self._buffer.unbind(2), order, strict=True
        ):  # (layers, 2, heads, capacity, d_head)
            row[..., :count, :] = row.index_select(3, chosen)
        ancestors = self.ancestors.gather(2, order.unsqueeze(1).expand(-1, self.ancestors.shape[1], -1))
        self.ancestors = F.pad(ancestors, (0, self.capacity - count))
        self.slots, self.taken = count, torch.full_like(self.taken, count)


@dataclass
class StepperState:
    """What a prefix leaves behind; ``memory`` holds, for each layer, an utterance's cross-attention keys and
    values.

    Their shape is (B, heads, T, d_head). ``memory_mask`` (B, 1, 1, T) is 0 on frames and -inf on padding,
    None without any. ``position`` (1,) counts the steps, None before the first.
    """

    pool: KeyValuePool
    position: Tensor | None = None
    memory: list[tuple[Tensor, Tensor]] | None = None
    memory_mask: Tensor | None = None

    def prepare(self, hypotheses: int) -> None:
        """What the host does before each step of so many hypotheses."""
        self.pool.reserve(hypotheses)

    def carried(self) -> list[tuple[object, str]]:
        return [(self, "position"), (self.pool, "ancestors"), (self.pool, "taken")]

    def reorder(self, parents: Tensor) -> None:
        self.pool.reorder(parents)

    def keep(self, rows: Tensor) -> None:
        self.pool.keep(rows)
        if self.memory is not None:
            self.memory = [(keys[rows], values[rows]) for keys, values in self.memory]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[rows]


class TransformerStepper:
    """Steps a stack of SpeechBrain's Transformer layers, pre- or post-norm, encoder or decoder layers, in
    evaluation mode.

    Raises
    ------
    ValueError
        For layers that cannot be stepped: attention with relative positions, convolutions, extra keys.
    """

    def __init__(self, *, stack: nn.Module, embed, positions: nn.Module, hidden_token: int | None = None):
        """``embed`` maps tokens to vectors; nobody attends to ``hidden_token`` (SpeechBrain's LM takes token
        0 for padding)."""
        self.layers = [_Layer(layer) for layer in stack.layers]
        self.norm, self.embed, self.positions, self.hidden_token = stack.norm, embed, positions, hidden_token

    @property
    def max_steps(self) -> int:
        """Tokens that the positional encoding reaches."""
        return self.positions.pe.shape[1]

    def start(self, states: Tensor | None = None, lengths: Tensor | None = None) -> StepperState:
        """State in front of the first token. Decoder layers attend to states (B, T, d_model) with lengths
        (B,) of 1 or more; without any, their cross-attention counts as zero."""
        state = StepperState(KeyValuePool(len(self.layers)))
        if states is not None:
            states = states.to(self.norm.norm.weight.dtype)
            state.memory = [layer.project_memory(states) for layer in self.layers]
            if int(lengths.min()) < states.shape[1]:
                mask = valid_mask(lengths, states.shape[1])[:, None, None]
                state.memory_mask = additive_mask(mask, state.memory[0][0].dtype)
        return state

    def step(
        self, state: StepperState, tokens: Tensor, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The newest token of each hypothesis (B, hypotheses) -> the stack's output for it (B, hypotheses,
        d_model).

        ``state.prepare`` comes first. The number of hypotheses may differ from the last step's, through
        ``state.reorder``. ``with_attention`` adds the last layer's cross-attention (B, hypotheses, T), the
        mean over its heads.
        """
        visible = (
            torch.ones_like(tokens, dtype=torch.bool)
            if self.hidden_token is None
            else tokens != self.hidden_token
        )
        ancestors = state.pool.append(visible).unsqueeze(1)
        if state.position is None:
            state.position = torch.zeros(1, dtype=torch.long, device=tokens.device)
        x = self.embed(tokens) + self.positions.pe[0].index_select(0, state.position)
        mask = attention = None
        for index, layer in enumerate(self.layers):
            query, keys_values = layer.project_self(x)
            if mask is None:
                mask = additive_mask(ancestors, query.dtype)
            x = layer.attend_self(
                x, query, *state.pool.write(index, keys_values, layer.attention.num_heads), mask
            )
            if layer.cross is not None and state.memory is None:
                x = layer.skip_memory(x)
            elif layer.cross is not None:
                memory = (*state.memory[index], state.memory_mask)
                if with_attention and layer is self.layers[-1]:
                    attention = layer.memory_weights(x, memory[0], memory[2])
                x = layer.attend_memory(x, *memory)
            x = layer.feed_forward(x)
        state.position = state.position + 1
        return self.norm(x), attention


class _Layer:
    """One of SpeechBrain's layers, cut where its keys and values are kept."""

    def __init__(self, layer: TransformerEncoderLayer | TransformerDecoderLayer):
        decoder = isinstance(layer, TransformerDecoderLayer)
        if not decoder and not isinstance(layer, TransformerEncoderLayer):
            raise ValueError(
                f"{type(layer).__name__} cannot be stepped; use SpeechBrain's Transformer layers."
            )
        attention = layer.self_attn if decoder else layer.self_att
        self.cross = _attention(layer.multihead_attn) if decoder else None
        self.attention = _attention(attention)
        if not isinstance(layer.pos_ffn, PositionalwiseFeedForward):
            raise ValueError(
                "a feed-forward part of convolutions cannot be stepped; use ffn_type regularFFN."
            )
        self.ffn, self.pre_norm = layer.pos_ffn.ffn, layer.normalize_before
        self.norms = [layer.norm1, layer.norm2, *([layer.norm3] if decoder else [])]

    def project_self(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, hypotheses, d_model) -> queries (same shape) and keys with values (..., 2 d_model)."""
        x = self.norms[0](x) if self.pre_norm else x
        return F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias).tensor_split(
            [x.shape[-1]], -1
        )

    def attend_self(self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return self._add(x, self.attention.out_proj(attend(query, keys, values, mask)), 0)

    def project_memory(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values (B, heads, T, d_head) of encoder states (B, T, d_model)."""
        width, heads = self.cross.embed_dim, self.cross.num_heads
        weight, bias = self.cross.in_proj_weight[width:], self.cross.in_proj_bias[width:]
        keys, values = F.linear(states, weight, bias).chunk(2, -1)
        return split_heads(keys, heads).contiguous(), split_heads(values, heads).contiguous()

    def attend_memory(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return self._add(x, self.cross.out_proj(attend(self._memory_query(x), keys, values, mask)), 1)

    def skip_memory(self, x: Tensor) -> Tensor:
        """As :meth:`attend_memory` where the attention's output is zero."""
        return x if self.pre_norm else self.norms[1](x)

    def memory_weights(self, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Attention weights (B, hypotheses, T), the mean over the heads."""
        return attention_weights(split_heads(self._memory_query(x), self.cross.num_heads), keys, mask).mean(1)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self._add(x, self.ffn(self.norms[-1](x) if self.pre_norm else x), len(self.norms) - 1)

    def _memory_query(self, x: Tensor) -> Tensor:
        width = self.cross.embed_dim
        x = self.norms[1](x) if self.pre_norm else x
        return F.linear(x, self.cross.in_proj_weight[:width], self.cross.in_proj_bias[:width])

    def _add(self, x: Tensor, update: Tensor, place: int) -> Tensor:
        return x + update if self.pre_norm else self.norms[place](x + update)


def _attention(module: nn.Module) -> nn.MultiheadAttention:
    """PyTorch's attention inside SpeechBrain's, if it is one that can be stepped."""
    if not isinstance(module, MultiheadAttention):
        raise ValueError(
            f"attention of type {type(module).__name__} cannot be stepped; use attention_type regularMHA."
        )
    attention = module.att
    if attention.in_proj_weight is None or attention.in_proj_bias is None or attention.bias_k is not None:
        raise ValueError(
            "attention with kdim, vdim, extra keys or without biases cannot be stepped; leave these options out."
        )
    return attention


def decoder_stepper(model: nn.Module) -> TransformerStepper:
    """Steps the decoder of our :class:`~hmamba_asr.models.asr.ASRModel` or of SpeechBrain's
    ``TransformerASR``.

    Raises
    ------
    ValueError
        For any other model.
    """
    if isinstance(model, ASRModel):
        return TransformerStepper(stack=model.decoder, embed=model.embedding, positions=model.positions)
    if isinstance(model, TransformerASR) and hasattr(model, "decoder"):
        relative = model.attention_type in (
            "RelPosMHAXL",
            "RoPEMHA",
        )  # of the encoder: the decoder's are absolute
        positions = model.positional_encoding_decoder if relative else model.positional_encoding
        return TransformerStepper(stack=model.decoder, embed=model.custom_tgt_module, positions=positions)
    raise ValueError(
        f"the decoder of {type(model).__name__} cannot be stepped; JointBeamSearcher takes an ASRModel or SpeechBrain's "
        "TransformerASR, and SpeechBrain's S2STransformerBeamSearcher anything that has a decode method."
    )


class LanguageModelStepper:
    """Steps SpeechBrain's ``TransformerLM``: ``step`` gives the logits (B, hypotheses, vocabulary) of the
    next token.

    Raises
    ------
    ValueError
        If the model is no TransformerLM, has decoder layers or no absolute positions.
    """

    def __init__(self, model: nn.Module):
        if not isinstance(model, TransformerLM):
            raise ValueError(
                f"{type(model).__name__} cannot be stepped; the language model must be SpeechBrain's TransformerLM."
            )
        if (
            model.num_decoder_layers
            or not model.num_encoder_layers
            or not hasattr(model.positional_encoding, "pe")
        ):
            raise ValueError(
                "the language model needs encoder layers only (num_decoder_layers: 0) and absolute positions."
            )
        self.model = model
        self.stepper = TransformerStepper(
            stack=model.encoder, embed=self._embed, positions=model.positional_encoding, hidden_token=0
        )

    @property
    def max_steps(self) -> int:
        return self.stepper.max_steps

    def start(self) -> StepperState:
        return self.stepper.start()

    def step(self, state: StepperState, tokens: Tensor) -> Tensor:
        return self.model.output_proj(self.stepper.step(state, tokens)[0])

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.model.custom_src_module(tokens)
        return x if self.model.embedding_proj is None else self.model.embedding_proj(x)
