"""Means of chunks: by hand, their gradients, and the kernels against the plain operations."""

import pytest
import torch

from hmamba_asr.ops.segment import pool_chunks, positions

pytestmark = pytest.mark.kernels
LENGTHS = torch.tensor([23, 1, 8, 0])


def inputs(width=6, dtype=torch.float32, spread=1.0):
    """Return x, scores and a mask of chunks of random lengths; one utterance is a single chunk. Padding is
    NaN."""
    torch.manual_seed(width)
    inside = torch.arange(23) < LENGTHS.unsqueeze(1)
    mask = torch.rand(4, 23) < 0.4
    mask[2], mask[:, 0] = False, True
    x = torch.randn(4, 23, width, dtype=dtype).masked_fill(~inside.unsqueeze(-1), float("nan"))
    scores = (spread * torch.randn(4, 23, dtype=torch.float64)).to(dtype).masked_fill(~inside, float("nan"))
    return x, scores, mask & inside


def run(x, scores, mask, backend, device="cpu", lengths=LENGTHS):
    """Return the means, and the gradients of x and scores."""
    frame_to_chunk, starts, num_chunks = (y.to(device) for y in positions(mask))
    x, scores = (y.to(device).detach().requires_grad_() for y in (x, scores))
    most = int(num_chunks.max())
    out = pool_chunks(
        x,
        scores,
        starts=starts[:, :most],
        frame_to_chunk=frame_to_chunk,
        num_chunks=num_chunks,
        lengths=lengths.to(device),
        backend=backend,
    )
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(out)
    return [y.cpu() for y in (out.detach(), *torch.autograd.grad((out * weights).sum(), (x, scores)))]


def test_by_hand():
    x = torch.tensor([[[1.0], [3.0], [5.0], [9.0], [float("nan")]]])
    scores = torch.tensor([[1.0, 3.0, 1e-30, 2.0, 1.0]]).log()
    frame_to_chunk, starts, num_chunks = positions(torch.tensor([[True, False, True, False, False]]))
    out = pool_chunks(
        x,
        scores,
        starts=starts[:, :3],
        frame_to_chunk=frame_to_chunk,
        num_chunks=num_chunks,
        lengths=torch.tensor([4]),
        backend="reference",
    )
    torch.testing.assert_close(out, torch.tensor([[[2.5], [9.0], [0.0]]]))


def test_gradients_by_finite_differences():
    x, scores = torch.randn(1, 8, 2, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    frame_to_chunk, starts, num_chunks = positions(
        torch.tensor([[True, False, True, False, False, True, False, False]])
    )

    def pooled(x, scores):
        return pool_chunks(
            x,
            scores,
            starts=starts[:, :3],
            frame_to_chunk=frame_to_chunk,
            num_chunks=num_chunks,
            lengths=torch.tensor([7]),
        )

    assert torch.autograd.gradcheck(pooled, (x.requires_grad_(), scores.requires_grad_()))


@pytest.mark.parametrize("width", [1, 6, 300])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_the_kernels_are_the_plain_means(width, spread, device, poisoned):
    x, scores, mask = inputs(width, spread=spread)
    expected = run(x.double(), scores.double(), mask, "reference")
    for plain, fused in zip(expected, run(x, scores, mask, "triton", device), strict=True):
        assert fused.isfinite().all()
        torch.testing.assert_close(fused.double(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_half_precision_sums_in_float32(backend, device):
    """Sums of bfloat16 would stop at 256, which is less than 300 numbers near 1 make."""
    device = device if backend == "triton" else torch.device("cpu")
    x = (1 + 0.1 * torch.randn(1, 300, 6)).to(torch.bfloat16)
    scores, mask = torch.randn(1, 300).to(torch.bfloat16), torch.arange(300).eq(0).unsqueeze(0)
    expected = run(x.double(), scores.double(), mask, "reference", lengths=torch.tensor([300]))
    found = run(x, scores, mask, backend, device, lengths=torch.tensor([300]))
    for plain, fused in zip(expected, found, strict=True):
        assert fused.dtype == torch.bfloat16
        torch.testing.assert_close(fused.double(), plain, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("wanted", ["x", "scores"])
def test_gradients_of_either_alone(wanted, device):
    """The tensors lie in another order of memory, and the incoming gradient is one number repeated."""
    x, scores, mask = (y.to(device) for y in inputs())
    frame_to_chunk, starts, num_chunks = positions(mask)
    x, scores = x.transpose(0, 1).contiguous().transpose(0, 1), scores.T.contiguous().T
    leaf = {"x": x, "scores": scores}[wanted].requires_grad_()
    grads = [
        torch.autograd.grad(
            pool_chunks(
                x,
                scores,
                starts=starts,
                frame_to_chunk=frame_to_chunk,
                num_chunks=num_chunks,
                lengths=LENGTHS.to(device),
                backend=backend,
            ).sum(),
            leaf,
        )[0]
        for backend in ("reference", "triton")
    ]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-5)


def test_nothing_flows_behind_the_end(device):
    for backend in ("reference", "triton"):
        _, gx, gscores = run(*inputs(), backend, device if backend == "triton" else torch.device("cpu"))
        for row, n in enumerate(LENGTHS.tolist()):
            assert not gx[row, n:].any() and not gscores[row, n:].any()


def test_what_the_kernel_gives_an_utterance_does_not_depend_on_its_batch(device):
    x, scores, mask = inputs()
    together = run(x, scores, mask, "triton", device)[0]
    for row, n in enumerate(LENGTHS.tolist()[:3]):
        frame_to_chunk, starts, num_chunks = (y.to(device) for y in positions(mask[row : row + 1, :n]))
        alone = pool_chunks(
            x[row : row + 1, :n].to(device),
            scores[row : row + 1, :n].to(device),
            starts=starts[:, : int(num_chunks)],
            frame_to_chunk=frame_to_chunk,
            num_chunks=num_chunks,
            lengths=LENGTHS[row : row + 1].to(device),
            backend="triton",
        )
        assert (
            torch.equal(together[row, : int(num_chunks)], alone[0].cpu())
            and not together[row, int(num_chunks) :].any()
        )
