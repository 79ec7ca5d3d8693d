"""The contract of encoders, held against all of them: independence of padding and batch mates,
``min_states``, the time axis, gradients, reduced precision. And what flat encoders owe beside it."""

import pytest
import torch
from encoders import D_MODEL, ENCODERS, FLAT, LENGTHS, conmamba, encode, made, padded

from hmamba_asr.models.conformer import ConformerEncoder
from hmamba_asr.models.conmamba import ConMambaEncoder


@pytest.fixture(params=list(ENCODERS))
def encoder(request):
    return made(request.param)


@pytest.fixture(params=list(FLAT))
def flat(request):
    return made(request.param)


@pytest.mark.parametrize("min_states", [None, torch.tensor([20, 5, 1, 9])], ids=["free", "with a minimum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_utterances_alone(encoder, dtype, min_states):
    if dtype == torch.float64 and isinstance(encoder, ConformerEncoder):
        pytest.skip("SpeechBrain's relative attention is float32 inside")
    if dtype == torch.float32 and encoder.chunkers:
        pytest.skip("rounding may move a boundary")
    encoder, x, tolerance = encoder.to(dtype), padded(dtype), 1e-5 if dtype == torch.float32 else 1e-10
    batch = encode(encoder, x, LENGTHS, min_states)
    for row, n in enumerate(LENGTHS.tolist()):
        least = None if min_states is None else min_states[row : row + 1]
        alone = encode(encoder, x[row : row + 1, :n], torch.tensor([n]), least)
        end = int(alone.lengths)
        assert int(batch.lengths[row]) == end
        torch.testing.assert_close(batch.states[row, :end], alone.states[0, :end], rtol=0, atol=tolerance)
        assert not batch.states[row, end:].any()
        assert torch.equal(batch.time_axis.edges(row, 0.01), alone.time_axis.edges(0, 0.01))
        for together, own in zip(batch.stages, alone.stages, strict=True):
            states, chunks = own.mask.shape[1], int(own.num_chunks)
            assert torch.equal(together.mask[row, :states], own.mask[0])
            assert not together.mask[row, states:].any()
            assert torch.equal(together.starts[row, :chunks], own.starts[0, :chunks])
            for name in ("kept_fraction", "chosen_fraction", "mean_prob"):
                torch.testing.assert_close(getattr(together, name)[row], getattr(own, name)[0])


@pytest.mark.parametrize("fill", [float("nan"), 1e4])
def test_padding_is_not_read(encoder, fill):
    if isinstance(encoder, ConformerEncoder) and fill != fill:
        pytest.skip("SpeechBrain's attention multiplies the padding by zero; the front-end's padding is zero")
    expected, found = (encode(encoder, padded(fill=value), LENGTHS) for value in (None, fill))
    assert torch.equal(found.lengths, expected.lengths)
    torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-5)


def test_min_states_is_taken_and_kept_to(encoder):
    """A flat encoder ignores it; one that shortens keeps that many states, or one for each frame."""
    x, wanted = padded(), torch.tensor([30, 3, 2, 1])
    free, held = encode(encoder, x, LENGTHS), encode(encoder, x, LENGTHS, wanted)
    if not encoder.shortens:
        assert torch.equal(free.states, held.states) and torch.equal(held.lengths, LENGTHS)
    else:
        assert torch.equal(held.lengths, torch.maximum(free.lengths, torch.minimum(wanted, LENGTHS)))
        assert (held.lengths > free.lengths).any()
    assert encoder.shortens == bool((free.lengths < LENGTHS).any())


def test_every_state_has_its_time(encoder):
    """States begin one after the other, the first with the utterance, and end with it."""
    out = encode(encoder, padded(), LENGTHS)
    for row, n in enumerate(LENGTHS.tolist()):
        edges = out.time_axis.edges(row, 1.0)
        assert len(edges) == int(out.lengths[row]) + 1 and (edges.diff() > 0).all()
        assert edges[0] == 0 and edges[-1] == n
        if not encoder.shortens:
            assert edges.tolist() == list(range(n + 1))
        elif out.stages[-1].num_chunks[row] == out.lengths[row]:
            assert edges[:-1].tolist() == out.stages[-1].starts[row, : out.lengths[row]].tolist()


def test_an_encoder_says_what_its_stages_are(encoder):
    out = encode(encoder, padded(), LENGTHS)
    assert [stage.kind for stage in out.stages] == [chunker.kind for chunker in encoder.chunkers]
    assert [stage.target_ratio for stage in out.stages] == [c.target_ratio for c in encoder.chunkers]
    assert encoder.reads_ctc == any(chunker.reads_ctc for chunker in encoder.chunkers)


def test_gradients_of_a_batch_are_the_sum_over_utterances(flat):
    # The decay rates are float32 even in a float64 model, and so is the sum of their gradients.
    dtype, tolerance = (torch.float32, 1e-5) if isinstance(flat, ConformerEncoder) else (torch.float64, 1e-7)
    encoder, x = flat.to(dtype), padded(dtype)

    def gradients(inputs, lengths):
        encoder.zero_grad()
        states = encoder(inputs, lengths).states
        states.mul(torch.linspace(-1, 1, D_MODEL, dtype=dtype)).pow(2).sum().backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in encoder.named_parameters()
            if parameter.grad is not None
        }

    batch = gradients(x, LENGTHS)
    alone = [gradients(x[i : i + 1, :n], LENGTHS[i : i + 1]) for i, n in enumerate(LENGTHS.tolist())]
    for name, grad in batch.items():
        together = sum(each[name] for each in alone)
        torch.testing.assert_close(
            grad, together, rtol=0, atol=tolerance * max(1.0, float(together.abs().max())), msg=name
        )


def test_every_parameter_gets_a_gradient(encoder):
    out = encode(encoder, padded(), LENGTHS)
    assert all(stage.num_chunks.max() > 1 for stage in out.stages)  # one chunk alone has no decay to learn
    (out.states.pow(3).sum() + sum(stage.mean_prob.sum() for stage in out.stages)).backward()
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # Keys' biases move all of a query's scores alike, so a softmax hides them.
    assert without == [] or isinstance(encoder, ConformerEncoder) and all("bias" in name for name in without)


@pytest.mark.parametrize("frame", [1, 13, 30])
def test_only_the_causal_encoder_reads_no_later_frame(flat, frame):
    x, lengths = padded()[:1, :31], torch.tensor([31])
    changed = x.clone()
    changed[:, frame:] += torch.randn(31 - frame, D_MODEL)
    before, after = flat(x, lengths).states, flat(changed, lengths).states
    causal = isinstance(flat, ConMambaEncoder) and flat.blocks[0].mamba.directions == ("forward",)
    assert torch.equal(before[:, :frame], after[:, :frame]) == causal
    assert (before[:, frame:] - after[:, frame:]).abs().max() > 1e-3


def test_bf16_autocast_stays_near_float32(flat):
    """2^-8 = 0.4% for each rounding; 10% of the output's scale after two blocks."""
    exact = flat(padded(), LENGTHS).states
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = flat(padded(), LENGTHS).states
    assert rough.isfinite().all()
    assert 0 < (rough - exact).abs().max() / exact.abs().max() < 0.1


def test_an_encoder_remembers_no_batch(encoder):
    """The same module, called with another batch in between, answers as before."""
    x = padded()
    first = encode(encoder, x, LENGTHS).states
    encode(encoder, x[:2, :7], torch.tensor([7, 3]))
    assert torch.equal(encode(encoder, x, LENGTHS).states, first)


def test_the_intermediate_output_is_that_of_the_first_blocks():
    deep, x = conmamba(intermediate_layer=1).eval(), padded()
    first = conmamba().eval()
    first.load_state_dict(deep.state_dict())
    first.blocks = first.blocks[:1]
    output, expected = deep(x, LENGTHS), first(x, LENGTHS)
    assert torch.equal(output.intermediate.states, expected.states)
    assert torch.equal(output.intermediate.lengths, LENGTHS)
    assert expected.intermediate is None and not torch.equal(output.states, expected.states)


def test_reference_and_chunked_backends_agree():
    outputs = []
    for backend in ("reference", "chunked"):
        torch.manual_seed(0)
        outputs.append(conmamba(scan_backend=backend).double().eval()(padded(torch.float64), LENGTHS).states)
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layer", [0, 2, 8])
def test_an_intermediate_layer_lies_inside(layer):
    with pytest.raises(ValueError, match="intermediate_layer must lie between 0 and num_layers = 2"):
        conmamba(intermediate_layer=layer)


def test_errors():
    with pytest.raises(ValueError, match="kernel_size must be odd, not 8"):
        ConMambaEncoder(num_layers=1, d_model=8, d_ffn=8, kernel_size=8, dropout=0.0)
    with pytest.raises(ValueError, match="scan_backend 'fast' is unknown"):
        conmamba(scan_backend="fast")
