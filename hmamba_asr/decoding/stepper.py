"""SpeechBrain's Transformer decoder and Transformer LM, one token at a time.

The modules and their parameters stay SpeechBrain's; only the order of the computation is ours. A stepper
keeps what it computed for a prefix. Self-attention keys and values are in a
:class:`~hmamba_asr.decoding.key_value_pool.KeyValuePool`. Cross-attention keys and values are computed once
for each utterance, and all its hypotheses read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.transformer.Transformer import (
    PositionalEncoding,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.attention import MultiheadAttention, PositionalwiseFeedForward
from torch import Tensor, nn

from hmamba_asr.decoding.key_value_pool import KeyValuePool
from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.asr import ASRModel
from hmamba_asr.ops.attention import additive_mask, attend, attention_weights, split_heads


@dataclass
class StepperState:
    """What a stepper keeps of each prefix.

    Attributes
    ----------
    pool
        Self-attention keys and values.
    position
        (1,). Number of steps so far; None before the first.
    memory
        Cross-attention keys and values (B, heads, T, d_head) of each layer; None without encoder states.
    memory_mask
        (B, 1, 1, T). 0 on encoder states and -inf on padding; None without padding.
    """

    pool: KeyValuePool
    position: Tensor | None = None
    memory: list[tuple[Tensor, Tensor]] | None = None
    memory_mask: Tensor | None = None

    def prepare(self, hypotheses: int) -> None:
        """Do the host's work before a step with ``hypotheses`` hypotheses per utterance."""
        self.pool.reserve(hypotheses)

    def carried(self) -> list[tuple[object, str]]:
        """Name the tensors that a step replaces and the next one reads, each as owner and attribute."""
        return [(self, "position"), (self.pool, "ancestors"), (self.pool, "taken")]

    def reorder(self, parents: Tensor) -> None:
        """Make hypothesis i of each utterance continue ``parents[:, i]``; parents is (B, hypotheses)."""
        self.pool.reorder(parents)

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""
        self.pool.keep(rows)
        if self.memory is not None:
            self.memory = [(keys[rows], values[rows]) for keys, values in self.memory]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[rows]


class TransformerStepper:
    """One-token steps of a stack of SpeechBrain's Transformer layers in evaluation mode.

    The layers may be encoder or decoder layers, pre- or post-norm.

    Parameters
    ----------
    stack
        The layers and the norm after them.
    embed
        Maps tokens to vectors.
    positions
        The positional encoding.
    hidden_token
        A token that no other token attends to. SpeechBrain's LM takes token 0 for padding.

    Raises
    ------
    ValueError
        If a layer has attention with relative positions or extra keys, or a feed-forward part of
        convolutions.
    """

    def __init__(
        self,
        *,
        stack: TransformerDecoder | TransformerEncoder,
        embed: Callable[[Tensor], Tensor],
        positions: PositionalEncoding,
        hidden_token: int | None = None,
    ):
        self.layers = [_Layer(layer) for layer in stack.layers]
        self.norm, self.embed, self.positions, self.hidden_token = stack.norm, embed, positions, hidden_token

    @property
    def max_steps(self) -> int:
        """Number of tokens that the positional encoding covers."""
        return self.positions.pe.shape[1]

    def start(self, states: Tensor | None = None, lengths: Tensor | None = None) -> StepperState:
        """Return the state before the first token.

        Parameters
        ----------
        states
            Encoder states (B, T, d_model) for the cross-attention of decoder layers. Without them the output
            of the cross-attention is zero.
        lengths
            Number of states of each utterance (B,), 1 or more.
        """
        state = StepperState(KeyValuePool(len(self.layers)))
        if states is not None:
            assert lengths is not None
            states = states.to(self.norm.norm.weight.dtype)
            state.memory = [layer.project_memory(states) for layer in self.layers]
            if int(lengths.min()) < states.shape[1]:
                mask = valid_mask(lengths, states.shape[1])[:, None, None]
                state.memory_mask = additive_mask(mask, state.memory[0][0].dtype)
        return state

    def step(
        self, state: StepperState, tokens: Tensor, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Add one token to each hypothesis, after ``state.prepare``.

        Parameters
        ----------
        state
            The state after the tokens before; it is updated. The number of hypotheses may have changed since
            the last step, through ``state.reorder``.
        tokens
            Newest token of each hypothesis (B, hypotheses).
        with_attention
            Whether to return the attention.

        Returns
        -------
        hidden
            Output of the stack for the newest tokens (B, hypotheses, d_model).
        attention
            Cross-attention of the last layer (B, hypotheses, T), averaged over its heads; None if not asked
            for or without encoder states.
        """
        if self.hidden_token is None:
            visible = torch.ones_like(tokens, dtype=torch.bool)
        else:
            visible = tokens != self.hidden_token
        ancestors = state.pool.append(visible).unsqueeze(1)
        if state.position is None:
            state.position = torch.zeros(1, dtype=torch.long, device=tokens.device)
        x = self.embed(tokens) + self.positions.pe[0].index_select(0, state.position)
        mask: Tensor | None = None
        attention: Tensor | None = None
        for index, layer in enumerate(self.layers):
            query, keys_values = layer.project_self(x)
            if mask is None:
                mask = additive_mask(ancestors, query.dtype)
            keys, values = state.pool.write(index, keys_values, layer.attention.num_heads)
            x = layer.attend_self(x, query, keys, values, mask)
            if layer.is_decoder and state.memory is None:
                x = layer.skip_memory(x)
            elif layer.is_decoder and state.memory is not None:
                keys, values = state.memory[index]
                if with_attention and layer is self.layers[-1]:
                    attention = layer.memory_weights(x, keys, state.memory_mask)
                x = layer.attend_memory(x, keys, values, state.memory_mask)
            x = layer.feed_forward(x)
        state.position = state.position + 1
        return self.norm(x), attention


class _Layer:
    """One of SpeechBrain's layers, divided where keys and values are kept."""

    def __init__(self, layer: TransformerEncoderLayer | TransformerDecoderLayer):
        self.is_decoder = isinstance(layer, TransformerDecoderLayer)
        if not self.is_decoder and not isinstance(layer, TransformerEncoderLayer):
            raise ValueError(
                f"{type(layer).__name__} cannot be stepped; use SpeechBrain's Transformer layers."
            )
        self.attention = _inner_attention(layer.self_attn if self.is_decoder else layer.self_att)
        if self.is_decoder:
            self.cross = _inner_attention(layer.multihead_attn)
        if not isinstance(layer.pos_ffn, PositionalwiseFeedForward):
            raise ValueError(
                "a feed-forward part of convolutions cannot be stepped; use ffn_type regularFFN."
            )
        self.ffn, self.pre_norm = layer.pos_ffn.ffn, layer.normalize_before
        self.norms = [layer.norm1, layer.norm2, *([layer.norm3] if self.is_decoder else [])]

    def project_self(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project x (B, K, d_model) to queries (B, K, d_model) and keys with values (B, K, 2 d_model)."""
        x = self.norms[0](x) if self.pre_norm else x
        projected = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)
        query, keys_values = projected.tensor_split([x.shape[-1]], -1)
        return query, keys_values

    def attend_self(self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return self._add(x, self.attention.out_proj(attend(query, keys, values, mask)), 0)

    def project_memory(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Project encoder states (B, T, d_model) to cross-attention keys and values (B, heads, T, d_head)."""
        width, heads = self.cross.embed_dim, self.cross.num_heads
        weight, bias = self.cross.in_proj_weight[width:], self.cross.in_proj_bias[width:]
        keys, values = F.linear(states, weight, bias).chunk(2, -1)
        return split_heads(keys, heads).contiguous(), split_heads(values, heads).contiguous()

    def attend_memory(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return self._add(x, self.cross.out_proj(attend(self._memory_query(x), keys, values, mask)), 1)

    def skip_memory(self, x: Tensor) -> Tensor:
        """Do what :meth:`attend_memory` does if the output of the attention is zero."""
        return x if self.pre_norm else self.norms[1](x)

    def memory_weights(self, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Return the cross-attention weights (B, hypotheses, T), averaged over the heads."""
        return attention_weights(split_heads(self._memory_query(x), self.cross.num_heads), keys, mask).mean(1)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self._add(x, self.ffn(self.norms[-1](x) if self.pre_norm else x), len(self.norms) - 1)

    def _memory_query(self, x: Tensor) -> Tensor:
        width = self.cross.embed_dim
        x = self.norms[1](x) if self.pre_norm else x
        return F.linear(x, self.cross.in_proj_weight[:width], self.cross.in_proj_bias[:width])

    def _add(self, x: Tensor, update: Tensor, place: int) -> Tensor:
        """Add the output of a sublayer; post-norm layers normalise the sum with norm ``place``."""
        return x + update if self.pre_norm else self.norms[place](x + update)


def _inner_attention(module: nn.Module) -> nn.MultiheadAttention:
    """Return PyTorch's attention inside SpeechBrain's, or raise ValueError if it cannot be stepped."""
    if not isinstance(module, MultiheadAttention):
        raise ValueError(
            f"attention of type {type(module).__name__} cannot be stepped; use attention_type regularMHA."
        )
    attention = module.att
    if attention.in_proj_weight is None or attention.in_proj_bias is None or attention.bias_k is not None:
        raise ValueError(
            "attention with kdim, vdim, extra keys or without biases cannot be stepped; leave these options"
            " out."
        )
    return attention


def decoder_stepper(model: nn.Module) -> TransformerStepper:
    """Return a stepper of the decoder of an :class:`~hmamba_asr.models.asr.ASRModel`.

    SpeechBrain's ``TransformerASR`` is accepted too.

    Raises
    ------
    ValueError
        If the model is neither.
    """
    if isinstance(model, ASRModel):
        return TransformerStepper(stack=model.decoder, embed=model.embedding, positions=model.positions)
    if isinstance(model, TransformerASR) and hasattr(model, "decoder"):
        # These attention types are the encoder's; the decoder has absolute positions then.
        relative = model.attention_type in ("RelPosMHAXL", "RoPEMHA")
        positions = model.positional_encoding_decoder if relative else model.positional_encoding
        return TransformerStepper(stack=model.decoder, embed=model.custom_tgt_module, positions=positions)
    raise ValueError(
        f"the decoder of {type(model).__name__} cannot be stepped; JointBeamSearcher takes an ASRModel or"
        " SpeechBrain's TransformerASR, and SpeechBrain's S2STransformerBeamSearcher any model with a decode"
        " method."
    )


class LanguageModelStepper:
    """One-token steps of SpeechBrain's ``TransformerLM``.

    Raises
    ------
    ValueError
        If the model is no TransformerLM, has decoder layers or lacks absolute positions.
    """

    def __init__(self, model: TransformerLM):
        if not isinstance(model, TransformerLM):
            raise ValueError(
                f"{type(model).__name__} cannot be stepped; the language model must be SpeechBrain's"
                " TransformerLM."
            )
        absolute = hasattr(model.positional_encoding, "pe")
        if model.num_decoder_layers or not model.num_encoder_layers or not absolute:
            raise ValueError(
                "the language model needs encoder layers only (num_decoder_layers: 0) and absolute positions."
            )
        self.model = model
        self.stepper = TransformerStepper(
            stack=model.encoder, embed=self._embed, positions=model.positional_encoding, hidden_token=0
        )

    @property
    def max_steps(self) -> int:
        """Number of tokens that the positional encoding covers."""
        return self.stepper.max_steps

    def start(self) -> StepperState:
        """Return the state before the first token."""
        return self.stepper.start()

    def step(self, state: StepperState, tokens: Tensor) -> Tensor:
        """Add one token to each hypothesis; return the logits of the next one (B, hypotheses, vocab)."""
        return self.model.output_proj(self.stepper.step(state, tokens)[0])

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.model.custom_src_module(tokens)
        return x if self.model.embedding_proj is None else self.model.embedding_proj(x)
