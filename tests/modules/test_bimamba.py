"""Bi-Mamba: independence of padding and batch mates, directions, scan backends, initialisation, reduced
precision."""

import pytest
import torch

from hmamba_asr.modules.bimamba import BiMamba

LENGTHS = torch.tensor([23, 1, 2, 9, 4])
D_MODEL = 16


def mixer(causal=False, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return BiMamba(d_model=D_MODEL, d_state=4, causal=causal, **options).to(dtype)


def padded(dtype=torch.float32, extra=5):
    torch.manual_seed(1)
    return torch.randn(len(LENGTHS), int(LENGTHS.max()) + extra, D_MODEL, dtype=dtype)  # noise past the ends


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_batch_equals_utterances_alone(backend, causal, dtype, tolerance):
    model, x = mixer(causal, dtype, scan_backend=backend), padded(dtype)
    x[3, int(LENGTHS[3]) :] = float("nan")
    batch = model(x, LENGTHS)
    for row, inputs, n in zip(batch, x, LENGTHS.tolist(), strict=True):
        alone = model(inputs[None, :n], torch.tensor([n]))[0]
        torch.testing.assert_close(row[:n], alone, rtol=0, atol=tolerance)


def test_padding_comes_out_as_zeros():
    x, model = padded(), mixer()
    for row, n in zip(model(x, LENGTHS), LENGTHS.tolist(), strict=True):
        assert not row[n:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_a_batch_are_the_sum_over_utterances(causal):
    model, x = mixer(causal, torch.float64), padded(torch.float64)
    batch = gradients(model, x, LENGTHS)
    alone = [gradients(model, x[i : i + 1, :n], LENGTHS[i : i + 1]) for i, n in enumerate(LENGTHS.tolist())]
    for name, grad in batch.items():
        torch.testing.assert_close(grad, sum(each[name] for each in alone), rtol=1e-9, atol=1e-10, msg=name)


def gradients(model, x, lengths):
    """Gradients of a loss over the valid frames only."""
    model.zero_grad()
    y = model(x, lengths)
    weight = torch.linspace(-1, 1, D_MODEL, dtype=y.dtype)
    sum((row[:n] * weight).pow(2).sum() for row, n in zip(y, lengths.tolist(), strict=True)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("causal", [False, True])
def test_backends_agree_on_output_and_every_gradient(causal):
    x = padded(torch.float64)
    reference, chunked = (
        mixer(causal, torch.float64, scan_backend=name) for name in ("reference", "chunked")
    )
    torch.testing.assert_close(chunked(x, LENGTHS), reference(x, LENGTHS), rtol=1e-9, atol=1e-10)
    expected = gradients(reference, x, LENGTHS)
    for name, grad in gradients(chunked, x, LENGTHS).items():
        per_direction = grad if grad.shape[0] == len(chunked.directions) else grad[None]
        assert all(part.any() for part in per_direction), f"{name} gets no gradient"
        torch.testing.assert_close(grad, expected[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("frame", [1, 6, 22])
def test_causal_reads_no_later_frame_and_bidirectional_does(frame):
    x = padded()[:1, :23]
    changed, lengths = x.clone(), torch.tensor([23])
    changed[:, frame:] += 1.0
    causal, both = mixer(causal=True), mixer(causal=False)
    assert torch.equal(causal(x, lengths)[:, :frame], causal(changed, lengths)[:, :frame])
    assert (causal(x, lengths)[:, frame] - causal(changed, lengths)[:, frame]).abs().max() > 1e-4
    assert (both(x, lengths)[:, :frame] - both(changed, lengths)[:, :frame]).abs().max() > 1e-5


def test_bidirectional_reads_earlier_and_later_frames_everywhere():
    """Every frame depends on the first and on the last one (the backward scan is no second forward scan)."""
    x = padded(torch.float64)[:1, :9].requires_grad_()
    y = mixer(dtype=torch.float64)(x, torch.tensor([9]))
    for source_to_target in ((0, 8), (8, 0)):
        source, target = source_to_target
        (grad,) = torch.autograd.grad(y[0, target].sum(), x, retain_graph=True)
        assert grad[0, source].abs().max() > 0


def test_directions_have_parameters_of_their_own():
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    d_inner, d_state, d_conv, rank = 2 * D_MODEL, 4, 4, 1
    shared = D_MODEL * 2 * d_inner + d_inner * D_MODEL
    per_direction = (
        d_inner * (d_conv + 1)
        + d_inner * (rank + 2 * d_state)
        + rank * d_inner
        + d_inner
        + d_inner * d_state
        + d_inner
    )
    assert count(mixer(causal=True)) == shared + per_direction
    assert count(mixer(causal=False)) == shared + 2 * per_direction

    # Each direction's parameters act on their own: turning the backward ones off leaves half the forward
    # mixer.
    both, forward = mixer(dtype=torch.float64), mixer(causal=True, dtype=torch.float64)
    with torch.no_grad():
        for name in ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D"):
            getattr(forward, name).copy_(getattr(both, name)[:1])
            getattr(both, name)[1:] = 0.0  # silu(0) = 0: nothing enters the backward scan
        forward.in_proj.weight.copy_(both.in_proj.weight)
        forward.out_proj.weight.copy_(both.out_proj.weight)
    x = padded(torch.float64)
    torch.testing.assert_close(2 * both(x, LENGTHS), forward(x, LENGTHS))


def test_weight_decay_flags():
    flagged = {
        name for name, parameter in mixer().named_parameters() if getattr(parameter, "no_weight_decay", False)
    }
    assert flagged == {"conv_bias", "dt_bias", "A_log", "D"}


def test_initial_step_sizes_and_decays():
    model = mixer(dt_min=1e-3, dt_max=1e-1)
    steps = torch.nn.functional.softplus(model.dt_bias)
    assert steps.min() >= 1e-3 * 0.999 and steps.max() <= 1e-1 * 1.001
    torch.testing.assert_close(model.A_log.exp()[1, 3], torch.arange(1.0, 5.0))


def test_bf16_autocast_stays_near_float32():
    """bf16 keeps 8 bits: 2^-8 = 0.4% for each rounding; 3% of the output's scale after the layer's few
    products."""
    model, x = mixer(), padded()
    exact = model(x, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, LENGTHS)
    assert rough.dtype == torch.bfloat16 and rough.isfinite().all()
    error = (rough.float() - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.03


def test_unknown_scan_backend():
    with pytest.raises(
        ValueError, match="scan_backend 'triton9' is unknown; choose one of auto, reference, chunked"
    ):
        mixer(scan_backend="triton9")
