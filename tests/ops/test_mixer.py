"""The fused mixer against the same steps in plain PyTorch: output and every gradient.

On a GPU every width compiles kernels anew. So most tests share one, which is also that of the scan's tests.
"""

import pytest
import torch
from benchmarking import relative_error

from hmamba_asr.ops.mixer import fused, mamba_mixer

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]
NAMES = ("x", "in_proj", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D", "out_proj")


def weights_for(channels=5, n=2, rank=3, taps=4, d_model=5, groups=2, batch=2, length=19, d_out=5):
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return [
        randn(batch, length, d_model),
        randn(2 * channels, d_model) / 2,
        randn(groups, channels, taps),
        randn(groups, channels),
        randn(groups, channels, 2 * n + rank) / 3,
        randn(groups, rank, channels),
        randn(groups, channels) - 1,
        randn(groups, channels, n) / 2,
        randn(groups, channels),
        randn(d_out, channels),
    ]


def run(inputs, backend, dtype, lengths, directions, device="cpu"):
    xs = [x.to(device, dtype).requires_grad_() for x in inputs]
    y = mamba_mixer(
        *xs, lengths=None if lengths is None else lengths.to(device), directions=directions, backend=backend
    )
    w = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad((y * w).sum(), xs)]


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
    monkeypatch.setattr(fused, "ROWS", 8)
    monkeypatch.setattr(fused, "COLS", 8)
    monkeypatch.setattr(fused, "WALK_TILES", 1)


@pytest.mark.parametrize("directions", [("forward",), ("forward", "reverse"), ("reverse", "forward")])
def test_fused_is_the_plain_mixer(directions, device):
    inputs, lengths = weights_for(groups=len(directions)), torch.tensor([19, 9])
    expected = run(inputs, "reference", torch.float64, lengths, directions)
    actual = run(inputs, "triton", torch.float32, lengths, directions, device)
    for name, a, e in zip(["output", *NAMES], actual, expected, strict=True):
        assert relative_error(a, e) < 3e-6, name


@pytest.mark.parametrize(
    "shape",
    [
        {"length": 1},
        {"channels": 16, "rank": 8, "n": 3, "taps": 2, "batch": 1, "length": 17},
        {"length": 35, "batch": 1, "d_model": 7, "d_out": 3},
    ],
)
def test_other_shapes(shape, device):
    """All frames are valid, and no lengths are given."""
    inputs = weights_for(**shape)
    expected = run(inputs, "reference", torch.float64, None, ("forward", "reverse"))
    actual = run(inputs, "triton", torch.float32, None, ("forward", "reverse"), device)
    for name, a, e in zip(["output", *NAMES], actual, expected, strict=True):
        assert relative_error(a, e) < 3e-6, name


def test_bfloat16_error(device):
    """Weights stay float32 and everything between is bfloat16. The error is no larger than that of the plain
    steps under autocast.

    Triton's interpreter cuts bits off where a GPU rounds, which biases every rounding. There the test only
    bounds the error.
    """
    on_gpu = device.type == "cuda"
    inputs, lengths, both = weights_for(), torch.tensor([19, 11]), ("forward", "reverse")
    expected = run(inputs, "reference", torch.float64, lengths, both)

    def errors(backend, device):
        xs = [
            x.to(device, torch.bfloat16 if i == 0 else torch.float32).requires_grad_()
            for i, x in enumerate(inputs)
        ]
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            y = mamba_mixer(*xs, lengths=lengths.to(device), backend=backend)
        assert y.dtype == torch.bfloat16
        w = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        outputs = [y, *torch.autograd.grad((y * w).sum(), xs)]
        assert [x.dtype for x in outputs] == [torch.bfloat16] * 2 + [torch.float32] * 9
        return [relative_error(a, e) for a, e in zip(outputs, expected, strict=True)]

    for name, ours, plain in zip(
        ["output", *NAMES], errors("triton", device), errors("chunked", "cpu"), strict=True
    ):
        assert ours < (1.25 * plain + 2e-3 if on_gpu else 0.1), name


def test_compiled_without_graph_breaks(device, assert_same_compiled):
    inputs = [x.float().to(device).requires_grad_() for x in weights_for(length=17)]
    lengths = torch.tensor([17, 7], device=device)

    def loss(*xs):
        return mamba_mixer(*xs, lengths=lengths, backend="triton").pow(2).sum()

    assert_same_compiled(loss, inputs, tolerance=1e-4)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_odd_requests(backend, device):
    """Lengths with a stride, no frames, no utterances, directions that do not exist or do not match."""
    device = device if backend == "triton" else torch.device("cpu")
    inputs = [x.float().to(device) for x in weights_for()]
    strided = torch.tensor([19, 0, 9, 0], device=device)[::2]
    expected = mamba_mixer(*inputs, lengths=strided.clone(), backend=backend)
    torch.testing.assert_close(mamba_mixer(*inputs, lengths=strided, backend=backend), expected)
    for empty in (inputs[0][:, :0], inputs[0][:0]):
        assert mamba_mixer(empty, *inputs[1:], backend=backend).shape == (*empty.shape[:2], 5)
    with pytest.raises(ValueError, match="direction 'backward' is unknown"):
        mamba_mixer(*inputs, directions=("forward", "backward"), backend=backend)
    with pytest.raises(ValueError, match="2 sets of inputs were given for 1 directions"):
        mamba_mixer(*inputs, directions=("forward",), backend=backend)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_nan_in_the_padding_goes_nowhere(backend, device):
    """The exception is the gradient of the input projection, as in any linear layer."""
    device = device if backend == "triton" else torch.device("cpu")
    inputs, lengths = [x.float().to(device) for x in weights_for()], torch.tensor([19, 9], device=device)
    inputs[0][1, 9:] = float("nan")
    x, _, *weights = (x.requires_grad_() for x in inputs)
    y = mamba_mixer(*inputs, lengths=lengths, backend=backend)
    assert y.isfinite().all() and not y[1, 9:].any()
    grad, *others = torch.autograd.grad(y.sum(), [x, *weights])
    assert grad.isfinite().all() and not grad[1, 9:].any() and all(other.isfinite().all() for other in others)


def test_backward_inside_autocast(device):
    inputs = [x.float().to(device).requires_grad_() for x in weights_for(length=7)]
    loss = mamba_mixer(*inputs, backend="triton").sum()
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        actual = torch.autograd.grad(loss, inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_no_second_derivatives(device):
    """An error is better than a part of them."""
    inputs = [x.float().to(device).requires_grad_() for x in weights_for(length=3)]
    (grad,) = torch.autograd.grad(
        mamba_mixer(*inputs, backend="triton").pow(2).sum(), inputs[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_graph_may_be_kept_and_weights_frozen(device):
    inputs = [x.float().to(device).requires_grad_() for x in weights_for(length=7)]
    loss = mamba_mixer(*inputs, backend="triton").pow(2).sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for a, e in zip(torch.autograd.grad(loss, inputs), first, strict=True):
        torch.testing.assert_close(a, e)
    frozen = [
        x.detach() if name in ("x", "in_proj", "A_log") else x for name, x in zip(NAMES, inputs, strict=True)
    ]
    trained = [x for x in frozen if x.requires_grad]
    found = torch.autograd.grad(mamba_mixer(*frozen, backend="triton").pow(2).sum(), trained)
    expected = [e for e, x in zip(first, frozen, strict=True) if x.requires_grad]
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("frames", [1, 7, 13, 24, 101])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_products_over_any_number_of_frames_are_cut_to_what_is_asked_for(frames, given, wanted, device):
    a, b = (torch.randn(2, frames, columns, device=device).to(given) for columns in (8, 16))
    expected = a.double().transpose(1, 2) @ b.double()
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-4} if given == wanted == torch.float32 else {"rtol": 0.02, "atol": 0.2}
    )
    for rows, columns in ((8, 16), (5, 9)):
        out = torch.full((2, rows, columns), float("nan"), device=device, dtype=wanted)
        fused._product(a, b, out)
        torch.testing.assert_close(out.double(), expected[:, :rows, :columns], **tolerance)
        fused._product(a[1], b[1], out[0])
        torch.testing.assert_close(out[0].double(), expected[1, :rows, :columns], **tolerance)
