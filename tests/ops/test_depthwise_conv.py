import pytest
import torch

from hmamba_asr.ops.depthwise_conv import depthwise_conv


def naive(x, weight, bias, end, direction):
    """y_t = bias + sum_k w_k x_{t -/+ (K-1-k)} over the valid frames."""
    taps = weight.shape[1]
    y = torch.zeros_like(x)
    for t in range(x.shape[0]):
        for k in range(taps):
            source = t - (taps - 1 - k) if direction == "forward" else t + (taps - 1 - k)
            if 0 <= source < end:
                y[t] += weight[:, k] * x[source]
        y[t] += bias
    return y


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_equals_the_formula_on_ragged_batches(direction):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 9, 5), torch.randn(5, 4), torch.randn(5)
    lengths = torch.tensor([9, 6, 1])
    x[1, 6:] = float("nan")
    y = depthwise_conv(x, weight, bias, lengths=lengths, direction=direction)
    for row, out, n in zip(x, y, lengths.tolist(), strict=True):
        torch.testing.assert_close(out[:n], naive(row, weight, bias, n, direction)[:n])


def test_unknown_direction():
    with pytest.raises(ValueError, match="direction 'sideways' is unknown"):
        depthwise_conv(torch.zeros(1, 2, 1), torch.zeros(1, 2), None, direction="sideways")
