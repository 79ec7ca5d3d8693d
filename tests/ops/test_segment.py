"""Novelty and boundaries by the kernels are those of the plain operations."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmamba_asr.ops import segment
from hmamba_asr.ops.segment import label_novelty, positions, select_boundaries

pytestmark = pytest.mark.kernels
EXACT = ("mask", "frame_to_chunk", "num_chunks")


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks small, so that an utterance, a window and a vocabulary have several of them."""
    from hmamba_asr.ops.segment import kernels as segment_kernels

    for name, size in (("BLOCK_V", 8), ("BLOCK_T", 16), ("PAIRS", 64)):
        monkeypatch.setattr(segment_kernels, name, size)


def both(novelty, lengths, device, **settings):
    """Return boundaries by the reference and by the kernel. Both are in float32, whose certainties are far
    from those of float64."""
    plain = select_boundaries(novelty, lengths, **settings, backend="reference")
    return plain, select_boundaries(novelty.to(device), lengths.to(device), **settings, backend="triton")


def assert_same(plain, fused):
    for name in EXACT:
        assert torch.equal(getattr(fused, name).cpu(), getattr(plain, name)), name
    for row, count in enumerate(plain.num_chunks.tolist()):
        assert fused.starts[row, :count].tolist() == plain.starts[row, :count].tolist()
        assert not fused.starts[row, count:].any()
    torch.testing.assert_close(fused.prob.cpu(), plain.prob, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        fused.scores.cpu(), plain.scores, rtol=1e-5, atol=1e-4
    )  # of logits up to 14 over spreads of 0.1


@pytest.mark.parametrize(
    ("window", "ratio", "per_label"),
    [
        (5, 1.5, 0.0),
        (5, 2.0, 1.1),
        (5, 3.0, 0.7),
        (16, 2.65, 0.0),
        (16, 1.5, 3.0),
        (40, 2.65, 0.0),
        (40, 2.0, 1.1),
    ],
)
def test_the_kernel_selects_as_the_plain_steps_do(window, ratio, per_label, device, small_blocks, poisoned):
    """Utterances have no frame, one frame, whole windows and a broken one. Novelties go from nothing to
    certainty, and some are equal."""
    torch.manual_seed(window)
    lengths = torch.tensor([0, 1, window, window + 1, 3 * window - 2])
    novelty = torch.rand(5, 3 * window) ** torch.tensor([1.0, 1.0, 8.0, 3.0, 0.2]).unsqueeze(1)
    novelty[2:] = torch.where(torch.rand(3, 3 * window) < 0.3, novelty[2:, :1], novelty[2:])
    novelty[3] = torch.where(torch.rand(3 * window) < 0.3, 0.0, novelty[3])
    novelty[4, ::7] = 1.0
    novelty = novelty * (torch.arange(3 * window) < lengths.unsqueeze(1))
    assert_same(
        *both(novelty, lengths, device, target_ratio=ratio, window=window, chunks_per_label=per_label)
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.sampled_from([4, 7]),
    st.sampled_from([1.0, 3.7]),
)
def test_equals_everywhere(device, tenths, window, ratio):
    """There are only ten values, so that mostly the earlier frame wins. On a GPU each window and ratio
    compiles anew, so there are two of each."""
    novelty = torch.tensor([tenths]) / 10
    assert_same(
        *both(
            novelty,
            torch.tensor([len(tenths)]),
            device,
            target_ratio=ratio,
            window=window,
            chunks_per_label=1.0,
        )
    )


@pytest.mark.parametrize("value", [0.0, 1e-7, 0.5, 1.0])
def test_frames_that_are_all_alike(value, device):
    novelty = torch.full((2, 25), value)
    novelty[1, 12:] = 0.0
    assert_same(
        *both(novelty, torch.tensor([25, 12]), device, target_ratio=2.5, window=10, chunks_per_label=1.1)
    )


def test_what_the_kernel_gives_an_utterance_does_not_depend_on_its_batch(device, small_blocks):
    torch.manual_seed(0)
    novelty, lengths = torch.rand(3, 60, device=device), torch.tensor([60, 33, 7], device=device)
    novelty *= torch.arange(60, device=device) < lengths.unsqueeze(1)
    settings = {"target_ratio": 2.0, "window": 20, "chunks_per_label": 1.0, "backend": "triton"}
    batch = select_boundaries(novelty, lengths, **settings)
    for row, n in enumerate(lengths.tolist()):
        alone = select_boundaries(novelty[row : row + 1, :n], lengths[row : row + 1], **settings)
        for name in ("scores", "prob", "mask", "frame_to_chunk", "starts"):
            assert torch.equal(getattr(batch, name)[row, :n], getattr(alone, name)[0]), name


def novelty_of(logits, lengths, backend, device="cpu"):
    """Return the novelty of logits, with a head that hands its input on."""
    weight = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return label_novelty(
        logits.to(device), weight.to(device), None, lengths.to(device), blank=2, backend=backend
    ).cpu()


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("vocab", [3, 21])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_novelty_of_labels(vocab, rows, scale, device, small_blocks, poisoned, monkeypatch):
    """The logits come row by row, in parts, or at once, and the CTC may be sure. Padding is not read."""
    for name in ("BLOCK", "GPU_BLOCK"):
        monkeypatch.setattr(segment, name, rows * vocab)
    torch.manual_seed(vocab)
    lengths = torch.tensor([13, 1, 6])
    logits = scale * torch.randn(3, 13, vocab)
    logits[0, 3:9] = logits[0, 3]  # a label that lasts
    for row, n in enumerate(lengths.tolist()):
        logits[row, n:] = float("nan")
    prob = logits.double().softmax(-1).index_fill(-1, torch.tensor(2), 0.0)
    expected = prob.sum(-1)
    expected[:, 1:] -= (prob[:, 1:] * prob[:, :-1]).sum(-1)
    expected = expected.clamp(segment.LEAST_NOVELTY, 1.0).nan_to_num(0.0)
    plain, fused = (
        novelty_of(logits.double(), lengths, "reference"),
        novelty_of(logits, lengths, "triton", device),
    )
    torch.testing.assert_close(plain, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fused.double(), expected, rtol=1e-5, atol=2e-6)


def test_a_blank_that_is_sure_leaves_novelties_their_digits(device):
    """Behind a blank stands a label of 2e-5. In float32 1 - P(blank) would keep two of its digits at most."""
    logits = torch.full((1, 2, 4), -40.0)
    logits[..., 1], logits[..., 2] = torch.tensor(2e-5 / (1 - 2e-5)).log(), 0.0
    for backend, where in (("reference", "cpu"), ("triton", device)):
        novelty = novelty_of(logits, torch.tensor([2]), backend, where)
        assert novelty[0, 0].item() == pytest.approx(2e-5, rel=1e-6)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_rounding_does_not_decide(backend, device):
    """39 frames with 1.3 in a chunk are 30 chunks, but 31 in float32. Ten novelties of 0.6 are six labels,
    but a bit more in float32."""
    device = device if backend == "triton" else torch.device("cpu")
    novelty = torch.rand(1, 39, device=device)
    settings = {"window": 50, "backend": backend}
    assert select_boundaries(
        novelty, torch.tensor([39], device=device), target_ratio=1.3, **settings
    ).num_chunks.tolist() == [30]
    labels = torch.full((2, 10), 0.6, device=device)
    labels[1] += 0.004  # which is more
    lengths = torch.tensor([10, 10], device=device)
    num_chunks = select_boundaries(
        labels, lengths, target_ratio=2.0, chunks_per_label=1.0, **settings
    ).num_chunks
    assert num_chunks.tolist() == [6, 7]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_padding_is_not_read(backend, device):
    device = device if backend == "triton" else torch.device("cpu")
    novelty, lengths = torch.rand(2, 20, device=device).T.contiguous().T, torch.tensor([20, 9], device=device)
    settings = {"target_ratio": 2.0, "window": 8, "chunks_per_label": 1.0, "backend": backend}
    clean = select_boundaries(novelty, lengths, **settings)
    novelty[1, 9:] = float("nan")
    dirty = select_boundaries(novelty, lengths, **settings)
    for name in ("prob", "scores", *EXACT):
        assert torch.equal(getattr(dirty, name), getattr(clean, name)), name


def test_a_blank_counted_from_the_end(device):
    logits, lengths = torch.randn(2, 5, 6), torch.tensor([5, 2])
    for backend in ("reference", "triton"):
        first, last = (
            label_novelty(
                logits.to(device),
                torch.eye(6, device=device),
                None,
                lengths.to(device),
                blank=blank,
                backend=backend,
            )
            for blank in (5, -1)
        )
        assert torch.equal(first, last)


def test_no_utterances():
    none = torch.zeros(0, dtype=torch.long)
    novelty = label_novelty(torch.zeros(0, 7, 3), torch.eye(3), None, none, blank=0)
    found = select_boundaries(novelty, none, target_ratio=2.0, window=4, chunks_per_label=1.0)
    assert novelty.shape == found.mask.shape == (0, 7) and found.num_chunks.shape == (0,)


def test_positions_by_hand():
    index, frames, num_chunks = positions(
        torch.tensor([[True, False, True, True], [False, False, False, False]])
    )
    assert index.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0]] and frames.tolist() == [[0, 2, 3, 0], [0, 0, 0, 0]]
    assert num_chunks.tolist() == [3, 0]


def test_what_is_no_number_is_not_new(device, small_blocks):
    torch.manual_seed(0)
    novelty, lengths = torch.rand(2, 30), torch.tensor([30, 17])
    novelty[0, [0, 5, 6, 29]] = float("nan")
    settings = {"target_ratio": 2.0, "window": 10, "chunks_per_label": 1.1}
    plain, fused = both(novelty, lengths, device, **settings)
    assert_same(plain, fused)
    assert torch.equal(
        plain.mask, select_boundaries(novelty.nan_to_num(0.0), lengths, **settings, backend="reference").mask
    )
    assert plain.mask[0, 0] and not plain.mask[0, [5, 6, 29]].any()
    logits = torch.randn(1, 6, 5)
    logits[0, 2, 1] = float("nan")
    for backend in ("reference", "triton"):
        found = novelty_of(logits, torch.tensor([6]), backend, device)[0]
        assert (
            found[2:4].tolist() == [pytest.approx(segment.LEAST_NOVELTY)] * 2
            and (found[[1, 4, 5]] > 0.1).all()
        )


def test_novelty_of_half_precision_is_float32(device, small_blocks):
    logits, lengths = 8 * torch.randn(2, 9, 21), torch.tensor([9, 4])
    rounded = logits.bfloat16()
    expected = novelty_of(rounded.float(), lengths, "reference")
    for backend in ("reference", "triton"):
        found = novelty_of(rounded, lengths, backend, device)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_novelty_by_the_kernel_does_not_depend_on_the_batch(device, small_blocks):
    torch.manual_seed(0)
    logits, lengths = 3 * torch.randn(3, 12, 21), torch.tensor([12, 1, 7])
    together = novelty_of(logits, lengths, "triton", device)
    for row, n in enumerate(lengths.tolist()):
        alone = novelty_of(logits[row : row + 1, :n], lengths[row : row + 1], "triton", device)
        assert torch.equal(together[row, :n], alone[0]) and not together[row, n:].any()


def test_no_frames():
    for window in (None, 4):
        found = select_boundaries(torch.zeros(2, 0), torch.tensor([0, 0]), target_ratio=2.0, window=window)
        assert found.mask.shape == (2, 0) and found.num_chunks.tolist() == [0, 0]


def test_bad_requests_are_one_sentence(device):
    novelty, lengths = torch.rand(1, 8), torch.tensor([8])
    with pytest.raises(
        ValueError, match="select_boundaries backend 'fast' is unknown; choose one of auto, reference, triton"
    ):
        select_boundaries(novelty, lengths, target_ratio=2, window=4, backend="fast")
    for bad in (None, 513):
        with pytest.raises(ValueError, match=f"needs a window of at most 512 frames, not {bad};"):
            select_boundaries(novelty, lengths, target_ratio=2, window=bad, backend="triton")
    with pytest.raises(ValueError, match="no float64; use backend 'reference'"):
        novelty_of(torch.zeros(1, 1, 3).double(), lengths, "triton", device)
