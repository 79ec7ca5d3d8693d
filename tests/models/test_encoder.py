"""The encoders behind one contract: independence of padding and batch mates, causality, reduced precision."""

import pytest
import torch

from hmamba_asr.models.conformer import ConformerControl
from hmamba_asr.models.conmamba import ConMambaEncoder

LENGTHS = torch.tensor([31, 1, 2, 12])
D_MODEL = 16


def conmamba(causal=False, **options):
    return ConMambaEncoder(
        num_layers=2,
        d_model=D_MODEL,
        d_ffn=32,
        kernel_size=7,
        dropout=0.1,
        causal=causal,
        d_state=4,
        **options,
    )


def conformer():
    return ConformerControl(num_layers=2, d_model=D_MODEL, d_ffn=32, nhead=2, kernel_size=7, dropout=0.1)


def causal_conmamba():
    return conmamba(causal=True)


@pytest.fixture(params=[conmamba, causal_conmamba, conformer])
def encoder(request):
    """An encoder whose biases are not zero, as after training: it is through them that padding leaks."""
    torch.manual_seed(0)
    model = request.param().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5)
    return model


def padded(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(len(LENGTHS), 36, D_MODEL, dtype=dtype)  # noise past the ends


def test_the_intermediate_output_is_that_of_the_first_blocks():
    deep, x = conmamba(intermediate_layer=1).eval(), padded()
    first = conmamba().eval()
    first.load_state_dict(deep.state_dict())
    first.blocks = first.blocks[:1]
    output, expected = deep(x, LENGTHS), first(x, LENGTHS)
    assert torch.equal(output.intermediate.states, expected.states) and torch.equal(
        output.intermediate.lengths, LENGTHS
    )
    assert expected.intermediate is None and not torch.equal(output.states, expected.states)


@pytest.mark.parametrize("layer", [0, 2, 8])
def test_an_intermediate_layer_lies_inside(layer):
    with pytest.raises(ValueError, match="intermediate_layer must lie between 0 and num_layers = 2"):
        conmamba(intermediate_layer=layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_utterances_alone(encoder, dtype):
    if dtype == torch.float64 and isinstance(encoder, ConformerControl):
        pytest.skip("SpeechBrain's relative attention is float32 inside")
    encoder, x, tolerance = encoder.to(dtype), padded(dtype), 1e-5 if dtype == torch.float32 else 1e-10
    batch = encoder(x, LENGTHS)
    assert torch.equal(batch.lengths, LENGTHS) and batch.stages == ()
    for row, inputs, n in zip(batch.states, x, LENGTHS.tolist(), strict=True):
        alone = encoder(inputs[None, :n], torch.tensor([n])).states[0]
        torch.testing.assert_close(row[:n], alone, rtol=0, atol=tolerance)
        assert not row[n:].any()


def test_gradients_of_a_batch_are_the_sum_over_utterances(encoder):
    # The decay rates are float32 even in a float64 model, and so is the sum of their gradients.
    dtype, tolerance = (
        (torch.float32, 1e-5) if isinstance(encoder, ConformerControl) else (torch.float64, 1e-7)
    )
    encoder, x = encoder.to(dtype), padded(dtype)

    def gradients(inputs, lengths):
        encoder.zero_grad()
        encoder(inputs, lengths).states.mul(torch.linspace(-1, 1, D_MODEL, dtype=dtype)).pow(
            2
        ).sum().backward()
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
    encoder(padded(), LENGTHS).states.pow(3).sum().backward()
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # Keys' biases move all of a query's scores alike, so a softmax hides them.
    assert not [name for name in without if "bias" not in name]


@pytest.mark.parametrize("frame", [1, 13, 30])
def test_only_the_causal_encoder_reads_no_later_frame(encoder, frame):
    x, lengths = padded()[:1, :31], torch.tensor([31])
    changed = x.clone()
    changed[:, frame:] += torch.randn(31 - frame, D_MODEL)
    before, after = encoder(x, lengths).states, encoder(changed, lengths).states
    causal = isinstance(encoder, ConMambaEncoder) and encoder.blocks[0].mamba.directions == ("forward",)
    assert torch.equal(before[:, :frame], after[:, :frame]) == causal
    assert (before[:, frame:] - after[:, frame:]).abs().max() > 1e-3


def test_reference_and_chunked_backends_agree():
    outputs = []
    for backend in ("reference", "chunked"):
        torch.manual_seed(0)
        outputs.append(conmamba(scan_backend=backend).double().eval()(padded(torch.float64), LENGTHS).states)
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)


def test_bf16_autocast_stays_near_float32(encoder):
    """2^-8 = 0.4% for each rounding; 10% of the output's scale after two blocks."""
    exact = encoder(padded(), LENGTHS).states
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(padded(), LENGTHS).states
    assert rough.isfinite().all()
    assert 0 < (rough - exact).abs().max() / exact.abs().max() < 0.1


def test_conformer_hook_remembers_no_batch(encoder):
    """The same module, called with another batch in between, answers as before."""
    x = padded()
    first = encoder(x, LENGTHS).states
    encoder(x[:2, :7], torch.tensor([7, 3]))
    assert torch.equal(encoder(x, LENGTHS).states, first)


def test_errors():
    with pytest.raises(ValueError, match="kernel_size must be odd, not 8"):
        ConMambaEncoder(num_layers=1, d_model=8, d_ffn=8, kernel_size=8, dropout=0.0)
    with pytest.raises(ValueError, match="scan_backend 'fast' is unknown"):
        conmamba(scan_backend="fast")
