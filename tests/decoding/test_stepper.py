"""Steps of SpeechBrain's Transformers give what the modules give for the whole prefix."""

import pytest
import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch import nn

from hmamba_asr.decoding import stepper as incremental
from hmamba_asr.decoding.key_value_pool import KeyValuePool
from hmamba_asr.decoding.stepper import LanguageModelStepper, decoder_stepper
from hmamba_asr.ops.attention import attend, kernel_takes
from hmamba_asr.ops.dispatch import unavailable_reason

VOCAB, D = 11, 16
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1}


def transformer_asr(*, normalize_before, dtype=torch.float64, attention_type="regularMHA"):
    torch.manual_seed(0)
    model = TransformerASR(
        VOCAB,
        8,
        d_model=D,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=3,
        d_ffn=24,
        dropout=0.1,
        activation=nn.GELU,
        normalize_before=normalize_before,
        attention_type=attention_type,
        encoder_module="transformer",
        max_length=40,
    )
    return _perturbed(model, dtype)


def language_model(*, normalize_before=False, dtype=torch.float64, **options):
    torch.manual_seed(1)
    model = TransformerLM(
        VOCAB,
        d_model=D,
        nhead=2,
        num_encoder_layers=3,
        d_ffn=24,
        activation=nn.GELU,
        normalize_before=normalize_before,
        max_length=40,
        **options,
    )
    return _perturbed(model, dtype)


def _perturbed(model, dtype):
    """Move biases and norms away from zero and one, so that leaving one out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def future(tokens):
    """Make a boolean mask; SpeechBrain's is float32 whatever the model's precision."""
    steps = torch.arange(tokens.shape[1])
    return steps > steps.unsqueeze(1)


def whole_decode(model, tokens, states, lengths):
    """Return hidden state and attention of the last token of prefixes (N, U)."""
    embedded = model.custom_tgt_module(tokens)
    relative = model.attention_type == "RelPosMHAXL"
    positions = model.positional_encoding_decoder if relative else model.positional_encoding
    hidden, _, attentions = model.decoder(
        embedded + positions(embedded),
        states,
        tgt_mask=future(tokens),
        memory_key_padding_mask=torch.arange(states.shape[1]) >= lengths.unsqueeze(1),
    )
    return hidden[:, -1], attentions[-1][:, -1]


def whole_lm(model, tokens):
    """Return the logits after the last token of prefixes (N, U), by ``TransformerLM.forward``."""
    embedded = model.custom_src_module(tokens)
    if model.embedding_proj is not None:
        embedded = model.embedding_proj(embedded)
    hidden, _ = model.encoder(
        embedded + model.positional_encoding(embedded),
        src_mask=future(tokens),
        src_key_padding_mask=tokens == 0,
    )
    return model.output_proj(hidden)[:, -1]


def walk(step, state, *, batch, steps, beam, generator):
    """Step along random hypotheses and reorderings; yield each step's result and the whole prefixes."""
    tokens = torch.ones(batch, 1, dtype=torch.long)
    prefixes = tokens.unsqueeze(-1)
    for _ in range(steps):
        state.prepare(tokens.shape[1])
        yield step(tokens), prefixes
        parents = torch.randint(tokens.shape[1], (batch, beam), generator=generator)
        state.reorder(parents)
        tokens = torch.randint(VOCAB, (batch, beam), generator=generator)
        history = prefixes.gather(1, parents.unsqueeze(-1).expand(-1, -1, prefixes.shape[-1]))
        prefixes = torch.cat([history, tokens.unsqueeze(-1)], -1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize(
    "attention_type", ["regularMHA", "RelPosMHAXL"]
)  # of the encoder: the decoder has positions of its own
def test_decoder_steps_are_the_whole_prefixes(normalize_before, dtype, attention_type):
    model = transformer_asr(normalize_before=normalize_before, dtype=dtype, attention_type=attention_type)
    lengths = torch.tensor([9, 4, 1])
    states = torch.randn(3, 9, D, dtype=dtype)
    stepper, generator = decoder_stepper(model), torch.Generator().manual_seed(2)
    with torch.no_grad():
        state = stepper.start(states, lengths)
        step = lambda tokens: stepper.step(state, tokens, with_attention=True)  # noqa: E731
        for (hidden, attention), prefixes in walk(
            step, state, batch=3, steps=30, beam=4, generator=generator
        ):
            beam = prefixes.shape[1]
            expected, weights = whole_decode(
                model,
                prefixes.flatten(0, 1),
                states.repeat_interleave(beam, 0),
                lengths.repeat_interleave(beam),
            )
            torch.testing.assert_close(hidden.flatten(0, 1), expected, rtol=0, atol=TOLERANCE[dtype])
            torch.testing.assert_close(
                attention.flatten(0, 1), weights.to(attention.dtype), rtol=0, atol=TOLERANCE[dtype]
            )


@pytest.mark.skipif(
    unavailable_reason(torch.device("cpu")) is not None, reason="Triton cannot run on a CPU here"
)
@pytest.mark.parametrize(("whole", "lengths"), [(True, [9, 4, 1]), (False, [9, 9, 9])])
def test_attention_by_the_kernel_gives_the_same(whole, lengths, monkeypatch):
    """The kernel reads views: queries beside keys, a pool's keys, masks or none."""

    def by_kernel(query, keys, values, mask):
        return attend(
            query, keys, values, mask, backend="triton" if kernel_takes(query, keys, mask) else "auto"
        )

    monkeypatch.setattr(incremental, "attend", by_kernel)
    monkeypatch.setattr(KeyValuePool.__init__, "__defaults__", (8, whole))  # the pool moves and grows
    model, language = (
        transformer_asr(normalize_before=True, dtype=torch.float32),
        language_model(dtype=torch.float32),
    )
    lengths, states, generator = torch.tensor(lengths), torch.randn(3, 9, D), torch.Generator().manual_seed(2)
    stepper, lm = decoder_stepper(model), LanguageModelStepper(language)
    options = {"batch": 3, "steps": 6, "beam": 4, "generator": generator}
    with torch.no_grad():
        state, lm_state = stepper.start(states, lengths), lm.start()
        for (hidden, _), prefixes in walk(lambda tokens: stepper.step(state, tokens), state, **options):
            times = prefixes.shape[1]
            expected, _ = whole_decode(
                model,
                prefixes.flatten(0, 1),
                states.repeat_interleave(times, 0),
                lengths.repeat_interleave(times),
            )
            torch.testing.assert_close(hidden.flatten(0, 1), expected, rtol=0, atol=1e-5)
        for logits, prefixes in walk(lambda tokens: lm.step(lm_state, tokens), lm_state, **options):
            torch.testing.assert_close(
                logits.flatten(0, 1), whole_lm(language, prefixes.flatten(0, 1)), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("normalize_before", [True, False])
def test_decoder_steps_without_states_are_those_of_zero_cross_attention(normalize_before, monkeypatch):
    """The reference is the whole prefix, with zero cross-attention in every layer."""
    model = transformer_asr(normalize_before=normalize_before)
    stepper, generator = decoder_stepper(model), torch.Generator().manual_seed(2)
    for layer in model.decoder.layers:

        def zeros(*args, attend=layer.multihead_attn.forward, **options):
            output, weights = attend(*args, **options)
            return torch.zeros_like(output), weights

        monkeypatch.setattr(layer.multihead_attn, "forward", zeros)
    with torch.no_grad():
        state = stepper.start()
        step = lambda tokens: stepper.step(state, tokens, with_attention=True)  # noqa: E731
        for (hidden, attention), prefixes in walk(
            step, state, batch=2, steps=20, beam=3, generator=generator
        ):
            count = prefixes.shape[0] * prefixes.shape[1]
            states, lengths = torch.randn(count, 5, D, dtype=torch.float64), torch.full((count,), 5)
            expected, _ = whole_decode(model, prefixes.flatten(0, 1), states, lengths)
            torch.testing.assert_close(hidden.flatten(0, 1), expected, rtol=0, atol=1e-9)
            assert attention is None


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("d_embedding", [None, 6])
def test_language_model_steps_are_the_whole_prefixes(normalize_before, dtype, d_embedding):
    """The random tokens include 0, which the model takes for padding."""
    model = language_model(normalize_before=normalize_before, dtype=dtype, d_embedding=d_embedding)
    stepper, generator = LanguageModelStepper(model), torch.Generator().manual_seed(3)
    state, zeros = stepper.start(), 0
    with torch.no_grad():
        step = lambda tokens: stepper.step(state, tokens)  # noqa: E731
        for logits, prefixes in walk(step, state, batch=2, steps=30, beam=3, generator=generator):
            torch.testing.assert_close(
                logits.flatten(0, 1), whole_lm(model, prefixes.flatten(0, 1)), rtol=0, atol=TOLERANCE[dtype]
            )
            zeros += int((prefixes == 0).sum())
    assert zeros > 10


def test_the_references_here_are_speechbrains_own_calls():
    model = transformer_asr(normalize_before=True, dtype=torch.float32)
    states, lengths = torch.randn(2, 6, D), torch.tensor([6, 3])
    tokens = torch.randint(1, VOCAB, (2, 5))
    with torch.no_grad():
        hidden, attention = model.decode(tokens, states, lengths)
        for expected, actual in zip(
            (hidden, attention), whole_decode(model, tokens, states, lengths), strict=True
        ):
            torch.testing.assert_close(actual, expected[:, -1], rtol=0, atol=1e-6)
        lm = language_model(dtype=torch.float32)
        torch.testing.assert_close(whole_lm(lm, tokens), lm(tokens)[:, -1], rtol=0, atol=1e-6)


def test_utterances_can_leave_between_steps():
    model = transformer_asr(normalize_before=True)
    states, lengths = torch.randn(3, 7, D, dtype=torch.float64), torch.tensor([7, 5, 2])
    stepper, tokens = decoder_stepper(model), torch.tensor([[1, 4], [1, 5], [1, 6]])
    rows = torch.tensor([0, 2])
    with torch.no_grad():
        both = stepper.start(states, lengths)
        both.prepare(2)
        stepper.step(both, tokens)
        both.keep(rows)
        both.prepare(2)
        kept, _ = stepper.step(both, tokens[rows] + 1)
        alone = stepper.start(states[rows], lengths[rows])
        alone.prepare(2)
        stepper.step(alone, tokens[rows])
        alone.prepare(2)
        expected, _ = stepper.step(alone, tokens[rows] + 1)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("single_line", [True, False])
def test_the_pool_keeps_what_is_attended_to_and_little_else(single_line, whole):
    """With common ancestors the pool holds one line of tokens. Separate lines make it grow."""
    pool, beam, steps = KeyValuePool(num_layers=1, first_capacity=64, whole=whole), 8, 200
    paths = torch.zeros(1, beam, 0)
    for step in range(steps):
        pool.reserve(beam)
        ancestors = pool.append(torch.ones(1, beam, dtype=torch.bool))
        values = (step * beam + torch.arange(beam)).view(1, beam, 1).double()
        keys, _ = pool.write(0, torch.cat([values, -values], -1), heads=1)
        paths = torch.cat([paths, values], -1)
        assert ancestors.shape[-1] == keys.shape[2] == (pool.capacity if whole else pool.slots)
        for found, path in zip(ancestors[0], paths[0], strict=True):
            assert keys[0, 0, found, 0].tolist() == path.tolist()  # compaction keeps the order
        parents = torch.full((1, beam), 3) if single_line else torch.arange(beam).view(1, beam)
        pool.reorder(parents)
        paths = paths[:, parents[0]]
    assert pool.capacity <= (512 if single_line else 2 * steps * beam)


def test_a_beam_wider_than_the_pool_makes_it_grow():
    pool = KeyValuePool(num_layers=1, first_capacity=2)
    for step, beam in enumerate((1, 50, 3)):
        pool.reserve(beam)
        ancestors = pool.append(torch.ones(1, beam, dtype=torch.bool))
        keys, _ = pool.write(0, torch.full((1, beam, 2), float(step)), heads=1)
        pool.reorder(torch.zeros(1, (50, 3, 3)[step], dtype=torch.long))
    assert keys[0, 0, ancestors[0, 0], 0].tolist() == [0.0, 1.0, 2.0]


def test_what_cannot_be_stepped_is_named():
    with pytest.raises(ValueError, match="decoder of Linear cannot be stepped"):
        decoder_stepper(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="must be SpeechBrain's TransformerLM"):
        LanguageModelStepper(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="absolute positions"):
        LanguageModelStepper(
            TransformerLM(VOCAB, d_model=D, nhead=2, num_encoder_layers=1, attention_type="RelPosMHAXL")
        )
    with pytest.raises(ValueError, match="attention of type HyperMixing"):
        LanguageModelStepper(
            TransformerLM(VOCAB, d_model=D, nhead=2, num_encoder_layers=1, attention_type="hypermixing")
        )
