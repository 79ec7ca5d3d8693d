import torch
from hypothesis import given
from hypothesis import strategies as st

from hmamba_asr.lengths import (
    conv_output_length,
    reverse_valid,
    to_absolute,
    to_relative,
    valid_mask,
    zero_padding,
)

lengths_lists = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@given(lengths_lists, st.integers(0, 5))
def test_relative_lengths_come_back_exactly(lengths, extra):
    longest = max(lengths) + extra or 1
    absolute = torch.tensor(lengths)
    assert torch.equal(to_absolute(to_relative(absolute, longest), longest), absolute)
    assert torch.equal(
        to_absolute((absolute / longest).float(), longest), absolute
    )  # as SpeechBrain hands them out


def test_relative_lengths_of_an_hour_of_samples():
    samples = torch.tensor([57_600_000, 57_599_999, 20_000_001])
    assert torch.equal(to_absolute(to_relative(samples, 57_600_000), 57_600_000), samples)


@given(lengths_lists)
def test_reversing_twice_is_identity_and_padding_stays(lengths):
    lengths = torch.tensor(lengths)
    x = torch.arange(len(lengths) * 41.0).view(len(lengths), 41)
    reversed_ = reverse_valid(x, lengths)
    assert torch.equal(reverse_valid(reversed_, lengths), x)
    for row, turned, n in zip(x, reversed_, lengths.tolist(), strict=True):
        assert torch.equal(turned[:n], row[:n].flip(0))
        assert torch.equal(turned[n:], row[n:])


def test_zero_padding_removes_nan():
    x = torch.full((2, 3, 2), float("nan"))
    x[0, :2] = 1.0
    out = zero_padding(x, torch.tensor([2, 0]))
    assert torch.equal(out[0], torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])) and not out[1].any()


def test_valid_mask():
    assert valid_mask(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]


@given(st.integers(1, 60), st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_conv_output_length_is_torchs(length, kernel_size, stride):
    conv = torch.nn.Conv1d(1, 1, kernel_size, stride=stride, padding=kernel_size // 2)
    expected = conv(torch.zeros(1, 1, length)).shape[-1]
    kwargs = {"kernel_size": kernel_size, "stride": stride, "padding": kernel_size // 2}
    assert conv_output_length(length, **kwargs) == expected
    assert conv_output_length(torch.tensor([length, 0]), **kwargs).tolist() == [expected, 0]
