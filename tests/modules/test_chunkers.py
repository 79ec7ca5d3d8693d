"""Chunking: known boundaries, round trips, independence of padding and batch mates, the ratio loss, odd
input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.nnet.linear import Linear
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hmamba_asr.modules.chunk_ops import dechunk, gather_chunks, ratio_loss, smooth_chunks, with_at_least
from hmamba_asr.modules.chunkers import CTCChunker, DynamicChunker, FixedStrideChunker, HNetChunker
from hmamba_asr.ops.dispatch import unavailable_reason

LENGTHS = torch.tensor([19, 1, 8, 0])
D = 6


def frames(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.randn(len(LENGTHS), 23, D, dtype=dtype)


def chunkers(device="cpu"):
    torch.manual_seed(3)
    dynamic = DynamicChunker(d_model=D, target_ratio=2.5)
    hnet = HNetChunker(d_model=D, target_ratio=2.5)
    windowed = DynamicChunker(d_model=D, target_ratio=2.5, window=5)
    for chunker in (dynamic, hnet, windowed):
        torch.nn.init.normal_(chunker.query.weight)
    strides = [FixedStrideChunker(stride=2.5), FixedStrideChunker(stride=3, pooling="mean")]
    head = Linear(n_neurons=7, input_size=D).to(device)  # no submodule of the chunkers
    ctc = [
        CTCChunker(ctc_head=head, target_ratio=2.5, window=5, chunks_per_label=floor) for floor in (0.0, 1.1)
    ]
    return [chunker.to(device) for chunker in (dynamic, hnet, windowed, *strides, *ctc)]


def spikes(*labels, vocab=4, sure=30.0):
    """A chunker whose head gives the frames themselves as logits, and frames that are sure of these
    labels."""
    head = Linear(n_neurons=vocab, input_size=vocab)
    torch.nn.init.eye_(head.w.weight)
    torch.nn.init.zeros_(head.w.bias)
    return head, sure * torch.nn.functional.one_hot(torch.tensor(labels), vocab).double().unsqueeze(0)


def test_known_boundaries():
    """Two directions at right angles, then opposite ones: cosines 1, 0, 1, -1 make p = 0, 1/2, 0, 1."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    x = torch.stack([a, a, b, b, -b]).unsqueeze(0)
    out = HNetChunker(d_model=2, target_ratio=2)(x, torch.tensor([5]))
    assert out.boundary_prob.tolist() == [[1.0, 0.0, 0.5, 0.0, 1.0]]
    assert out.boundary_mask.tolist() == [[True, False, True, False, True]]
    assert out.frame_to_chunk.tolist() == [[0, 0, 1, 1, 2]] and out.chunk_frames.tolist() == [[0, 2, 4]]
    assert torch.equal(out.chunks, torch.stack([a, b, -b]).unsqueeze(0)) and out.chunk_lengths.tolist() == [3]


def test_a_budget_by_hand():
    """Four frames, the last a repetition, and padding. Contrasts are those to the mean (1, 1), as all frames
    are near."""
    contrasts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.5, -0.5], [-0.5, -0.5]], dtype=torch.float64)
    x = torch.cat([contrasts + 1.0, torch.full((1, 2), 7.0)]).unsqueeze(0)
    lengths = torch.tensor([4])
    # Cosines 0 and -1/sqrt(2): of the scores -z and z the second is inside the budget of two chunks, with the
    # threshold at 0.
    logits = [math.log(d / (1 - d)) for d in (0.5, (1 + 0.5**0.5) / 2)]
    spread = (logits[1] - logits[0]) / 2
    z = 2 * spread / (spread**2 + 0.1**2) ** 0.5
    out = DynamicChunker(d_model=2, target_ratio=2).double()(x, lengths)
    expected = [1.0, *(1 / (1 + math.exp(-score)) for score in (-z, z)), 0.0, 0.0]
    assert out.boundary_prob[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert out.chunk_frames[0, :2].tolist() == [
        0,
        2,
    ] and out.chosen.tolist() == out.chunk_lengths.tolist() == [2]
    # The first frame weighs as if it stood one standard deviation above the mean.
    weights = [math.exp(2.0), math.exp(-z)]
    torch.testing.assert_close(out.chunks[0, 0], (weights[0] * x[0, 0] + weights[1] * x[0, 1]) / sum(weights))
    torch.testing.assert_close(out.chunks[0, 1], x[0, 2])
    for ratio, kept in (
        (4, [0]),
        (4 / 3, [0, 1, 2]),
        (1.01, [0, 1, 2]),
    ):  # the repetition is never a boundary
        out = DynamicChunker(d_model=2, target_ratio=ratio).double()(x, lengths)
        assert out.chunk_frames[0, : out.chunk_lengths[0]].tolist() == kept


@pytest.mark.parametrize("window", [None, 4])
def test_of_equals_the_earlier_ones_begin_chunks(window):
    """Twelve frames of two kinds in turn: all contrasts' angles are the same to the bit, and the budget holds
    all the same."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(6, 1).unsqueeze(0)
    chunker = DynamicChunker(d_model=2, target_ratio=2, window=window)
    chunker.dissimilarity = lambda contrasts: torch.full(contrasts.shape[:2], 0.3, dtype=contrasts.dtype)[
        :, 1:
    ]
    out = chunker(x, torch.tensor([12]))
    expected = [0, 1, 2, 3, 4, 5] if window is None else [0, 1, 4, 5, 8, 9]
    assert (
        out.boundary_mask[0].nonzero().flatten().tolist() == expected
        and out.chunk_frames[0].tolist() == expected
    )


@pytest.mark.parametrize("index", [0, 2, 3, 4, 5])
def test_nothing_waits_for_a_gpu_to_count(index):
    """Of fake tensors there are only shapes: whoever asked for a value would fail. The widths are those of
    the real ones."""
    made, x = chunkers(), frames()
    chunker = made[index]
    real = chunker(x, LENGTHS)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = chunker(mode.from_tensor(x), mode.from_tensor(LENGTHS))
    assert fake.chunks.shape == real.chunks.shape and fake.boundary_mask.shape == real.boundary_mask.shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(DataDependentOutputException):
        chunker(
            mode.from_tensor(x), mode.from_tensor(LENGTHS), mode.from_tensor(LENGTHS)
        )  # a floor has to count
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(DataDependentOutputException):
        made[6](mode.from_tensor(x), mode.from_tensor(LENGTHS))  # and one of labels as well


def test_what_all_frames_share_decides_nothing():
    """Not even when the projections differ, which turns a shared part into an angle that is the same
    everywhere."""
    torch.manual_seed(0)
    x, lengths = torch.randn(2, 80, D, dtype=torch.float64), torch.tensor([80, 43])
    chunker = DynamicChunker(d_model=D, target_ratio=2).double()
    torch.nn.init.normal_(chunker.key.weight)
    shifted = chunker(x + 100.0 * torch.randn(D, dtype=torch.float64), lengths)
    assert torch.equal(chunker(x, lengths).boundary_mask, shifted.boundary_mask)


@pytest.mark.parametrize("window", [None, 6, 16])
@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.0, 6.0])
def test_a_router_keeps_what_it_should_whatever_it_has_learned(ratio, window):
    """Also where neighbours are alike but for a little noise, and where the projections turn them away from
    each other."""
    torch.manual_seed(0)
    lengths = torch.tensor([200, 77, 5, 1])
    for noise in (0.01, 1.0):
        for weight in (None, 1.0, -1.0):
            x = (torch.randn(4, 1, 64) + noise * torch.randn(4, 200, 64)).double()  # without ties
            chunker = DynamicChunker(d_model=64, target_ratio=ratio, window=window).double()
            if weight is not None:
                torch.nn.init.normal_(chunker.query.weight)
                chunker.key.weight.data *= weight
            assert torch.equal(chunker(x, lengths).chosen, (lengths / ratio).ceil().long())


def test_every_window_gets_its_part():
    """Though all the differences are at the end: 12 frames of which the last 4 alone move fast."""
    angles = torch.cat([0.01 * torch.arange(8), torch.tensor([0.5, 1.5, 3.0, 5.0])])
    x = torch.stack([angles.cos(), angles.sin()], -1).double().unsqueeze(0)
    x[0, 1:8] += 1e-3 * torch.randn(7, 2, generator=torch.Generator().manual_seed(0))  # without ties
    whole, parts = (
        DynamicChunker(d_model=2, target_ratio=2, window=window)(x, torch.tensor([12]))
        for window in (None, 4)
    )
    assert [int(part.sum()) for part in whole.boundary_mask[0].split(4)] == [1, 1, 4]
    assert [int(part.sum()) for part in parts.boundary_mask[0].split(4)] == [2, 2, 2]
    assert torch.equal(parts.boundary_mask, parts.boundary_prob >= 0.5)
    short = DynamicChunker(d_model=2, target_ratio=2, window=4)(x, torch.tensor([9]))
    assert [int(part.sum()) for part in short.boundary_mask[0].split(4)] == [2, 2, 1]


def test_labels_begin_chunks():
    """Not blanks after them, nor the frames on which they last; a label right after another one does. What is
    left of the budget goes to blanks, of equals to the earlier ones."""
    head, x = spikes(0, 0, 1, 0, 0, 2, 2, 3, 0, 0, 1, 0)
    out = CTCChunker(ctc_head=head, target_ratio=2)(x, torch.tensor([12]))
    assert out.chunk_frames.tolist() == [[0, 1, 2, 5, 7, 10]]
    out = CTCChunker(ctc_head=head, target_ratio=3)(x, torch.tensor([9]))
    assert out.chunk_frames[0, :3].tolist() == [0, 2, 5] and out.chunk_lengths.tolist() == [3]


@pytest.mark.parametrize("sure", [10.0, 14.0, 16.0, 30.0])
def test_a_spike_outweighs_the_blanks_of_its_chunk(sure):
    """However sure the CTC is of them: also where their probability of being new is lost in rounding."""
    head, x = spikes(0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, sure=sure)
    out = CTCChunker(ctc_head=head, target_ratio=3)(x.float(), torch.tensor([12]))
    assert out.chunk_frames[0].tolist() == [0, 2, 6, 10]
    shares = out.chunks[0, 1:, 1:].sum(-1) / sure
    assert (shares > 0.9).all()


def test_novelty_by_hand():
    """The probability that a label begins, summed over all pairs of what two frames may say; the blank is the
    third label."""
    torch.manual_seed(0)
    head, x = Linear(n_neurons=5, input_size=D), torch.randn(2, 4, D)
    chunker = CTCChunker(ctc_head=head, target_ratio=2, blank_index=2)
    prob = head(x).softmax(-1)
    expected = torch.zeros(2, 4)
    expected[:, 0] = 1 - prob[:, 0, 2]
    for now in (0, 1, 3, 4):
        for before in range(5):
            if now != before:
                expected[:, 1:] += prob[:, 1:, now] * prob[:, :-1, before]
    expected[1, 2:] = 0.0
    novelty = chunker.novelty(x, torch.tensor([4, 2]))
    torch.testing.assert_close(novelty, expected)
    assert not novelty.requires_grad and list(chunker.parameters()) == []


@pytest.mark.parametrize("sure", [9.0, 30.0])
@pytest.mark.parametrize("labels_first", [True, False])
@pytest.mark.parametrize("window", [9, None])
def test_fast_speech_gets_chunks_for_its_labels(sure, labels_first, window):
    """Nine frames with four labels, nine of silence before or after them: of either a third are three
    chunks."""
    fast, slow = [1, 2, 0, 3, 0, 1, 0, 0, 0], [0] * 9
    head, x = spikes(*(fast + slow if labels_first else slow + fast), sure=sure)
    lengths, padded = torch.tensor([18]), torch.nn.functional.pad(x, (0, 0, 0, 5), value=9.0)
    without, given = (
        CTCChunker(ctc_head=head, target_ratio=3, chunks_per_label=n, window=window) for n in (0.0, 1.0)
    )
    assert without(x, lengths).chosen.tolist() == [6]
    out = given(padded, lengths)
    assert (
        torch.equal(out.boundary_mask[:, :18], given(x, lengths).boundary_mask)
        and not out.boundary_mask[:, 18:].any()
    )
    assert (
        out.chosen.tolist() == out.chunk_lengths.tolist() == [7 if window else 6]
    )  # where there is one window, 6 are enough
    begun = [frame + (0 if labels_first else 9) for frame in (0, 1, 3, 5)]
    assert out.boundary_mask[0, begun].all()
    if window:
        each = [int(part.sum()) for part in out.boundary_mask[0, :18].split(9)]
        assert each == ([4, 3] if labels_first else [3, 4])


def test_an_untrained_ctc_gets_no_more_than_half_as_much_again():
    x, lengths = frames(), torch.tensor([18, 1, 8, 0])
    head = Linear(n_neurons=50, input_size=D)
    torch.nn.init.zeros_(head.w.weight)
    torch.nn.init.zeros_(head.w.bias)
    out = CTCChunker(ctc_head=head, target_ratio=3, chunks_per_label=1.1)(x, lengths)
    assert out.chosen.tolist() == [9, 1, 5, 0]


def test_recognition_teaches_the_router():
    x = frames().requires_grad_()
    chunker = chunkers()[0]
    loss = chunker(x, LENGTHS).chunks.pow(2).sum()
    for grad in torch.autograd.grad(loss, [x, chunker.query.weight, chunker.key.weight]):
        assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5, 6])
def test_batch_equals_utterances_alone(index):
    chunker, x = chunkers()[index].double(), frames(torch.float64)
    for row, n in enumerate(LENGTHS.tolist()):
        x[row, n:] = float("nan")
    batch = chunker(x, LENGTHS)
    for row, n in enumerate(LENGTHS.tolist()):
        alone = chunker(x[row : row + 1, : max(n, 1)], LENGTHS[row : row + 1])
        count = int(alone.chunk_lengths)
        assert int(batch.chunk_lengths[row]) == count
        torch.testing.assert_close(batch.chunks[row, :count], alone.chunks[0, :count])
        assert not batch.chunks[row, count:].any() and not batch.boundary_prob[row, n:].any()
        torch.testing.assert_close(batch.boundary_prob[row, :n], alone.boundary_prob[0, :n])
        assert int(batch.chosen[row]) == int(alone.chosen)
        again = dechunk(smooth_chunks(batch.chunks, batch), batch, LENGTHS)[row]
        torch.testing.assert_close(
            again[:n], dechunk(smooth_chunks(alone.chunks, alone), alone, LENGTHS[row : row + 1])[0, :n]
        )
        assert not again[n:].any()


@pytest.mark.parametrize("index", [4, 5, 6])
@pytest.mark.parametrize("floor", [None, [12, 1, 5, 0]])
def test_kernels_find_the_same_chunks(index, floor):
    """In an encoder's hands, with a floor that some utterances need; and the same gradient flows back."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := unavailable_reason(device):
        pytest.skip(reason)
    chunker, lengths = chunkers(device)[index], LENGTHS.to(device)
    floor = None if floor is None else torch.tensor(floor, device=device)
    found = []
    for backend in ("reference", "triton"):
        x, chunker.backend = frames().to(device).requires_grad_(), backend
        out = chunker(x, lengths, floor)
        weights = torch.arange(out.chunks.numel(), device=device).view(out.chunks.shape) % 7
        found.append((out, torch.autograd.grad((out.chunks * weights).sum(), x)[0]))
    (plain, plain_grad), (fused, fused_grad) = found
    for name in ("boundary_mask", "chunk_lengths", "chunk_frames", "frame_to_chunk", "chosen"):
        assert torch.equal(getattr(fused, name), getattr(plain, name)), name
    torch.testing.assert_close(fused.boundary_prob, plain.boundary_prob, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused.chunks, plain.chunks, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused_grad, plain_grad, rtol=1e-4, atol=1e-5)


def test_kernels_choose_for_a_router_that_is_not_trained():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := unavailable_reason(device):
        pytest.skip(reason)
    chunker, found = chunkers(device)[2], []
    for chunker.backend in ("reference", "triton"):
        with torch.no_grad():
            found.append(chunker(frames().to(device), LENGTHS.to(device)))
    assert torch.equal(found[0].boundary_mask, found[1].boundary_mask)
    torch.testing.assert_close(found[1].chunks, found[0].chunks, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [0, 2, 5])
def test_compiled_chunks_are_the_same(index):
    """In one graph for all lengths, where nothing has to be counted; and around the kernels."""
    torch._dynamo.reset()
    chunker = chunkers()[index]
    compiled = torch.compile(chunker, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (23, 31):
        x = torch.randn(4, length, D)
        torch.testing.assert_close(compiled(x, LENGTHS).chunks, chunker(x, LENGTHS).chunks)
    if index == 5 and unavailable_reason(torch.device("cpu")) is None:
        chunker.backend = "triton"
        torch._dynamo.reset()
        with torch.no_grad():
            found = torch.compile(chunker, backend="aot_eager")(frames(), LENGTHS).chunks
            torch.testing.assert_close(found, chunker(frames(), LENGTHS).chunks)


class Counting(TorchDispatchMode):
    """Counts kernels launched and PyTorch's operations, but for those that only allocate or look at memory in
    another way."""

    operations = launches = 0
    inside = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        free = function.is_view or "empty" in function.__name__ or "detach" in function.__name__
        self.operations += not (free or self.inside)
        return function(*args, **(kwargs or {}))

    def counted(self, launch):
        def run(*inputs, **options):
            self.launches, self.inside = self.launches + 1, True
            launch(*inputs, **options)
            self.inside = False

        return run


def test_kernels_are_few_launches(monkeypatch):
    """A slow host makes a GPU wait for each. Beside the kernels there are a product, zeros, and the count
    that is waited for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := unavailable_reason(device):
        pytest.skip(reason)
    from hmamba_asr.ops import launch
    from hmamba_asr.ops.segment import kernels as boundaries_triton
    from hmamba_asr.ops.segment import pooling_kernels as pooling_triton

    chunker, x, lengths, found = chunkers(device)[6], frames().to(device), LENGTHS.to(device), {}
    for backend in ("reference", "triton"):
        chunker.backend = backend
        with Counting() as counting, torch.no_grad():
            for module in (boundaries_triton, pooling_triton):
                monkeypatch.setattr(module, "launch", counting.counted(launch.launch))
            chunker(x, lengths)
        found[backend] = counting
    assert found["triton"].launches == 3 and found["triton"].operations <= 4  # with the copy of the count
    assert found["reference"].launches == 0 and found["reference"].operations > 100


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 12), data=st.data())
def test_chunks_are_the_frames_at_the_boundaries(length, data):
    mask = torch.tensor(
        [[True, *data.draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]]
    )
    x = torch.randn(1, length, 2)
    out = gather_chunks(x, mask.float(), mask)
    places = mask[0].nonzero().flatten()
    assert torch.equal(out.chunks[0], x[0, places]) and torch.equal(out.chunk_frames[0], places)
    assert torch.equal(
        x[0, places][out.frame_to_chunk[0]], dechunk(out.chunks, out, torch.tensor([length]))[0]
    )


def test_all_boundaries_and_back_is_the_identity():
    x = frames()
    for chunker in (DynamicChunker(d_model=D, target_ratio=1), FixedStrideChunker(stride=1)):
        out = chunker(x, LENGTHS)
        assert torch.equal(out.chunk_lengths, LENGTHS) and torch.equal(out.chosen, LENGTHS)
        back = dechunk(smooth_chunks(out.chunks, out), out, LENGTHS)
        for row, n in enumerate(LENGTHS.tolist()):
            assert torch.equal(back[row, :n], x[row, :n]) and not back[row, n:].any()


@pytest.mark.parametrize(
    ("stride", "begins"), [(2, [0, 2, 4, 6]), (2.5, [0, 3, 5]), (3, [0, 3, 6]), (100, [0])]
)
def test_fixed_stride(stride, begins):
    out = FixedStrideChunker(stride=stride)(torch.randn(1, 7, 2), torch.tensor([7]))
    assert out.chunk_frames[0].tolist() == begins


def test_mean_pooling():
    x = torch.tensor([[[1.0], [3.0], [5.0], [9.0], [7.0], [float("nan")]]])
    out = FixedStrideChunker(stride=2, pooling="mean")(x, torch.tensor([5]))
    assert out.chunks.flatten().tolist() == [2.0, 7.0, 7.0]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_input_is_one_chunk(value):
    """Digital silence, or any constant: every cosine is one, also where the norm is zero."""
    for chunker in (DynamicChunker, HNetChunker):
        out = chunker(d_model=D, target_ratio=2)(torch.full((1, 9, D), value), torch.tensor([9]))
        assert out.chunk_lengths.tolist() == [1] and out.boundary_prob[0, 1:].max() < 1e-4


def test_floor():
    """The most probable frames fill up, earlier ones first; boundaries stay; a short utterance gives all it
    has."""
    prob = torch.tensor([[1.0, 0.1, 0.6, 0.4, 0.4, 0.9], [1.0, 0.2, 0.3, 0.0, 0.0, 0.0]])
    mask = (prob >= 0.5) & torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    lengths = torch.tensor([6, 3])
    filled = with_at_least(prob, mask, lengths, torch.tensor([4, 5]))
    assert filled.tolist() == [
        [True, False, True, True, False, True],
        [True, True, True, False, False, False],
    ]
    assert with_at_least(prob, mask, lengths, torch.tensor([2, 1])) is mask


def test_a_floor_adds_no_more_than_it_must():
    """Also where frames that are not chosen equal those that are; what is no number comes last."""
    rank, mask = (
        torch.full((1, 8), 0.5),
        torch.tensor([[True, False, False, True, False, True, False, False]]),
    )
    rank[0, 1] = float("nan")
    filled = with_at_least(rank, mask, torch.tensor([8]), torch.tensor([5]))
    assert filled.tolist() == [[True, False, True, True, True, True, False, False]]


@pytest.mark.parametrize(
    ("stride", "floor", "gaps"), [(3, 26, {2, 3}), (2.63, 40, {1, 2}), (10, 60, {1}), (10, 99, {1})]
)
def test_a_floor_shortens_all_of_a_strides_chunks_alike(stride, floor, gaps):
    lengths = torch.tensor([60, 60])
    out = FixedStrideChunker(stride=stride)(torch.randn(2, 64, D), lengths, torch.tensor([floor, 1]))
    plain = FixedStrideChunker(stride=stride)(torch.randn(2, 64, D), lengths)
    begins = out.chunk_frames[0, : out.chunk_lengths[0]]
    assert begins[0] == 0 and len(begins) == min(60, floor) and set(begins.diff().tolist()) == gaps
    assert torch.equal(out.boundary_mask[1], plain.boundary_mask[1]) and torch.equal(
        out.chosen, plain.chunk_lengths
    )


def test_a_floor_makes_room_for_labels_in_the_window_that_has_them():
    """Ten frames of silence, eight labels in ten frames, ten frames of silence."""
    head, x = spikes(*[0] * 10, 1, 2, 3, 1, 2, 3, 0, 1, 2, 0, *[0] * 10)
    chunker = CTCChunker(ctc_head=head, target_ratio=3.0, window=10)
    out = chunker(x, torch.tensor([30]), torch.tensor([16]))
    per_window = out.boundary_mask[0].view(3, 10).sum(1).tolist()
    assert sum(per_window) == 16 and per_window[1] >= 8 and out.chosen.tolist() == [10]


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5, 6])
def test_a_frame_that_is_no_number_stays_in_its_utterance(index, backend):
    """It does not end a run, whose loss is to name the utterance."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if backend == "triton" and (index < 4 or unavailable_reason(device)):
        pytest.skip("no kernel runs")
    chunker, lengths = chunkers(device)[index], LENGTHS.to(device)
    if hasattr(chunker, "backend"):
        chunker.backend = backend
    x = frames().to(device)
    expected = chunker(x, lengths).boundary_mask
    x[0, 7] = float("nan")
    for floor in (None, torch.tensor([12, 1, 5, 0], device=device)):
        out = chunker(x, lengths, floor)
        assert out.boundary_mask[0, 0] and 1 <= out.chunk_lengths[0] <= 19
        assert out.chunks[1:].isfinite().all()
        if isinstance(chunker, CTCChunker):  # whose chunks' means leave no frame out
            assert out.chunks[0].isnan().any()
    assert torch.equal(chunker(x, lengths).boundary_mask[1:], expected[1:])


def test_floor_does_not_depend_on_padding():
    chunker, x = FixedStrideChunker(stride=50), torch.randn(1, 9, D)
    short = chunker(x, torch.tensor([9]), torch.tensor([5]))
    padded = chunker(torch.nn.functional.pad(x, (0, 0, 0, 30)), torch.tensor([9]), torch.tensor([5]))
    assert torch.equal(short.chunk_frames, padded.chunk_frames) and short.chunk_lengths.tolist() == [5]


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
    before = chunker(x, lengths).boundary_prob.mean()
    assert (before < 0.45) if sign == 1 else (before > 0.55)
    optimizer = torch.optim.SGD(chunker.parameters(), lr=0.05)
    for _ in range(30):
        out = chunker(x, lengths)
        optimizer.zero_grad()
        ratio_loss(out.chosen / 60, out.boundary_prob.mean(1), target_ratio=2).sum().backward()
        optimizer.step()
    after = chunker(x, lengths).boundary_prob.mean()
    assert sign * (after - before) > 0.01


def test_gradients_reach_hnets_router():
    """H-Net's: through smoothing and the straight-through estimator, and through the ratio loss."""
    x = frames().requires_grad_()
    chunker = HNetChunker(d_model=D, target_ratio=2.5)
    torch.nn.init.normal_(chunker.query.weight)
    out = chunker(x, LENGTHS)
    for loss in (
        dechunk(smooth_chunks(out.chunks.detach(), out), out, LENGTHS).pow(2).sum(),
        smooth_chunks(out.chunks.detach(), out).pow(2).sum(),
        ratio_loss(out.chosen / LENGTHS.clamp(min=1), out.boundary_prob.mean(1), target_ratio=2.5).sum(),
    ):
        for grad in torch.autograd.grad(loss, [chunker.query.weight, chunker.key.weight], retain_graph=True):
            assert grad.isfinite().all() and grad.abs().max() > 0


@pytest.mark.parametrize("index", [0, 1, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decides_in_float32(dtype, index):
    x = frames().to(dtype)
    chunker = chunkers()[index]
    out, exact = chunker(x, LENGTHS), chunker(x.float(), LENGTHS)
    assert out.chunks.dtype == dtype and out.boundary_prob.dtype == torch.float32
    assert torch.equal(out.boundary_mask, exact.boundary_mask)


def test_every_frame_a_boundary():
    """Neighbours that point in opposite directions: p = 1 everywhere, all are kept and smoothing changes
    none."""
    x = torch.randn(1, 1, D).expand(2, 8, D) * torch.tensor([1.0, -1.0]).repeat(4).view(1, 8, 1)
    lengths = torch.tensor([8, 5])
    out = HNetChunker(d_model=D, target_ratio=2)(x, lengths)
    assert out.chunk_lengths.tolist() == [8, 5] and out.frame_to_chunk[0].tolist() == list(range(8))
    torch.testing.assert_close(
        smooth_chunks(out.chunks, out)[1, :5], x[1, :5], rtol=0, atol=1e-3
    )  # p within 1e-4 of 1


@pytest.mark.parametrize("x", [torch.zeros(2, 7, D), torch.ones(2, 7, D)], ids=["silence", "constant"])
def test_input_without_any_difference_has_finite_gradients(x):
    """Where all cosines are one or undefined, in an utterance of seven frames and one of a single frame."""
    x = x.clone().requires_grad_()
    chunker, lengths = DynamicChunker(d_model=D, target_ratio=2), torch.tensor([7, 1])
    out = chunker(x, lengths)
    assert out.chunk_lengths.tolist() == [1, 1]
    loss = dechunk(smooth_chunks(out.chunks, out), out, lengths).sum() + out.boundary_prob.sum()
    for grad in torch.autograd.grad(loss, [x, chunker.query.weight, chunker.key.weight]):
        assert grad.isfinite().all()


def test_a_floor_is_not_the_routers_choice():
    x, lengths = torch.ones(2, 9, D), torch.tensor([9, 4])
    out = DynamicChunker(d_model=D, target_ratio=2)(x, lengths, torch.tensor([6, 9]))
    assert out.chunk_lengths.tolist() == [6, 4] and out.chosen.tolist() == [1, 1]


def test_bad_settings():
    head = Linear(n_neurons=7, input_size=D)
    with pytest.raises(ValueError, match="chunks_per_label must be 0"):
        CTCChunker(ctc_head=head, target_ratio=2, chunks_per_label=-1)
    with pytest.raises(ValueError, match="window must be target_ratio = 4"):
        CTCChunker(ctc_head=head, target_ratio=4, window=3)
    for chunker in (DynamicChunker, HNetChunker):
        with pytest.raises(ValueError, match="target_ratio must be 1 frame in a chunk or more, not 0.5"):
            chunker(d_model=2, target_ratio=0.5)
        with pytest.raises(ValueError, match="lr_multiplier must be above 0, not 0"):
            chunker(d_model=2, target_ratio=2, lr_multiplier=0)
    with pytest.raises(ValueError, match="window must be target_ratio = 3 whole frames or more .* not 2"):
        DynamicChunker(d_model=2, target_ratio=3, window=2)
    with pytest.raises(ValueError, match="window must be target_ratio = 4 whole frames"):
        CTCChunker(ctc_head=head, target_ratio=4, window=20.5)
    for bad in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"stride must be 1 frame or more, not {bad}"):
            FixedStrideChunker(stride=bad)
        with pytest.raises(ValueError, match=f"target_ratio must be 1 frame in a chunk or more, not {bad}"):
            CTCChunker(ctc_head=head, target_ratio=bad)
    with pytest.raises(ValueError, match="blank is 7, and the head has the labels 0 to 6"):
        CTCChunker(ctc_head=head, target_ratio=2, blank_index=7)(torch.randn(1, 5, D), torch.tensor([5]))
    with pytest.raises(ValueError, match="pooling 'max' is unknown; choose first or mean"):
        FixedStrideChunker(stride=2, pooling="max")
