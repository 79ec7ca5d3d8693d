"""Every backend against the time loop, outputs and every gradient; the time loop against finite
differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmamba_asr.ops.selective_scan import chunked, mamba_ssm, reference, scan_directions, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def random_inputs(batch, length, channels, n, *, groups=2, dtype=torch.float64, seed=0, requires_grad=True):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    tensors = [
        randn(groups, batch, length, channels),
        randn(groups, batch, length, channels),
        -randn(groups, channels, n).exp(),
        randn(groups, batch, length, n),
        randn(groups, batch, length, n),
        randn(groups, channels),
        randn(groups, channels),
    ]
    return [t.requires_grad_(requires_grad) for t in tensors]


def outputs_and_gradients(inputs, lengths, backend, directions=("forward", "reverse")):
    y = scan_directions(*inputs, lengths=lengths, directions=directions, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype).to(y.device)
    return y, torch.autograd.grad((y * weights).sum(), inputs, materialize_grads=True)


def assert_same(inputs, lengths, *, tolerance, directions=("forward", "reverse"), backend="chunked"):
    expected, expected_grads = outputs_and_gradients(inputs, lengths, "reference", directions)
    actual, actual_grads = outputs_and_gradients(inputs, lengths, backend, directions)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    for name, a, e in zip(NAMES, actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(
            a, e, rtol=tolerance, atol=tolerance * e.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def chunks_of_eight(monkeypatch):
    monkeypatch.setattr(chunked, "_chunk_length", lambda elements, device: 8)


@pytest.mark.parametrize("length", [1, 3, 7, 8, 9, 16, 17, 63])
def test_chunked_is_the_time_loop(length, chunks_of_eight):
    lengths = torch.tensor([length, max(1, length - 2), 1])
    assert_same(random_inputs(3, length, 5, 4), lengths, tolerance=1e-10)


@pytest.mark.parametrize("n", [8, 16, 32])
def test_chunked_at_real_widths(n):
    assert_same(random_inputs(2, 20, 288, n), torch.tensor([20, 13]), tolerance=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 30),
    channels=st.integers(1, 6),
    n=st.integers(1, 5),
    data=st.data(),
)
def test_chunked_random_shapes(batch, length, channels, n, data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch)))
    directions = data.draw(
        st.sampled_from([("forward",), ("reverse",), ("forward", "reverse"), ("reverse", "forward")])
    )
    inputs = random_inputs(batch, length, channels, n, groups=len(directions), seed=length)
    assert_same(inputs, lengths, tolerance=1e-10, directions=directions)


def test_chunked_without_lengths_uses_every_frame():
    inputs = random_inputs(2, 11, 3, 4)
    full = torch.tensor([11, 11])
    without = scan_directions(*inputs, backend="chunked")
    torch.testing.assert_close(without, scan_directions(*inputs, lengths=full, backend="reference"))


def test_chunked_float32_and_bfloat16_error():
    inputs = random_inputs(2, 200, 16, 16, requires_grad=False)
    exact = scan_directions(*inputs, backend="reference")
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        y = scan_directions(*[x.to(dtype) for x in inputs], backend="chunked")
        assert y.dtype == dtype
        assert ((y.double() - exact).norm() / exact.norm()) < bound


def test_extreme_steps_and_decays_stay_finite():
    inputs = random_inputs(1, 50, 4, 4, dtype=torch.float32)
    with torch.no_grad():
        inputs[1].copy_(torch.linspace(-60, 60, inputs[1].numel()).view_as(inputs[1]))
        inputs[2].mul_(1e3)
    y, grads = outputs_and_gradients(inputs, None, "chunked")
    assert y.isfinite().all() and all(g.isfinite().all() for g in grads)
    assert_same(inputs, None, tolerance=2e-4)


def test_non_contiguous_inputs():
    inputs = random_inputs(2, 9, 4, 3, requires_grad=False)
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs]
    assert not turned[0].is_contiguous()
    torch.testing.assert_close(scan_directions(*turned), scan_directions(*inputs))


def test_padding_holds_zeros_and_is_never_read():
    inputs = random_inputs(2, 12, 3, 4, requires_grad=False)
    lengths = torch.tensor([12, 5])
    clean = scan_directions(*inputs, lengths=lengths)
    for x in (inputs[0], inputs[1], inputs[3], inputs[4]):
        x[:, 1, 5:] = float("nan")
    for backend in ("chunked", "reference"):
        y = scan_directions(*inputs[:5], lengths=lengths, backend=backend)
        assert not y[:, 1, 5:].any()
        without_skip = scan_directions(*[x.nan_to_num() for x in inputs[:5]], lengths=lengths)
        torch.testing.assert_close(y, without_skip)
    assert not clean[:, 1, 5:].any()


def test_reference_gradients_by_finite_differences():
    u, delta, A, B, C, _, _ = (x[0].detach().requires_grad_() for x in random_inputs(2, 4, 2, 3))
    lengths = torch.tensor([4, 2])

    def run(u, delta, A, B, C):
        return reference.selective_scan(u, torch.nn.functional.softplus(delta), A, B, C, lengths, True)

    assert torch.autograd.gradcheck(run, (u, delta, A, B, C))


def test_known_answer():
    """One channel, one state, A = -ln 2, dt = 1: the state halves every frame."""
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    u = torch.tensor([[[1.0], [0.0], [4.0]]], dtype=torch.float64)
    delta = torch.full_like(
        one, torch.tensor(1.0, dtype=torch.float64).expm1().log()
    )  # softplus inverse of 1
    A = torch.full((1, 1), -torch.tensor(2.0).log().item(), dtype=torch.float64)
    forward = selective_scan(u, delta, A, one, one)
    backward = selective_scan(u, delta, A, one, one, direction="reverse")
    assert forward.flatten().tolist() == pytest.approx([1.0, 0.5, 4.25])
    assert backward.flatten().tolist() == pytest.approx([2.0, 2.0, 4.0])


def test_gate_and_skip():
    inputs = [x[0] for x in random_inputs(2, 6, 3, 2, requires_grad=False)]
    z = torch.randn(2, 6, 3, dtype=torch.float64)
    bare = selective_scan(*inputs[:5], None, None, inputs[6])
    full = selective_scan(*inputs[:5], inputs[5], z, inputs[6])
    torch.testing.assert_close(full, (bare + inputs[5] * inputs[0]) * torch.nn.functional.silu(z))


def test_bad_requests_are_one_sentence():
    inputs = random_inputs(1, 3, 2, 2)
    with pytest.raises(ValueError, match="'cuda_graphs' is unknown; choose one of auto"):
        scan_directions(*inputs, backend="cuda_graphs")
    with pytest.raises(ValueError, match="direction 'up' is unknown"):
        scan_directions(*inputs, directions=("up", "forward"))
    with pytest.raises(ValueError, match="2 sets of inputs were given for 1 directions"):
        scan_directions(*inputs, directions=("forward",))


@pytest.mark.skipif(mamba_ssm.unavailable_reason() is None, reason="mamba-ssm is installed with its kernel")
def test_absent_mamba_ssm_is_an_error_and_not_another_backend():
    with pytest.raises(RuntimeError, match="the mamba_ssm backend .* use backend 'auto' or 'chunked'"):
        scan_directions(*random_inputs(1, 3, 2, 2), backend="mamba_ssm")


@pytest.mark.gpu
@pytest.mark.skipif(
    mamba_ssm.unavailable_reason() is not None, reason="mamba-ssm is not installed with its kernel"
)
def test_mamba_ssm_is_the_time_loop():
    inputs = [x.detach().float().cuda().requires_grad_() for x in random_inputs(3, 65, 32, 16)]
    assert_same(inputs, torch.tensor([65, 40, 1], device="cuda"), tolerance=2e-3, backend="mamba_ssm")


@pytest.mark.gpu
def test_chunked_on_the_gpu_is_the_time_loop():
    inputs = [x.detach().cuda().requires_grad_() for x in random_inputs(3, 65, 32, 16)]
    assert_same(inputs, torch.tensor([65, 40, 1], device="cuda"), tolerance=1e-9)
