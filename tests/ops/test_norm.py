"""Layer norm in the precision of its input is its formula, also in gradients that many frames add up to."""

import pytest
import torch

from hmamba_asr.ops.norm import layer_norm, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def results(norm, x, weight, bias):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    y = norm(*inputs)
    return [y, *torch.autograd.grad((y.double() * torch.arange(48, device=y.device).cos()).sum(), inputs)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-4), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("autocast", [True, False])
def test_output_and_gradients_are_those_of_float64(device, dtype, bound, autocast):
    """Over 30,000 frames, bfloat16 sums would lose a fifth of the weights' gradients on a CPU."""
    torch.manual_seed(0)
    x = (torch.randn(3, 10_000, 48, device=device) * 2 + 1).to(dtype)
    weight, bias = 1 + 0.3 * torch.randn(48, device=device), torch.randn(48, device=device)
    weight, bias = (p.double() if dtype == torch.float64 else p for p in (weight, bias))
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        found = results(lambda *inputs: layer_norm(*inputs, 1e-5), x, weight, bias)
    exact = results(
        lambda x, *p: reference.layer_norm(x.double(), *(q.double() for q in p), 1e-5),
        x.double(),
        weight,
        bias,
    )
    assert found[0].dtype == dtype and found[2].dtype == weight.dtype
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b.double()).norm() <= bound * b.double().norm()
