"""H-Net's chunker by hand and on odd input, its ratio loss, and the gradients that teach its router."""

import pytest
import torch

from hmamba_asr.hnet.dechunking import smooth_chunks, upsample_chunks
from hmamba_asr.hnet.ratio_loss import ratio_loss
from hmamba_asr.hnet.router import HNetChunker

LENGTHS = torch.tensor([19, 1, 8, 0])
D = 6


def frames(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.randn(len(LENGTHS), 23, D, dtype=dtype)


def test_known_boundaries():
    """Two directions at right angles, then opposite ones: cosines 1, 0, 1, -1 make p = 0, 1/2, 0, 1."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    x = torch.stack([a, a, b, b, -b]).unsqueeze(0)
    out = HNetChunker(d_model=2, target_ratio=2)(x, torch.tensor([5]))
    assert out.prob.tolist() == [[1.0, 0.0, 0.5, 0.0, 1.0]]
    assert out.mask.tolist() == [[True, False, True, False, True]]
    assert out.frame_to_chunk.tolist() == [[0, 0, 1, 1, 2]] and out.starts.tolist() == [[0, 2, 4]]
    assert torch.equal(out.states, torch.stack([a, b, -b]).unsqueeze(0)) and out.num_chunks.tolist() == [3]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_input_is_one_chunk(value):
    """Digital silence, or any constant: every cosine is one, also where the norm is zero."""
    out = HNetChunker(d_model=D, target_ratio=2)(torch.full((1, 9, D), value), torch.tensor([9]))
    assert out.num_chunks.tolist() == [1] and out.prob[0, 1:].max() < 1e-4


def loss_at(chosen, mean_prob, **ratios):
    return ratio_loss(torch.tensor([chosen]), torch.tensor([mean_prob], dtype=torch.float64), **ratios).item()


@pytest.mark.parametrize("ratio", [2.0, 2.5, 4.0])
def test_ratio_loss_is_one_at_its_target_and_larger_elsewhere(ratio):
    assert loss_at(1 / ratio, 1 / ratio, target_ratio=ratio) == pytest.approx(1.0, abs=1e-6)
    for both in (0.02, 0.9):
        assert loss_at(both, both, target_ratio=ratio) > 1.0
    assert loss_at(0.3, 0.3, target_ratio=1) == 0.0


@pytest.mark.parametrize("current", [1.0, 1.01, 1.7, 3.0])
def test_ratio_loss_while_its_target_rises_is_bounded_and_least_there(current):
    at = {
        both: loss_at(both, both, target_ratio=3.0, current_ratio=current) for both in (0.1, 1 / current, 0.9)
    }
    assert min(at, key=at.get) == 1 / current and max(at.values()) < 3
    if current == 3.0:
        assert at[0.9] == loss_at(0.9, 0.9, target_ratio=3.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_down_the_ratio_loss_move_a_router_towards_its_target(sign):
    """Too many boundaries: fewer afterwards; too few: more."""
    torch.manual_seed(0)
    x, lengths = torch.randn(1, 60, D), torch.tensor([60])
    chunker = HNetChunker(d_model=D, target_ratio=2)
    chunker.key.weight.data *= (
        sign  # cosines of 0 on average; a common part makes all neighbours alike, or opposite
    )
    x = x + 1.0
    before = chunker(x, lengths).prob.mean()
    assert (before < 0.45) if sign == 1 else (before > 0.55)
    optimizer = torch.optim.SGD(chunker.parameters(), lr=0.05)
    for _ in range(30):
        out = chunker(x, lengths)
        optimizer.zero_grad()
        ratio_loss(out.num_chosen / 60, out.prob.mean(1), target_ratio=2).sum().backward()
        optimizer.step()
    after = chunker(x, lengths).prob.mean()
    assert sign * (after - before) > 0.01


def test_gradients_reach_the_router():
    """Through smoothing and the straight-through estimator, and through the ratio loss."""
    x = frames().requires_grad_()
    chunker = HNetChunker(d_model=D, target_ratio=2.5)
    torch.nn.init.normal_(chunker.query.weight)
    out = chunker(x, LENGTHS)
    for loss in (
        upsample_chunks(smooth_chunks(out.states.detach(), out), out, LENGTHS).pow(2).sum(),
        smooth_chunks(out.states.detach(), out).pow(2).sum(),
        ratio_loss(out.num_chosen / LENGTHS.clamp(min=1), out.prob.mean(1), target_ratio=2.5).sum(),
    ):
        for grad in torch.autograd.grad(loss, [chunker.query.weight, chunker.key.weight], retain_graph=True):
            assert grad.isfinite().all() and grad.abs().max() > 0


def test_every_frame_a_boundary():
    """Neighbours that point in opposite directions: p = 1 everywhere, all are kept and smoothing changes
    none."""
    x = torch.randn(1, 1, D).expand(2, 8, D) * torch.tensor([1.0, -1.0]).repeat(4).view(1, 8, 1)
    lengths = torch.tensor([8, 5])
    out = HNetChunker(d_model=D, target_ratio=2)(x, lengths)
    assert out.num_chunks.tolist() == [8, 5] and out.frame_to_chunk[0].tolist() == list(range(8))
    torch.testing.assert_close(
        smooth_chunks(out.states, out)[1, :5], x[1, :5], rtol=0, atol=1e-3
    )  # p within 1e-4 of 1


@pytest.mark.parametrize("x", [torch.zeros(2, 7, D), torch.ones(2, 7, D)], ids=["silence", "constant"])
def test_input_without_any_difference_has_finite_gradients(x):
    """Where all cosines are one or undefined, in an utterance of seven frames and one of a single frame."""
    x = x.clone().requires_grad_()
    chunker, lengths = HNetChunker(d_model=D, target_ratio=2), torch.tensor([7, 1])
    out = chunker(x, lengths)
    assert out.num_chunks.tolist() == [1, 1]
    loss = upsample_chunks(smooth_chunks(out.states, out), out, lengths).sum() + out.prob.sum()
    for grad in torch.autograd.grad(loss, [x, chunker.query.weight, chunker.key.weight]):
        assert grad.isfinite().all()


def test_a_floor_is_not_the_routers_choice():
    x, lengths = torch.ones(2, 9, D), torch.tensor([9, 4])
    out = HNetChunker(d_model=D, target_ratio=2)(x, lengths, torch.tensor([6, 9]))
    assert out.num_chunks.tolist() == [6, 4] and out.num_chosen.tolist() == [1, 1]


def test_bad_settings():
    with pytest.raises(ValueError, match="target_ratio must be 1 frame per chunk or more, not 0.5"):
        HNetChunker(d_model=2, target_ratio=0.5)
    with pytest.raises(ValueError, match="lr_multiplier must be above 0, not 0"):
        HNetChunker(d_model=2, target_ratio=2, lr_multiplier=0)
