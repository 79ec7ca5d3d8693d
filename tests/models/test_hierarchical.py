"""H-Mamba's encoder beyond the contract (test_encoder.py): the flat encoder as its special case, nesting,
floors."""

import pytest
import torch
from encoders import (
    D_MODEL,
    HIERARCHICAL,
    LENGTHS,
    by_ctc,
    conmamba,
    encode,
    hmamba,
    hnet,
    made,
    padded,
    stride,
)

from hmamba_asr.hnet.router import HNetChunker
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.modules.chunkers import CTCChunker


@pytest.mark.parametrize("name", list(HIERARCHICAL))
def test_the_intermediate_output_is_the_outer_encoders(name):
    encoder, x = made(name).double(), padded(torch.float64)
    between, outer = encode(encoder, x, LENGTHS).intermediate, encoder.outer(x, LENGTHS)
    assert torch.equal(between.states, outer.states) and torch.equal(between.lengths, LENGTHS)


@pytest.mark.parametrize("output", ["frames", "chunks"])
@pytest.mark.parametrize("kind", ["ctc", "hnet"])
def test_one_frame_a_chunk_is_the_flat_encoder(output, kind):
    """2 + 1 blocks around a chunker that keeps every frame are 3 blocks."""
    chunker = CTCChunker(target_ratio=1) if kind == "ctc" else HNetChunker(d_model=D_MODEL, target_ratio=1)
    model = hmamba(chunker, output).double().eval()
    assert not model.reads_ctc
    flat = conmamba(3).double().eval()
    flat.blocks = torch.nn.ModuleList([*model.outer.blocks, *model.inner.blocks])
    x = padded(torch.float64)
    expected, actual = flat(x, LENGTHS), model(x, LENGTHS)
    assert torch.equal(actual.lengths, LENGTHS)
    longest = actual.states.shape[1]
    torch.testing.assert_close(actual.states, expected.states[:, :longest], rtol=0, atol=1e-12)
    assert longest >= int(LENGTHS.max()) and not expected.states[:, longest:].any()


def test_chunks_are_shorter_work():
    """The inner encoder sees as many states as the longest utterance has chunks, not a masked full length."""
    model = hmamba(stride(4), "chunks").eval()
    seen = []
    model.inner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    out = model(padded()[:, : LENGTHS.max()], LENGTHS)
    assert seen == [8] and out.states.shape[1] == 8 and out.lengths.tolist() == [8, 1, 1, 3]


def test_nested_stages_come_outside_in():
    model = hmamba(stride(2), "chunks", inner=hmamba(stride(3), "chunks")).eval()
    out = model(padded()[:1, : LENGTHS[0]], LENGTHS[:1])
    assert [stage.num_chunks.tolist() for stage in out.stages] == [[16], [6]]
    assert out.lengths.tolist() == [6]
    # 31 frames; every second one, and of those every third: the frames of the input, not of the chunks in
    # between.
    assert out.stages[0].starts[0].tolist() == list(range(0, 31, 2))
    assert out.stages[1].starts[0].tolist() == [0, 6, 12, 18, 24, 30]
    assert out.time_axis.edges(0, 1.0).tolist() == [0, 6, 12, 18, 24, 30, 31]
    assert [chunker.describe()["ratio"] for chunker in model.chunkers] == [2, 3]


def test_smoothing_does_not_depend_on_batch_mates():
    """An inner encoder that happens to keep every chunk of one utterance, and not of another, in one
    batch."""
    model = hmamba(hnet(), "chunks", inner=hmamba(stride(2), "chunks")).double().eval()
    x, lengths, floor = padded(torch.float64)[:2], torch.tensor([5, 31]), torch.tensor([5, 1])
    together, alone = model(x, lengths, floor), model(x[:1, :5], lengths[:1], floor[:1])
    assert alone.lengths.tolist() == [5]
    assert int(together.lengths[1]) < int(together.stages[0].num_chunks[1])
    assert (alone.stages[0].prob[0, 1:] < 1).all()  # so that smoothing would show
    torch.testing.assert_close(together.states[0, :5], alone.states[0], rtol=0, atol=1e-10)


def test_min_states_reach_every_stage_that_shortens():
    model = hmamba(stride(2), "chunks", inner=hmamba(stride(30), "chunks")).eval()
    out = model(padded(), LENGTHS, torch.tensor([9, 1, 2, 7]))
    assert out.lengths.tolist() == [9, 1, 2, 7]


def test_min_states_reach_the_chunker():
    model = hmamba(stride(30), "chunks").eval()
    out = model(padded(), LENGTHS, torch.tensor([5, 5, 1, 4]))
    assert out.lengths.tolist() == [5, 1, 1, 4]


def test_unknown_output():
    with pytest.raises(ValueError, match="output 'phones' is unknown; choose frames or chunks"):
        hmamba(stride(2), "phones")


def test_parts_that_do_not_fit_together():
    def around(outer=None, inner=None, output="chunks"):
        return HierarchicalEncoder(
            outer=outer or conmamba(),
            chunker=stride(2),
            inner=inner or conmamba(),
            d_model=D_MODEL,
            output=output,
        )

    with pytest.raises(ValueError, match="cannot return to their frames"):
        around(inner=hmamba(stride(2), "chunks"), output="frames")
    with pytest.raises(ValueError, match="the outer encoder's output is chunks"):
        around(outer=hmamba(stride(2), "chunks"))
    with pytest.raises(ValueError, match="intermediate_layer of outer does nothing"):
        around(outer=conmamba(intermediate_layer=1))
    for part in ("outer", "inner"):
        with pytest.raises(ValueError, match="reads the CTC must be the outermost encoder's"):
            around(**{part: hmamba(by_ctc(), "frames")})
        with pytest.raises(ValueError, match="LSTM is not an encoder of this package; derive it from"):
            around(**{part: torch.nn.LSTM(D_MODEL, D_MODEL)})
