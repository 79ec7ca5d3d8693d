"""CTC prefix scores by the kernels are those of the plain steps, through the scorer of a search."""

import math

import pytest
import torch

from hmamba_asr.decoding.ctc_prefix import IMPOSSIBLE, CTCPrefixScorer

pytest.importorskip("triton")
from hmamba_asr.ops.ctc import kernels as ctc_kernels  # noqa: E402

pytestmark = pytest.mark.kernels

BLANK, EOS, VOCAB = 0, 2, 11


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make blocks small, so that utterances have several of them."""
    monkeypatch.setattr(ctc_kernels, "BLOCK_T", 8)
    monkeypatch.setattr(ctc_kernels, "BLOCK_V", 8)


def assert_close(actual, expected, where=None):
    """Compare to the rounding of float32 exponentials; what is impossible must be so in both."""
    where = torch.ones_like(expected, dtype=torch.bool) if where is None else where
    possible = (expected > IMPOSSIBLE / 10) & where
    torch.testing.assert_close(actual[possible].double(), expected[possible].double(), rtol=1e-6, atol=2e-5)
    assert (actual[~possible & where] < IMPOSSIBLE / 10).all()


@pytest.mark.parametrize(
    ("scale", "windowed", "frames"),
    [
        (1.0, False, 8),
        (1.0, False, 17),
        (1.0, True, 1),
        (1.0, True, 9),
        (1.0, True, 17),
        (40.0, False, 9),
        (40.0, False, 17),
    ],
)
def test_kernels_are_the_plain_steps(frames, scale, windowed, device):
    """The hypotheses are random, with unequal parents, repeated labels and ends among them. Padding is not
    read."""
    generator = torch.Generator().manual_seed(frames)
    log_probs = (scale * torch.randn(3, frames, VOCAB, generator=generator)).log_softmax(-1)
    lengths = torch.tensor([frames, max(1, frames - 4), 1])
    for row, length in enumerate(lengths):
        log_probs[row, length:] = math.nan
    log_probs, lengths = log_probs.transpose(0, 1).contiguous().transpose(0, 1).to(device), lengths.to(device)
    plain, fused = (
        CTCPrefixScorer(log_probs, lengths, blank=BLANK, eos=EOS, backend=backend)
        for backend in ("reference", "triton")
    )
    inside = torch.arange(frames, device=device) < lengths.view(-1, 1, 1)
    state, other, count = plain.start(), fused.start(), 1
    for step in range(3):
        window = None
        if windowed and step:
            first = torch.randint(0, max(1, frames // 2), (3, 1), generator=generator)
            window = torch.cat([first, first + frames // 2 + 1], 1).to(device)
        assert_close(fused.next_scores(other, window), plain.next_scores(state, window))
        parents = torch.randint(0, count, (3, 4), generator=generator)
        labels = torch.randint(1, VOCAB, (3, 4), generator=generator)
        labels[:, 0] = state.last.cpu().gather(1, parents)[:, 0].clamp(min=1)  # the same once more
        parents, labels, count = parents.to(device), labels.to(device), 4
        state, other = (
            plain.extend(state, parents, labels, window),
            fused.extend(other, parents, labels, window),
        )
        assert_close(other.score, state.score)
        went_on = (labels != EOS).unsqueeze(-1) & inside
        assert_close(other.in_label, state.in_label, went_on)
        assert_close(other.in_blank, state.in_blank, went_on)
        assert torch.equal(other.last, state.last)
    rows = torch.tensor([2, 0], device=device)
    fused.keep(rows)
    plain.keep(rows)
    assert_close(fused.next_scores(other.keep(rows)), plain.next_scores(state.keep(rows)))


def test_a_prefix_does_not_depend_on_its_mates_or_padding(device):
    log_probs = (
        torch.randn(2, 20, VOCAB, generator=torch.Generator().manual_seed(0)).log_softmax(-1).to(device)
    )
    together = CTCPrefixScorer(
        log_probs, torch.tensor([20, 11], device=device), blank=BLANK, eos=EOS, backend="triton"
    )
    alone = CTCPrefixScorer(
        log_probs[1:, :11].contiguous(),
        torch.tensor([11], device=device),
        blank=BLANK,
        eos=EOS,
        backend="triton",
    )
    states = [scorer.start() for scorer in (together, alone)]
    for label in (4, 4, 5):
        both, one = (
            scorer.next_scores(state)[-1] for scorer, state in zip((together, alone), states, strict=True)
        )
        torch.testing.assert_close(both, one, rtol=1e-6, atol=1e-6)
        states = [
            scorer.extend(
                state,
                torch.zeros(len(state.last), 1, dtype=torch.long, device=device),
                torch.full((len(state.last), 1), label, device=device),
            )
            for scorer, state in zip((together, alone), states, strict=True)
        ]
        assert torch.equal(states[0].score[1], states[1].score[0])
