import pytest
import torch


@pytest.fixture
def assert_same_compiled():
    """Return a check that a function of tensors, compiled without graph breaks, has the function's own
    gradients."""

    def check(loss, inputs, *, tolerance):
        torch._dynamo.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected = torch.autograd.grad(loss(*inputs), inputs)
        for a, e in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)

    return check


@pytest.fixture
def poisoned():
    """Turn on deterministic algorithms. PyTorch then fills new memory with NaN, so that an element which
    nobody writes shows. Kernels then add without atomics."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def exact_products():
    """Turn off TF32, which SpeechBrain allows on import and which is good for three digits only."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    yield
    products.allow_tf32 = before
