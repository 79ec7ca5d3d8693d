"""Chunkers: known boundaries, round trips, independence of padding and batch mates, kernels, odd input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.nnet.linear import Linear
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hmamba_asr.hnet.dechunking import smooth_chunks, upsample_chunks
from hmamba_asr.hnet.router import HNetChunker
from hmamba_asr.modules.chunk_ops import add_boundaries, gather_chunks
from hmamba_asr.modules.chunkers import CTCChunker, FixedStrideChunker
from hmamba_asr.ops.dispatch import unavailable_reason

LENGTHS = torch.tensor([19, 1, 8, 0])
D = 6


def frames(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.randn(len(LENGTHS), 23, D, dtype=dtype)


def made(name, device="cpu"):
    """Return a chunker whose router, if it has one, is not the identity, as after training."""
    torch.manual_seed(3)
    chunker = {
        "ctc": lambda: CTCChunker(target_ratio=2.5),
        "ctc windows": lambda: CTCChunker(target_ratio=2.5, window=5),
        "ctc labels": lambda: CTCChunker(target_ratio=2.5, window=5, chunks_per_label=1.1),
        "hnet": lambda: HNetChunker(d_model=D, target_ratio=2.5),
        "stride": lambda: FixedStrideChunker(stride=2.5),
        "stride means": lambda: FixedStrideChunker(stride=3, pooling="mean"),
    }[name]()
    if chunker.has_router:
        torch.nn.init.normal_(chunker.query.weight)
    return chunker.to(device)


CASES = ["ctc", "ctc windows", "ctc labels", "hnet", "stride", "stride means"]
BY_KERNEL = ["ctc windows", "ctc labels", "stride means"]


def head_on(device="cpu"):
    """Return the CTC head that is handed to every chunker."""
    torch.manual_seed(4)
    return Linear(n_neurons=7, input_size=D).to(device)


def call(chunker, x, lengths, floor=None, head=None):
    return chunker(x, lengths, floor, head or head_on(x.device))


def told(novelty, **options):
    """Return a CTCChunker with this novelty (T,) of the first frames, and none of those behind."""
    chunker = CTCChunker(**options)
    novelty = torch.tensor(novelty, dtype=torch.float64)
    chunker.novelty = lambda x, lengths, head: torch.nn.functional.pad(
        novelty[: x.shape[1]], (0, max(0, x.shape[1] - len(novelty)))
    ).expand(len(x), -1)
    return chunker


def spikes(*labels, vocab=4, sure=30.0):
    """Return a head that gives the frames themselves as logits, and frames that are sure of these labels."""
    head = Linear(n_neurons=vocab, input_size=vocab)
    torch.nn.init.eye_(head.w.weight)
    torch.nn.init.zeros_(head.w.bias)
    return head, sure * torch.nn.functional.one_hot(torch.tensor(labels), vocab).double().unsqueeze(0)


def test_a_budget_by_hand():
    """Four frames, the last one not new at all, and padding."""
    x = torch.tensor([[2.0, 1.0], [1.0, 2.0], [0.5, 0.5], [0.5, 0.5], [7.0, 7.0], [7.0, 7.0]]).double()[None]
    lengths, novelty = torch.tensor([4]), [0.7, 0.5, (1 + 0.5**0.5) / 2, 0.0]
    # The logits of frames 1 and 2 are standardised to -z and z. The second is inside the budget of two
    # chunks, and the threshold is at 0, half-way between them.
    logits = [math.log(d / (1 - d)) for d in novelty[1:3]]
    spread = (logits[1] - logits[0]) / 2
    z = 2 * spread / (spread**2 + 0.1**2) ** 0.5
    out = call(told(novelty, target_ratio=2), x, lengths)
    expected = [1.0, *(1 / (1 + math.exp(-score)) for score in (-z, z)), 0.0, 0.0, 0.0]
    assert out.prob[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert out.starts[0].tolist()[:2] == [0, 2]
    assert out.num_chosen.tolist() == out.num_chunks.tolist() == [2]
    # The first frame weighs as if it stood one standard deviation above the mean.
    weights = [math.exp(2.0), math.exp(-z)]
    torch.testing.assert_close(out.states[0, 0], (weights[0] * x[0, 0] + weights[1] * x[0, 1]) / sum(weights))
    torch.testing.assert_close(out.states[0, 1], x[0, 2])
    for ratio, kept in (
        (4, [0]),
        (4 / 3, [0, 1, 2]),
        (1.01, [0, 1, 2]),
    ):  # what is not new is never a boundary
        out = call(told(novelty, target_ratio=ratio), x, lengths)
        assert out.starts[0, : out.num_chunks[0]].tolist() == kept


@pytest.mark.parametrize("window", [None, 4])
def test_of_equals_the_earlier_ones_begin_chunks(window):
    """Twelve frames that are equally new: the budget holds all the same."""
    chunker = told([0.3] * 12, target_ratio=2, window=window)
    out = call(chunker, torch.randn(1, 12, 2, dtype=torch.float64), torch.tensor([12]))
    expected = [0, 1, 2, 3, 4, 5] if window is None else [0, 1, 4, 5, 8, 9]
    assert out.mask[0].nonzero().flatten().tolist() == expected and out.starts[0].tolist() == expected


@pytest.mark.parametrize("name", ["ctc", "ctc windows", "stride", "stride means"])
def test_nothing_waits_for_a_gpu_to_count(name):
    """Fake tensors have only shapes: whoever asks for a value fails. The widths are those of the real chunks.

    A floor has to count, and so has one of labels.
    """
    chunker, labels, x, head = made(name), made("ctc labels"), frames(), head_on()
    real = call(chunker, x, LENGTHS)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = call(chunker, mode.from_tensor(x), mode.from_tensor(LENGTHS), None, head)
    assert fake.states.shape == real.states.shape and fake.mask.shape == real.mask.shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(DataDependentOutputException):
        call(chunker, mode.from_tensor(x), mode.from_tensor(LENGTHS), mode.from_tensor(LENGTHS), head)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(DataDependentOutputException):
        call(labels, mode.from_tensor(x), mode.from_tensor(LENGTHS), None, head)


@pytest.mark.parametrize("window", [None, 6, 16])
@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.0, 6.0])
def test_the_budget_holds_whatever_the_head_has_learned(ratio, window):
    """Also where frames are alike but for a little noise, and where the CTC is sure of one label or of
    none."""
    torch.manual_seed(0)
    lengths = torch.tensor([200, 77, 5, 1])
    chunker = CTCChunker(target_ratio=ratio, window=window)
    for noise in (0.01, 1.0):
        for scale in (0.0, 1.0, 30.0):
            x = (torch.randn(4, 1, 64) + noise * torch.randn(4, 200, 64)).double()
            head = Linear(n_neurons=9, input_size=64)
            head.w.weight.data *= scale
            assert torch.equal(chunker(x, lengths, None, head).num_chosen, (lengths / ratio).ceil().long())


def test_every_window_gets_its_part():
    """Though all that is new is at the end: 12 frames of which the last 4 are much newer."""
    novelty = [0.01 + 0.001 * i for i in range(8)] + [0.5, 0.6, 0.7, 0.8]
    x = torch.randn(1, 12, 2, dtype=torch.float64)
    whole, parts = (
        call(told(novelty, target_ratio=2, window=window), x, torch.tensor([12])) for window in (None, 4)
    )
    assert [int(part.sum()) for part in whole.mask[0].split(4)] == [1, 1, 4]
    assert [int(part.sum()) for part in parts.mask[0].split(4)] == [2, 2, 2]
    assert torch.equal(parts.mask, parts.prob >= 0.5)
    short = call(told(novelty[:9], target_ratio=2, window=4), x, torch.tensor([9]))
    assert [int(part.sum()) for part in short.mask[0].split(4)] == [2, 2, 1]


def test_labels_begin_chunks():
    """Not blanks after them, nor the frames on which they last; a label right after another one does. What is
    left of the budget goes to blanks, of equals to the earlier ones."""
    head, x = spikes(0, 0, 1, 0, 0, 2, 2, 3, 0, 0, 1, 0)
    out = CTCChunker(target_ratio=2)(x, torch.tensor([12]), None, head)
    assert out.starts.tolist() == [[0, 1, 2, 5, 7, 10]]
    out = CTCChunker(target_ratio=3)(x, torch.tensor([9]), None, head)
    assert out.starts[0, :3].tolist() == [0, 2, 5] and out.num_chunks.tolist() == [3]


@pytest.mark.parametrize("sure", [10.0, 14.0, 16.0, 30.0])
def test_a_spike_outweighs_the_blanks_of_its_chunk(sure):
    """However sure the CTC is of them: also where their probability of being new is lost in rounding."""
    head, x = spikes(0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, sure=sure)
    out = CTCChunker(target_ratio=3)(x.float(), torch.tensor([12]), None, head)
    assert out.starts[0].tolist() == [0, 2, 6, 10]
    shares = out.states[0, 1:, 1:].sum(-1) / sure
    assert (shares > 0.9).all()


def test_novelty_by_hand():
    """The probability that a label begins, summed over all pairs of what two frames may say; the blank is the
    third label."""
    torch.manual_seed(0)
    head, x = Linear(n_neurons=5, input_size=D), torch.randn(2, 4, D)
    chunker = CTCChunker(target_ratio=2, blank_index=2)
    prob = head(x).softmax(-1)
    expected = torch.zeros(2, 4)
    expected[:, 0] = 1 - prob[:, 0, 2]
    for now in (0, 1, 3, 4):
        for before in range(5):
            if now != before:
                expected[:, 1:] += prob[:, 1:, now] * prob[:, :-1, before]
    expected[1, 2:] = 0.0
    novelty = chunker.novelty(x, torch.tensor([4, 2]), head)
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
    without, given = (CTCChunker(target_ratio=3, chunks_per_label=n, window=window) for n in (0.0, 1.0))
    assert without(x, lengths, None, head).num_chosen.tolist() == [6]
    out = given(padded, lengths, None, head)
    assert torch.equal(out.mask[:, :18], given(x, lengths, None, head).mask) and not out.mask[:, 18:].any()
    assert (
        out.num_chosen.tolist() == out.num_chunks.tolist() == [7 if window else 6]
    )  # where there is one window, 6 are enough
    begun = [frame + (0 if labels_first else 9) for frame in (0, 1, 3, 5)]
    assert out.mask[0, begun].all()
    if window:
        each = [int(part.sum()) for part in out.mask[0, :18].split(9)]
        assert each == ([4, 3] if labels_first else [3, 4])


def test_an_untrained_ctc_gets_no_more_than_half_as_much_again():
    x, lengths = frames(), torch.tensor([18, 1, 8, 0])
    head = Linear(n_neurons=50, input_size=D)
    torch.nn.init.zeros_(head.w.weight)
    torch.nn.init.zeros_(head.w.bias)
    out = CTCChunker(target_ratio=3, chunks_per_label=1.1)(x, lengths, None, head)
    assert out.num_chosen.tolist() == [9, 1, 5, 0]


@pytest.mark.parametrize("name", CASES)
def test_batch_equals_utterances_alone(name):
    chunker, x = made(name).double(), frames(torch.float64)
    for row, n in enumerate(LENGTHS.tolist()):
        x[row, n:] = float("nan")
    batch = call(chunker, x, LENGTHS)
    for row, n in enumerate(LENGTHS.tolist()):
        alone = call(chunker, x[row : row + 1, : max(n, 1)], LENGTHS[row : row + 1])
        count = int(alone.num_chunks)
        assert int(batch.num_chunks[row]) == count
        torch.testing.assert_close(batch.states[row, :count], alone.states[0, :count])
        assert not batch.states[row, count:].any() and not batch.prob[row, n:].any()
        torch.testing.assert_close(batch.prob[row, :n], alone.prob[0, :n])
        assert int(batch.num_chosen[row]) == int(alone.num_chosen)
        again = upsample_chunks(smooth_chunks(batch.states, batch), batch, LENGTHS)[row]
        torch.testing.assert_close(
            again[:n],
            upsample_chunks(smooth_chunks(alone.states, alone), alone, LENGTHS[row : row + 1])[0, :n],
        )
        assert not again[n:].any()


@pytest.mark.kernels
@pytest.mark.parametrize("name", BY_KERNEL)
@pytest.mark.parametrize("floor", [None, [12, 1, 5, 0]])
def test_kernels_find_the_same_chunks(name, floor, device):
    """In an encoder's hands, with a floor that some utterances need; and the same gradient flows back."""
    chunker, lengths = made(name, device), LENGTHS.to(device)
    floor = None if floor is None else torch.tensor(floor, device=device)
    found = []
    for backend in ("reference", "triton"):
        x, chunker.backend = frames().to(device).requires_grad_(), backend
        out = call(chunker, x, lengths, floor)
        weights = torch.arange(out.states.numel(), device=device).view(out.states.shape) % 7
        found.append((out, torch.autograd.grad((out.states * weights).sum(), x)[0]))
    (plain, plain_grad), (fused, fused_grad) = found
    for field in ("mask", "num_chunks", "starts", "frame_to_chunk", "num_chosen"):
        assert torch.equal(getattr(fused, field), getattr(plain, field)), field
    torch.testing.assert_close(fused.prob, plain.prob, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused.states, plain.states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused_grad, plain_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ctc", "ctc windows"])
def test_compiled_chunks_are_the_same(name):
    """In one graph for all lengths, where nothing has to be counted; and around the kernels."""
    torch._dynamo.reset()
    chunker, head = made(name), head_on()
    compiled = torch.compile(chunker, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (23, 31):
        x = torch.randn(4, length, D)
        expected = chunker(x, LENGTHS, None, head).states
        torch.testing.assert_close(compiled(x, LENGTHS, None, head).states, expected)
    if name == "ctc windows" and unavailable_reason(torch.device("cpu")) is None:
        chunker.backend = "triton"
        torch._dynamo.reset()
        with torch.no_grad():
            found = torch.compile(chunker, backend="aot_eager")(frames(), LENGTHS, None, head).states
            torch.testing.assert_close(found, chunker(frames(), LENGTHS, None, head).states)


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


@pytest.mark.kernels
def test_kernels_are_few_launches(monkeypatch, device):
    """A slow host makes a GPU wait for each. Beside the kernels there are a product, zeros, and the count
    that is waited for."""
    from hmamba_asr.ops import launch
    from hmamba_asr.ops.segment import kernels, pooling_kernels

    chunker, head = made("ctc labels", device), head_on(device)
    x, lengths, found = frames().to(device), LENGTHS.to(device), {}
    for backend in ("reference", "triton"):
        chunker.backend = backend
        with Counting() as counting, torch.no_grad():
            for module in (kernels, pooling_kernels):
                monkeypatch.setattr(module, "launch", counting.counted(launch.launch))
            chunker(x, lengths, None, head)
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
    assert torch.equal(out.states[0], x[0, places]) and torch.equal(out.starts[0], places)
    assert torch.equal(
        x[0, places][out.frame_to_chunk[0]], upsample_chunks(out.states, out, torch.tensor([length]))[0]
    )


def test_all_boundaries_and_back_is_the_identity():
    x = frames()
    for chunker in (
        CTCChunker(target_ratio=1),
        HNetChunker(d_model=D, target_ratio=1),
        FixedStrideChunker(stride=1),
    ):
        out = chunker(x, LENGTHS)
        assert torch.equal(out.num_chunks, LENGTHS) and torch.equal(out.num_chosen, LENGTHS)
        back = upsample_chunks(smooth_chunks(out.states, out), out, LENGTHS)
        for row, n in enumerate(LENGTHS.tolist()):
            assert torch.equal(back[row, :n], x[row, :n]) and not back[row, n:].any()


@pytest.mark.parametrize(
    ("stride", "begins"), [(2, [0, 2, 4, 6]), (2.5, [0, 3, 5]), (3, [0, 3, 6]), (100, [0])]
)
def test_fixed_stride(stride, begins):
    out = FixedStrideChunker(stride=stride)(torch.randn(1, 7, 2), torch.tensor([7]))
    assert out.starts[0].tolist() == begins


def test_mean_pooling():
    x = torch.tensor([[[1.0], [3.0], [5.0], [9.0], [7.0], [float("nan")]]])
    out = FixedStrideChunker(stride=2, pooling="mean")(x, torch.tensor([5]))
    assert out.states.flatten().tolist() == [2.0, 7.0, 7.0]


def test_floor():
    """The most probable frames fill up, earlier ones first; boundaries stay; a short utterance gives all it
    has."""
    prob = torch.tensor([[1.0, 0.1, 0.6, 0.4, 0.4, 0.9], [1.0, 0.2, 0.3, 0.0, 0.0, 0.0]])
    mask = (prob >= 0.5) & torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    lengths = torch.tensor([6, 3])
    filled = add_boundaries(prob, mask, lengths, torch.tensor([4, 5]))
    assert filled.tolist() == [
        [True, False, True, True, False, True],
        [True, True, True, False, False, False],
    ]
    assert add_boundaries(prob, mask, lengths, torch.tensor([2, 1])) is mask


def test_a_floor_adds_no_more_than_it_must():
    """Also where frames that are not chosen equal those that are; what is no number comes last."""
    rank, mask = (
        torch.full((1, 8), 0.5),
        torch.tensor([[True, False, False, True, False, True, False, False]]),
    )
    rank[0, 1] = float("nan")
    filled = add_boundaries(rank, mask, torch.tensor([8]), torch.tensor([5]))
    assert filled.tolist() == [[True, False, True, True, True, True, False, False]]


@pytest.mark.parametrize(
    ("stride", "floor", "gaps"), [(3, 26, {2, 3}), (2.63, 40, {1, 2}), (10, 60, {1}), (10, 99, {1})]
)
def test_a_floor_shortens_all_of_a_strides_chunks_alike(stride, floor, gaps):
    lengths = torch.tensor([60, 60])
    out = FixedStrideChunker(stride=stride)(torch.randn(2, 64, D), lengths, torch.tensor([floor, 1]))
    plain = FixedStrideChunker(stride=stride)(torch.randn(2, 64, D), lengths)
    begins = out.starts[0, : out.num_chunks[0]]
    assert begins[0] == 0 and len(begins) == min(60, floor) and set(begins.diff().tolist()) == gaps
    assert torch.equal(out.mask[1], plain.mask[1]) and torch.equal(out.num_chosen, plain.num_chunks)


def test_a_floor_makes_room_for_labels_in_the_window_that_has_them():
    """Ten frames of silence, eight labels in ten frames, ten frames of silence."""
    head, x = spikes(*[0] * 10, 1, 2, 3, 1, 2, 3, 0, 1, 2, 0, *[0] * 10)
    chunker = CTCChunker(target_ratio=3.0, window=10)
    out = chunker(x, torch.tensor([30]), torch.tensor([16]), head)
    per_window = out.mask[0].view(3, 10).sum(1).tolist()
    assert sum(per_window) == 16 and per_window[1] >= 8 and out.num_chosen.tolist() == [10]


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "reference") for name in CASES]
    + [pytest.param(name, "triton", marks=pytest.mark.kernels) for name in BY_KERNEL],
)
def test_a_frame_that_is_no_number_stays_in_its_utterance(name, backend, device):
    """It does not end a run, whose loss is to name the utterance."""
    chunker, lengths = made(name, device), LENGTHS.to(device)
    chunker.backend = backend
    x = frames().to(device)
    expected = call(chunker, x, lengths).mask
    x[0, 7] = float("nan")
    for floor in (None, torch.tensor([12, 1, 5, 0], device=device)):
        out = call(chunker, x, lengths, floor)
        assert out.mask[0, 0] and 1 <= out.num_chunks[0] <= 19
        assert out.states[1:].isfinite().all()
        if isinstance(chunker, CTCChunker):  # whose chunks' means leave no frame out
            assert out.states[0].isnan().any()
    assert torch.equal(call(chunker, x, lengths).mask[1:], expected[1:])


def test_floor_does_not_depend_on_padding():
    chunker, x = FixedStrideChunker(stride=50), torch.randn(1, 9, D)
    short = chunker(x, torch.tensor([9]), torch.tensor([5]))
    padded = chunker(torch.nn.functional.pad(x, (0, 0, 0, 30)), torch.tensor([9]), torch.tensor([5]))
    assert torch.equal(short.starts, padded.starts) and short.num_chunks.tolist() == [5]


@pytest.mark.parametrize("name", ["ctc", "ctc labels", "hnet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decides_in_float32(dtype, name):
    x = frames().to(dtype)
    chunker = made(name)
    out, exact = call(chunker, x, LENGTHS), call(chunker, x.float(), LENGTHS)
    assert out.states.dtype == dtype and out.prob.dtype == torch.float32
    assert torch.equal(out.mask, exact.mask)


def test_chunkers_say_what_they_are():
    descriptions = {name: made(name).describe() for name in CASES}
    assert descriptions["ctc labels"] == {"kind": "ctc", "ratio": 2.5}
    assert descriptions["hnet"] == {"kind": "router", "ratio": 2.5}
    assert descriptions["stride means"] == {"kind": "fixed_stride", "ratio": 3}
    assert [name for name in CASES if made(name).reads_ctc] == ["ctc", "ctc windows", "ctc labels"]
    assert [name for name in CASES if made(name).has_router] == ["hnet"]
    assert [name for name in CASES if made(name).target_ratio is None] == ["stride", "stride means"]
    assert not CTCChunker(target_ratio=1).reads_ctc
    assert not HNetChunker(d_model=D, target_ratio=1).has_router


def test_the_ctc_head_comes_with_the_call():
    """An old YAML's ctc_head is accepted, and no part of the chunker."""
    head = head_on()
    chunker = CTCChunker(target_ratio=2, ctc_head=head)
    assert not list(chunker.parameters()) and not chunker.state_dict()
    with pytest.raises(
        ValueError,
        match=r"reads the model's CTC head; call .*encoder\(x, lengths, min_states, ctc_head=ctc_head",
    ):
        chunker(frames(), LENGTHS)


def test_bad_settings():
    with pytest.raises(ValueError, match="chunks_per_label must be 0"):
        CTCChunker(target_ratio=2, chunks_per_label=-1)
    for window in (3, 20.5):
        with pytest.raises(
            ValueError, match=rf"window must be null or a whole .* >= target_ratio \(4\), not {window}"
        ):
            CTCChunker(target_ratio=4, window=window)
    for bad in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"stride must be 1 frame or more, not {bad}"):
            FixedStrideChunker(stride=bad)
        with pytest.raises(ValueError, match=f"target_ratio must be 1 frame per chunk or more, not {bad}"):
            CTCChunker(target_ratio=bad)
    with pytest.raises(ValueError, match="blank is 7, and the head has the labels 0 to 6"):
        call(CTCChunker(target_ratio=2, blank_index=7), torch.randn(1, 5, D), torch.tensor([5]))
    with pytest.raises(ValueError, match="pooling 'max' is unknown; choose first or mean"):
        FixedStrideChunker(stride=2, pooling="max")
