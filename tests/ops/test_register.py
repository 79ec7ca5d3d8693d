"""An operation made of a forward and a backward function: eager, compiled whole, and outside of the graph."""

import pytest
import torch
from torch import Tensor

from hmamba_asr.ops.register import KernelOp


def _forward(x: Tensor, y: Tensor | None, power: int) -> tuple[Tensor, Tensor]:
    """Return x^power + y, and what the backward pass needs: a part of a larger tensor."""
    z = x**power
    return (z if y is None else z + y), torch.stack([x, power * x ** (power - 1)])[1]


def _backward(grads, saved, wanted, power):
    assert power == 3 and not torch.is_autocast_enabled("cpu")
    x, y, slope = saved
    return [grads[0] * slope, None if y is None else grads[0].clone()]


OPTIONS = {"backward": _backward, "differentiable": (0, 1)}
WHOLE = KernelOp(
    "test_whole", _forward, **OPTIONS, fake=lambda x, y, power: (torch.empty_like(x), torch.empty_like(x))
)
OUTSIDE = KernelOp("test_outside", _forward, **OPTIONS)


@pytest.fixture
def inputs():
    return [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("op", [WHOLE, OUTSIDE], ids=["whole", "outside"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_results_and_gradients(op, compiled, inputs):
    def loss(x, y):
        return op(x, y, 3).square().sum() + op(x, None, 3).sum()

    torch._dynamo.reset()
    run = torch.compile(loss, backend="aot_eager", fullgraph=op is WHOLE) if compiled else loss
    x, y = inputs
    with torch.autocast("cpu", torch.bfloat16):
        found = run(x, y)
        grads = torch.autograd.grad(found, inputs)
    expected = (x**3 + y).square().sum() + (x**3).sum()
    torch.testing.assert_close(found, expected)
    for a, e in zip(grads, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_only_what_is_wanted_gets_a_gradient(compiled, inputs):
    x, y = inputs[0].detach(), inputs[1]
    torch._dynamo.reset()
    run = torch.compile(WHOLE, backend="aot_eager", fullgraph=True) if compiled else WHOLE
    (grad,) = torch.autograd.grad(run(x, y, 3).sum(), [y])
    assert torch.equal(grad, torch.ones_like(y))


def test_pytorch_finds_the_custom_op_in_order(inputs):
    torch.library.opcheck(torch.ops.hmamba_asr.test_whole.default, (*inputs, 3))


def test_a_graph_can_be_kept_but_not_derived_twice(inputs):
    loss = WHOLE(*inputs, 3).sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for a, b in zip(torch.autograd.grad(loss, inputs, create_graph=True), first, strict=True):
        assert torch.equal(a, b)
    (grad,) = torch.autograd.grad(WHOLE(*inputs, 3).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
