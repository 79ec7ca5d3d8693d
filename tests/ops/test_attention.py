"""Attention of few queries is softmax(query keys^T / sqrt(d) + mask) values, by every backend."""

import math

import pytest
import torch

from hmamba_asr.ops.attention import attend, kernel_pays, kernel_takes, limits

pytest.importorskip("triton")
from hmamba_asr.ops.attention import kernels as attention_kernels  # noqa: E402

pytestmark = pytest.mark.kernels


@pytest.fixture(autouse=True, params=[16, attention_kernels.BLOCK_T], ids="keys at a time: {}".format)
def keys_at_a_time(request, monkeypatch):
    """Run each test with few keys at a time, which makes several blocks, and with the real number."""
    monkeypatch.setattr(attention_kernels, "BLOCK_T", request.param)


def plain(query, keys, values, mask):
    heads, d_head = keys.shape[1], keys.shape[3]
    query = query.double().unflatten(-1, (heads, d_head)).transpose(1, 2)
    scores = query @ keys.double().transpose(-1, -2) / math.sqrt(d_head)
    weights = (scores if mask is None else scores + mask.double()).softmax(-1)
    return (weights @ values.double()).transpose(1, 2).flatten(2)


def random_inputs(device, *, queries=3, keys=21, d_head=5, heads=2, batch=2):
    generator = torch.Generator().manual_seed(keys)
    shapes = (batch, queries, heads * d_head), (batch, heads, keys, d_head), (batch, heads, keys, d_head)
    return [torch.randn(*shape, generator=generator).to(device) for shape in shapes]


def assert_same(inputs, mask):
    actual = attend(*inputs, mask, backend="triton")
    torch.testing.assert_close(actual.double(), plain(*inputs, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("queries", [1, 10, 17])
def test_the_kernel_is_attention(keys, queries, device, poisoned):
    assert_same(random_inputs(device, queries=queries, keys=keys), None)


@pytest.mark.parametrize("d_head", [1, 16, 36, 64])
def test_heads_of_any_width_up_to_the_limit(d_head, device):
    inputs = random_inputs(device, d_head=d_head)
    assert kernel_takes(*inputs[:2], None)
    assert_same(inputs, None)


def test_what_the_kernel_does_not_take(device):
    query, keys, _ = random_inputs(device)
    wider = random_inputs(device, d_head=limits.MAX_D_HEAD + 1)
    mask = torch.zeros(2, 1, 3, 21, device=device)
    assert kernel_takes(query, keys, mask)
    for refused in (
        (*wider[:2], None),
        (query.double(), keys, None),
        (query, keys.half(), None),
        (query, keys, mask.expand(-1, 2, -1, -1)),
        (query, keys, mask.bool()),
        (query.clone().requires_grad_(), keys, None),
    ):
        assert not kernel_takes(*refused)


@pytest.mark.parametrize("masked", [True, False])
def test_plain_backends_are_attention(masked, device):
    inputs = random_inputs(device)
    mask = torch.zeros(2, 1, 3, 21, device=device)
    mask[..., 15:] = -math.inf
    mask = mask if masked else None
    expected = plain(*inputs, mask)
    for backend in ("reference", "sdpa", "auto"):
        actual = attend(*inputs, mask, backend=backend)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_bad_requests_are_one_sentence(device):
    query, keys, values = random_inputs(device)
    with pytest.raises(
        ValueError, match="attention backend 'fast' is unknown; choose one of auto, reference"
    ):
        attend(query, keys, values, backend="fast")
    with pytest.raises(ValueError, match="the triton backend of attention takes float32 without gradient"):
        attend(query.requires_grad_(), keys, values, backend="triton")


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "pays"), [(32, 3, 21, True), (31, 3, 21, False), (16, 17, 21, True)]
)
def test_few_programs_do_not_pay(batch, queries, keys, pays, device):
    query, keys, _ = random_inputs(device, batch=batch, queries=queries, keys=keys)
    assert kernel_pays(query, keys) == pays
    assert not kernel_pays(query, keys.repeat(1, 1, 200, 1))


def test_large_scores(device):
    query, keys, values = random_inputs(device)
    assert_same((100 * query, keys, values), None)


def test_a_mask_of_each_query_with_whole_blocks_unseen(device, poisoned):
    """As with ancestors: one query does not see the first keys, and none sees those past the newest."""
    inputs = random_inputs(device, keys=60)
    mask = torch.zeros(2, 1, 3, 60)
    mask[..., 40:] = -math.inf
    mask[0, :, 1, :17] = -math.inf
    mask[1, :, 2, 1:] = -math.inf
    assert_same(inputs, mask.to(device))


def test_what_is_masked_for_all_queries_is_not_read_where_whole_blocks_are(device):
    query, keys, values = random_inputs(device, keys=100)
    mask = torch.zeros(1, 1, 1, 100, device=device)  # the same for both utterances
    mask[..., 32:] = -math.inf
    expected = plain(query, keys, values, mask)
    beyond = max(32, attention_kernels.BLOCK_T)
    keys[:, :, beyond:], values[:, :, beyond:] = math.nan, math.nan
    actual = attention_kernels.attend(query, keys, values, mask)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_views_are_read_where_they_lie(device):
    """The queries lie beside keys and values of one projection; the keys and values are part of a larger
    pool."""
    query, keys, values = random_inputs(device)
    wide = torch.cat([query, query], -1)[..., : query.shape[-1]]
    pool = torch.stack([torch.cat([x, x], 2) for x in (keys, values)])[..., : keys.shape[2], :]
    assert not wide.is_contiguous() and not pool[0].is_contiguous()
    expected = attention_kernels.attend(query, keys, values, None)
    assert torch.equal(attention_kernels.attend(wide, pool[0], pool[1], None), expected)
    across = keys.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(attention_kernels.attend(query, across, values, None), expected)


def test_a_query_that_sees_nothing_is_not_a_number(device):
    """So it is with PyTorch's softmax. The other queries are as they were."""
    inputs = random_inputs(device)
    mask = torch.zeros(2, 1, 3, 21, device=device)
    mask[0, :, 1] = -math.inf
    actual, expected = attention_kernels.attend(*inputs, mask), plain(*inputs, mask)
    assert torch.isnan(actual[0, 1]).all() and torch.isnan(expected[0, 1]).all()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
