"""The ConMamba block: independence of padding and batch mates, causality, errors, reduced precision."""

import pytest
import torch

from hmamba_asr.modules.conmamba import ConMambaBlock, ConvolutionModule

LENGTHS = torch.tensor([19, 1, 2, 7])
D_MODEL = 16


def block(causal=False, kernel_size=7):
    """A block whose biases are not zero, as after training: it is through them that padding leaks."""
    torch.manual_seed(0)
    model = ConMambaBlock(
        d_model=D_MODEL, d_ffn=32, kernel_size=kernel_size, dropout=0.1, causal=causal, d_state=4
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5)
    return model


def padded(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(len(LENGTHS), 24, D_MODEL, dtype=dtype)  # noise past the ends


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_batch_equals_utterances_alone(causal, dtype, tolerance):
    model, x = block(causal).to(dtype), padded(dtype)
    x[3, int(LENGTHS[3]) :] = float("nan")
    batch = model(x, LENGTHS)
    for row, inputs, n in zip(batch, x, LENGTHS.tolist(), strict=True):
        alone = model(inputs[None, :n], torch.tensor([n]))[0]
        torch.testing.assert_close(row[:n], alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_convolution_branch_sees_zeros_past_the_end(causal):
    torch.manual_seed(0)
    branch = ConvolutionModule(d_model=D_MODEL, kernel_size=7, dropout=0.0, causal=causal).double()
    x = padded(torch.float64)
    batch = branch(x, LENGTHS)
    for row, inputs, n in zip(batch, x, LENGTHS.tolist(), strict=True):
        torch.testing.assert_close(
            row[:n], branch(inputs[None, :n], torch.tensor([n]))[0], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("frame", [1, 8, 18])
def test_causal_reads_no_later_frame_and_bidirectional_does(frame):
    x, lengths = padded()[:1, :19], torch.tensor([19])
    changed = x.clone()
    changed[:, frame:] += torch.randn(19 - frame, D_MODEL)
    causal, both = block(causal=True), block(causal=False)
    assert torch.equal(causal(x, lengths)[:, :frame], causal(changed, lengths)[:, :frame])
    assert (causal(x, lengths)[:, frame] - causal(changed, lengths)[:, frame]).abs().max() > 1e-3
    assert (both(x, lengths)[:, :frame] - both(changed, lengths)[:, :frame]).abs().max() > 1e-3


def test_causal_convolution_reaches_back_its_whole_kernel():
    torch.manual_seed(0)
    branch = ConvolutionModule(d_model=D_MODEL, kernel_size=7, dropout=0.0, causal=True)
    x = padded()[:1, :19].requires_grad_()
    (grad,) = torch.autograd.grad(branch(x, torch.tensor([19]))[0, 10].pow(2).sum(), x)
    assert grad[0].abs().sum(-1).nonzero().flatten().tolist() == list(range(4, 11))


def test_even_kernel_size():
    with pytest.raises(ValueError, match="kernel_size must be odd, not 6"):
        block(kernel_size=6)


def test_bf16_autocast_stays_near_float32():
    """2^-8 = 0.4% for each rounding; 5% of the output's scale after the block's four branches."""
    model, x = block(), padded()
    valid = [slice(0, n) for n in LENGTHS.tolist()]
    exact = model(x, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, LENGTHS)
    for a, b, frames in zip(rough, exact, valid, strict=True):
        assert a[frames].isfinite().all()
        assert 0 < (a[frames] - b[frames]).abs().max() / b[frames].abs().max() < 0.05
