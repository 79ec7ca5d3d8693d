"""The exponential moving average: a known answer, and every backend against the plain loop."""

import pytest
import torch
from benchmarking import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from hmamba_asr.ops.ema import ema

pytestmark = pytest.mark.kernels


def run(backend, dtype, device, batch=2, length=37, channels=5, lengths=None, with_initial=True):
    g = torch.Generator().manual_seed(0)
    x, weights, initial = (
        torch.randn(batch, length, channels, generator=g),
        torch.rand(batch, length, generator=g),
        torch.randn(batch, channels, generator=g),
    )
    weights[:, 0] = 1.0  # as H-Net has it
    xs = [t.to(device, dtype).requires_grad_() for t in (x, weights, initial)]
    y = ema(*xs[:2], lengths=lengths, initial=xs[2] if with_initial else None, backend=backend)
    w = torch.randn(y.shape, generator=g).to(y)
    return [y, *torch.autograd.grad((y * w).sum(), xs, materialize_grads=True)]


def test_known_answer():
    x = torch.tensor([[[4.0], [8.0], [0.0]]])
    y = ema(x, torch.tensor([[1.0, 0.5, 0.25]]))
    assert y.flatten().tolist() == [4.0, 6.0, 4.5]


@pytest.mark.parametrize("backend", ["loop", "triton"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 37])
@pytest.mark.parametrize("with_initial", [True, False])
def test_backends_are_the_plain_loop(backend, length, with_initial, device, poisoned):
    lengths = torch.tensor([length, max(1, length // 2)])
    expected = run(
        "reference", torch.float64, "cpu", length=length, lengths=lengths, with_initial=with_initial
    )
    actual = run(
        backend,
        torch.float32,
        device if backend == "triton" else "cpu",
        length=length,
        lengths=lengths.to(device if backend == "triton" else "cpu"),
        with_initial=with_initial,
    )
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 2e-6


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 20), channels=st.integers(1, 4))
def test_random_shapes(batch, length, channels):
    expected = run("reference", torch.float64, "cpu", batch, length, channels)
    for a, e in zip(run("loop", torch.float64, "cpu", batch, length, channels), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_reference_gradients_by_finite_differences():
    x, weights = torch.randn(2, 4, 3, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    for backend in ("reference", "loop"):
        assert torch.autograd.gradcheck(
            lambda a, b, n=backend: ema(a, b, lengths=torch.tensor([4, 2]), backend=n), inputs
        )


@pytest.mark.parametrize("backend", ["reference", "loop", "triton"])
def test_padding_is_zero_and_never_read(backend, device):
    device = device if backend == "triton" else "cpu"
    x, weights = torch.randn(2, 9, 3, device=device), torch.rand(2, 9, device=device)
    lengths = torch.tensor([9, 4], device=device)
    clean = ema(x, weights, lengths=lengths, backend=backend)
    x[1, 4:], weights[1, 4:] = float("nan"), float("nan")
    y = ema(x.requires_grad_(), weights.requires_grad_(), lengths=lengths, backend=backend)
    assert torch.equal(y, clean) and not y[1, 4:].any()
    for grad in torch.autograd.grad(y.sum(), (x, weights)):
        assert grad.isfinite().all() and not grad[1, 4:].any()


def test_half_precision_keeps_a_float32_average(device):
    x, weights = torch.randn(1, 300, 4), torch.full((1, 300), 0.01)
    exact = ema(x.double(), weights.double())
    y = ema(x.to(torch.bfloat16), weights)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, exact) < 1e-2


def test_compiled_without_graph_breaks(device):
    x, weights = torch.randn(2, 9, 3, device=device), torch.rand(2, 9, device=device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: ema(a, b, backend="triton"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weights), ema(x, weights, backend="triton"))


def test_bad_requests_are_one_sentence(monkeypatch, device):
    x, weights = torch.zeros(1, 2, 3), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="EMA backend 'fast' is unknown; choose one of auto, reference"):
        ema(x, weights, backend="fast")
    with pytest.raises(ValueError, match="no float64"):
        ema(x.double().to(device), weights.to(device), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="needs a CUDA GPU"):
        ema(x, weights, backend="triton")
