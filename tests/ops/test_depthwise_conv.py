"""The depthwise convolution is its formula."""

import pytest
import torch

from hmamba_asr.ops.depthwise_conv import depthwise_conv, reference


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_equals_the_formula_on_ragged_batches(direction):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 9, 5), torch.randn(5, 4), torch.randn(5)
    lengths = torch.tensor([9, 6, 1])
    x[1, 6:] = float("nan")
    y = depthwise_conv(x, weight, bias, lengths=lengths, direction=direction)
    for row, out, n in zip(x, y, lengths.tolist(), strict=True):
        torch.testing.assert_close(out[:n], reference.depthwise_conv(row, weight, bias, n, direction)[:n])


def test_unknown_direction():
    with pytest.raises(ValueError, match="direction 'sideways' is unknown"):
        depthwise_conv(torch.zeros(1, 2, 1), torch.zeros(1, 2), None, direction="sideways")
