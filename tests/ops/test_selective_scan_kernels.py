"""The Triton scan against the time loop: outputs, states and every gradient.

On a GPU every width, dtype and option compiles kernels anew, which takes up to a minute. So the tests share
one width, (CHANNELS, N), and are deterministic, unless they are about just that.
"""

import dataclasses

import pytest
import torch
from benchmarking import relative_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmamba_asr.ops.selective_scan import fused as backend
from hmamba_asr.ops.selective_scan import reference, scan_directions, selective_scan, selective_scan_step

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]
CHANNELS, N = 5, 2
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")
BOTH = ("forward", "reverse")


def inputs_for(batch, length, channels=CHANNELS, n=N, *, groups=2, seed=0):
    """Return inputs in the order of NAMES, in float64."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return [
        randn(groups, batch, length, channels),
        randn(groups, batch, length, channels),
        -randn(groups, channels, n).exp(),
        randn(groups, batch, length, n),
        randn(groups, batch, length, n),
        randn(groups, channels),
        randn(groups, channels),
        randn(groups, batch, channels, n),
    ]


def run(inputs, name, dtype, device, *, lengths, directions, present=NAMES):
    """Return y, final state and gradients. A, D, bias and state stay float32 where u is 16-bit, as under
    autocast."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    xs = [
        x.to(device, dtype if i in (0, 1, 3, 4) else wide).requires_grad_() if NAMES[i] in present else None
        for i, x in enumerate(inputs)
    ]
    y, state = scan_directions(
        *xs[:7],
        lengths=lengths.to(device),
        directions=directions,
        backend=name,
        initial_state=xs[7],
        return_final_state=True,
    )
    g = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=g).to(x)).sum() for x in (y, state))
    return [y, state, *torch.autograd.grad(loss, [x for x in xs if x is not None], materialize_grads=True)]


def assert_equal_to_the_loop(
    inputs, lengths, device, *, dtype=torch.float32, bound=2e-6, directions=BOTH, present=NAMES
):
    options = {"lengths": lengths, "directions": directions, "present": present}
    expected = run(inputs, "reference", torch.float64, torch.device("cpu"), **options)
    actual = run(inputs, "triton", dtype, device, **options)
    names = ["y", "final state", *[f"gradient of {name}" for name in NAMES if name in present]]
    for name, a, e in zip(names, actual, expected, strict=True):
        assert relative_error(a, e) < bound, name


@pytest.mark.parametrize("lengths", [(1, 0), (3, 1), (15, 13), (16, 14), (17, 15), (33, 31)])
def test_lengths_around_the_tile(lengths, device):
    assert_equal_to_the_loop(inputs_for(2, lengths[0]), torch.tensor(lengths), device)


@pytest.mark.parametrize(("channels", "n"), [(32, 1), (33, 3)])
def test_widths(channels, n, device):
    assert_equal_to_the_loop(inputs_for(2, 9, channels, n), torch.tensor([9, 4]), device)


@pytest.mark.gpu
def test_real_widths(device):
    """One test for all lengths, so that the kernels compile once."""
    for length in (63, 64, 65, 400):
        lengths = torch.tensor([length, length // 2, 1])
        assert_equal_to_the_loop(inputs_for(3, length, 288, 16), lengths, device, bound=5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_plain_triton(dtype, device, monkeypatch):
    """Here the backward kernel does without PTX assembly, as it always does in the interpreter."""
    monkeypatch.setattr(backend, "INLINE_PTX", False)
    bound = 2e-6 if dtype == torch.float32 else 1e-2
    assert_equal_to_the_loop(inputs_for(2, 35), torch.tensor([35, 21]), device, dtype=dtype, bound=bound)


@pytest.mark.parametrize("tiles_each", [1, 2])
def test_time_in_segments(tiles_each, device, monkeypatch):
    """Several programs share an utterance, and the states between them are found first. Sums are atomic."""
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(
        backend, "_segments", lambda programs, tiles, parts, kind: (-(-tiles // tiles_each), tiles_each)
    )
    assert_equal_to_the_loop(inputs_for(2, 35), torch.tensor([35, 20]), device)


def test_programs_that_take_several_items(device, monkeypatch):
    """There are fewer programs than work: each takes one segment after the other, and uses its memory for
    states again."""
    monkeypatch.setattr(backend, "BACKWARD", dataclasses.replace(backend.BACKWARD, warps=1))
    monkeypatch.setattr(backend, "_processors", lambda device: 1)
    monkeypatch.setattr(backend, "_segments", lambda programs, tiles, parts, kind: (tiles, 1))
    assert_equal_to_the_loop(inputs_for(1, 33), torch.tensor([33]), device)


@pytest.mark.parametrize("directions", [("forward",), ("reverse",), ("reverse", "forward")])
def test_directions(directions, device):
    inputs = inputs_for(2, 18, groups=len(directions))
    assert_equal_to_the_loop(inputs, torch.tensor([18, 7]), device, directions=directions)


@pytest.mark.parametrize("absent", ["D", "delta_bias", "initial_state"])
def test_without_what_is_optional(absent, device):
    present = tuple(name for name in NAMES if name != absent)
    assert_equal_to_the_loop(inputs_for(1, 18), torch.tensor([18]), device, present=present)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_error(dtype, bound, device):
    """Inputs and outputs round to 8 or 11 bits: by up to 2^-9 = 2e-3 or 2^-12 = 2.4e-4. States do not, except
    where the backward pass starts them again."""
    assert_equal_to_the_loop(inputs_for(2, 35), torch.tensor([35, 21]), device, dtype=dtype, bound=bound)


ON_GPU = torch.cuda.is_available()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 20),
    channels=st.just(CHANNELS) if ON_GPU else st.integers(1, 6),
    n=st.just(N) if ON_GPU else st.integers(1, 3),
    data=st.data(),
)
def test_random_shapes(batch, length, channels, n, data, device):
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch)))
    assert_equal_to_the_loop(inputs_for(batch, length, channels, n, seed=length), lengths, device, bound=5e-6)


def test_extreme_steps_and_decays(device):
    inputs = inputs_for(1, 18)
    inputs[1] = torch.linspace(-60, 60, inputs[1].numel(), dtype=torch.float64).view_as(inputs[1])
    inputs[2] = inputs[2] * 1e3
    actual = run(inputs, "triton", torch.float32, device, lengths=torch.tensor([18]), directions=BOTH)
    assert all(x.isfinite().all() for x in actual)
    expected = run(
        inputs, "reference", torch.float64, torch.device("cpu"), lengths=torch.tensor([18]), directions=BOTH
    )
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-4


def test_small_steps_keep_their_precision(device):
    """softplus and its slope are tiny here, as in a fresh mixer."""
    inputs = inputs_for(1, 18)
    inputs[1] = inputs[1] - 8.0
    assert_equal_to_the_loop(inputs, torch.tensor([18]), device)


def test_non_contiguous_inputs(device):
    inputs = [x.float().to(device) for x in inputs_for(2, 18)]
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs[:7]]
    assert not turned[0].is_contiguous()
    torch.testing.assert_close(
        scan_directions(*turned, backend="triton"), scan_directions(*inputs[:7], backend="triton")
    )


def test_padding_is_zero_and_never_read(device):
    inputs = [x.float().to(device) for x in inputs_for(2, 20)[:7]]
    lengths = torch.tensor([20, 5], device=device)
    clean = scan_directions(*inputs, lengths=lengths, backend="triton")
    for i in (0, 1, 3, 4):
        inputs[i] = inputs[i].clone()
        inputs[i][:, 1, 5:] = float("nan")
        inputs[i].requires_grad_()
    y = scan_directions(*inputs, lengths=lengths, backend="triton")
    assert torch.equal(y, clean) and not y[:, 1, 5:].any()
    for grad in torch.autograd.grad(y.sum(), [inputs[i] for i in (0, 1, 3, 4)]):
        assert grad.isfinite().all() and not grad[:, 1, 5:].any()


def test_batch_mates_change_nothing(device):
    inputs = [x.float().to(device) for x in inputs_for(3, 33)[:7]]
    lengths = torch.tensor([33, 17, 3])
    batch = scan_directions(*inputs, lengths=lengths.to(device), backend="triton")
    for b, n in enumerate(lengths.tolist()):
        alone = [x[:, b : b + 1, :n] if x.dim() == 4 else x for x in inputs]
        torch.testing.assert_close(
            batch[:, b, :n], scan_directions(*alone, backend="triton")[:, 0], rtol=1e-5, atol=1e-6
        )


def test_deterministic_gradients_repeat(device):
    """Several blocks of channels add to the same sums."""
    inputs = inputs_for(1, 9, 33, 3)
    first, second = (
        run(inputs, "triton", torch.float32, device, lengths=torch.tensor([9]), directions=BOTH)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["reference", "chunked", "triton"])
def test_steps_are_the_full_scan(name, device):
    """Streams carry the state from frame to frame, or from half to half."""
    u, delta, A, B, C, D, bias, state = (x[0].float().to(device) for x in inputs_for(2, 21, groups=1))
    z = torch.randn(u.shape, generator=torch.Generator().manual_seed(5)).to(device)
    full, last = selective_scan(
        u, delta, A, B, C, D, z, bias, backend=name, initial_state=state, return_final_state=True
    )
    h, rows = state, []
    for t in range(21):
        y, h = selective_scan_step(u[:, t], delta[:, t], A, B[:, t], C[:, t], h, D, z[:, t], bias)
        rows.append(y)
    torch.testing.assert_close(torch.stack(rows, 1), full, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(h, last, rtol=1e-4, atol=1e-5)

    first, second = (lambda x: x[:, :8]), (lambda x: x[:, 8:])
    _, middle = selective_scan(
        *map(first, (u, delta)),
        A,
        *map(first, (B, C)),
        D,
        None,
        bias,
        backend=name,
        initial_state=state,
        return_final_state=True,
    )
    y = selective_scan(
        *map(second, (u, delta)),
        A,
        *map(second, (B, C)),
        D,
        second(z),
        bias,
        backend=name,
        initial_state=middle,
    )
    torch.testing.assert_close(y, full[:, 8:], rtol=1e-4, atol=1e-5)


def test_compiled_without_graph_breaks(device, assert_same_compiled):
    inputs = [x.float().to(device).requires_grad_() for x in inputs_for(2, 18)[:7]]
    lengths = torch.tensor([18, 7], device=device)

    def loss(*xs):
        return scan_directions(*xs, lengths=lengths, backend="triton").pow(2).sum()

    assert_same_compiled(loss, inputs, tolerance=1e-5)


def test_the_custom_op_keeps_its_promises(device):
    """PyTorch checks schema, fake kernel and autograd registration."""
    inputs = [x.float().to(device) for x in inputs_for(1, 5)]
    inputs[7] = inputs[7].transpose(2, 3).contiguous()
    arguments = (
        *[x.requires_grad_() for x in inputs[:7]],
        torch.tensor([5], device=device),
        inputs[7].requires_grad_(),
        2,
    )
    torch.library.opcheck(torch.ops.hmamba_asr.selective_scan.default, arguments, rtol=1e-4, atol=1e-5)


def test_float64_and_an_absent_gpu_are_refused(monkeypatch, device):
    inputs = inputs_for(1, 3)[:7]
    with pytest.raises(ValueError, match="the triton backend has no float64; use backend 'chunked'"):
        scan_directions(*[x.to(device) for x in inputs], backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="the triton backend needs a CUDA GPU, and the tensors are on cpu"):
        scan_directions(*[x.float() for x in inputs], backend="triton")


def test_B_and_C_of_different_types(device):
    inputs = [x.float().to(device) for x in inputs_for(1, 9)[:7]]
    C = inputs[4].to(torch.bfloat16).requires_grad_()
    y = scan_directions(*inputs[:4], C, *inputs[5:], backend="triton")
    expected = scan_directions(*inputs[:4], C.float(), *inputs[5:], backend="chunked")
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(y.sum(), C)[0].dtype == torch.bfloat16


def test_nothing_to_scan(device):
    inputs = [x.float().to(device) for x in inputs_for(2, 3)[:7]]
    empty = [x[:, :, :0] if x.dim() == 4 else x for x in inputs]
    y, state = scan_directions(*empty, backend="triton", return_final_state=True)
    assert y.shape == (2, 2, 0, CHANNELS) and not state.any()


def test_segments_cover_the_time_axis():
    for programs in (1, 9, 300, 5000):
        for tiles in (1, 2, 7, 25, 938):
            for parts, kind in ((4, backend.FORWARD), (528, backend.BACKWARD)):
                segments, each = backend._segments(programs, tiles, parts, kind)
                assert (segments - 1) * each < tiles <= segments * each


def test_time_is_cut_where_there_is_little_else_to_do_at_once():
    assert backend._segments(5000, 25, 528, backend.BACKWARD) == (1, 25)
    segments, _ = backend._segments(9, 938, 528, backend.BACKWARD)
    assert 9 * segments >= 528


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements():
    """One direction of (1, L, D) with L x D > 2^31: the last frames are right."""
    length, channels = 2**26 + 40, 32
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    u = torch.randn(1, 1, length, channels, device="cuda", dtype=torch.bfloat16)
    delta = torch.randn_like(u)
    B, C = (torch.randn(1, 1, length, 2, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    A = -torch.ones(1, channels, 2, device="cuda") * 20
    y = scan_directions(u, delta, A, B, C, directions=("forward",), backend="triton")
    tail = slice(length - 64, length)
    dt = torch.nn.functional.softplus(delta[0, :, tail].double())
    wide = [x[0, :, tail].double() for x in (B, C)]
    expected, _ = reference.selective_scan(u[0, :, tail].double(), dt, A[0].double(), *wide, None, False)
    assert relative_error(y[0, 0, tail][32:], expected[0, 32:]) < 1e-2
