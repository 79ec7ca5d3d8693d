import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def assert_same_compiled():
    """Gradients of a function of tensors, compiled without graph breaks, are those of the function itself."""

    def check(loss, inputs, *, tolerance):
        torch._dynamo.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected = torch.autograd.grad(loss(*inputs), inputs)
        for a, e in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)

    return check


@pytest.fixture
def poisoned():
    """Deterministic algorithms, under which PyTorch fills new memory with NaN: an element that nobody writes
    shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def exact_products():
    """Without TF32, which SpeechBrain allows on import and which is good for three digits."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    yield
    products.allow_tf32 = before
