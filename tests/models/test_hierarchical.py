"""H-Mamba's encoder: independence of padding and batch mates, the flat encoder as its special case,
nesting."""

import pytest
import torch
from speechbrain.nnet.linear import Linear

from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.modules.chunkers import CTCChunker, DynamicChunker, FixedStrideChunker, HNetChunker

LENGTHS = torch.tensor([31, 1, 2, 12])
D_MODEL = 16


def stack(num_layers=1, d_model=D_MODEL):
    return ConMambaEncoder(
        num_layers=num_layers, d_model=d_model, d_ffn=32, kernel_size=7, dropout=0.1, d_state=4
    )


def hierarchical(chunker, output, **options):
    outer = options.pop("outer", None) or stack(2)
    inner = options.pop("inner", None) or stack(d_model=options.get("inner_d_model") or D_MODEL)
    return HierarchicalEncoder(
        outer=outer, chunker=chunker, inner=inner, d_model=D_MODEL, output=output, **options
    )


def dynamic(kind=DynamicChunker):
    """With projections that are not the identity, as after training."""
    chunker = kind(d_model=D_MODEL, target_ratio=2.0)
    torch.nn.init.normal_(chunker.query.weight)
    return chunker


def by_ctc(window=10):
    """With a head that is sure of something, as after training."""
    head = Linear(input_size=D_MODEL, n_neurons=9)
    torch.nn.init.normal_(head.w.weight)
    return CTCChunker(ctc_head=head, target_ratio=3.0, window=window, chunks_per_label=1.1)


def cases():
    torch.manual_seed(0)
    return {
        "CTC, frames": hierarchical(by_ctc(), "frames"),
        "CTC, chunks": hierarchical(by_ctc(None), "chunks"),
        "dynamic, frames": hierarchical(dynamic(), "frames"),
        "dynamic, chunks": hierarchical(dynamic(), "chunks"),
        "H-Net, frames": hierarchical(dynamic(HNetChunker), "frames"),
        "H-Net, chunks": hierarchical(dynamic(HNetChunker), "chunks"),
        "stride, frames": hierarchical(FixedStrideChunker(stride=3, pooling="mean"), "frames"),
        "stride, chunks": hierarchical(FixedStrideChunker(stride=2.5), "chunks"),
        "wider inside": hierarchical(dynamic(), "frames", inner_d_model=24),
        "wider inside, chunks": hierarchical(FixedStrideChunker(stride=2), "chunks", inner_d_model=24),
        "nested, frames": hierarchical(
            dynamic(), "frames", inner=hierarchical(FixedStrideChunker(stride=2), "frames")
        ),
        "nested, H-Net": hierarchical(
            dynamic(HNetChunker), "chunks", inner=hierarchical(FixedStrideChunker(stride=2), "chunks")
        ),
        "nested, chunks": hierarchical(
            dynamic(), "chunks", inner=hierarchical(FixedStrideChunker(stride=2), "chunks")
        ),
    }


@pytest.fixture(params=list(cases()))
def encoder(request):
    torch.manual_seed(0)
    model = cases()[request.param].eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # not zero, as after training: it is through them that padding leaks
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model


def padded(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(len(LENGTHS), 36, D_MODEL, dtype=dtype)


def test_batch_equals_utterances_alone(encoder):
    encoder, x = encoder.double(), padded()
    batch = encoder(x, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        alone = encoder(x[b : b + 1, :n], torch.tensor([n]))
        end = int(alone.lengths)
        assert int(batch.lengths[b]) == end
        torch.testing.assert_close(batch.states[b, :end], alone.states[0, :end], rtol=0, atol=1e-10)
        assert not batch.states[b, end:].any()
        for together, own in zip(batch.stages, alone.stages, strict=True):
            frames = own.boundary_mask.shape[1]
            assert torch.equal(together.boundary_mask[b, :frames], own.boundary_mask[0])
            assert not together.boundary_mask[b, frames:].any()
            for name in ("kept_fraction", "chosen_fraction", "mean_prob"):
                torch.testing.assert_close(getattr(together, name)[b], getattr(own, name)[0])
            chunks = int(own.chunk_lengths)
            assert torch.equal(together.chunk_starts[b, :chunks], own.chunk_starts[0])


def test_the_intermediate_output_is_the_outer_encoders(encoder):
    encoder, x = encoder.double(), padded()
    between, outer = encoder(x, LENGTHS).intermediate, encoder.outer(x, LENGTHS)
    assert torch.equal(between.states, outer.states) and torch.equal(between.lengths, LENGTHS)


def test_every_parameter_gets_a_gradient(encoder):
    out = encoder(padded(torch.float32), LENGTHS)
    assert all(stage.chunk_lengths.max() > 1 for stage in out.stages)  # one chunk alone has no decay to learn
    (out.states.pow(3).sum() + sum(stage.mean_prob.sum() for stage in out.stages)).backward()
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


@pytest.mark.parametrize("output", ["frames", "chunks"])
def test_one_frame_a_chunk_is_the_flat_encoder(output):
    """2 + 1 blocks around a chunker that keeps every frame are 3 blocks."""
    model = hierarchical(DynamicChunker(d_model=D_MODEL, target_ratio=1), output).double().eval()
    flat = stack(3).double().eval()
    flat.blocks = torch.nn.ModuleList([*model.outer.blocks, *model.inner.blocks])
    x = padded()
    expected, actual = flat(x, LENGTHS), model(x, LENGTHS)
    assert torch.equal(actual.lengths, LENGTHS)
    longest = actual.states.shape[1]
    torch.testing.assert_close(actual.states, expected.states[:, :longest], rtol=0, atol=1e-12)
    assert longest >= int(LENGTHS.max()) and not expected.states[:, longest:].any()


def test_chunks_are_shorter_work():
    """The inner encoder sees as many states as the longest utterance has chunks, not a masked full length."""
    model = hierarchical(FixedStrideChunker(stride=4), "chunks").eval()
    seen = []
    model.inner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    out = model(padded(torch.float32)[:, : LENGTHS.max()], LENGTHS)
    assert seen == [8] and out.states.shape[1] == 8 and out.lengths.tolist() == [8, 1, 1, 3]


def test_nested_stages_come_outside_in():
    model = hierarchical(
        FixedStrideChunker(stride=2), "chunks", inner=hierarchical(FixedStrideChunker(stride=3), "chunks")
    ).eval()
    out = model(padded(torch.float32)[:1, : LENGTHS[0]], LENGTHS[:1])
    assert [stage.chunk_lengths.tolist() for stage in out.stages] == [[16], [6]] and out.lengths.tolist() == [
        6
    ]
    # 31 frames; every second one, and of those every third: the frames of the input, not of the chunks in
    # between.
    assert out.stages[0].chunk_starts[0].tolist() == list(range(0, 31, 2))
    assert out.stages[1].chunk_starts[0].tolist() == [0, 6, 12, 18, 24, 30]


def test_smoothing_does_not_depend_on_batch_mates():
    """An inner encoder that happens to keep every chunk of one utterance, and not of another, in one
    batch."""
    model = hierarchical(
        dynamic(HNetChunker), "chunks", inner=hierarchical(FixedStrideChunker(stride=2), "chunks")
    )
    model = model.double().eval()
    x, lengths, floor = padded()[:2], torch.tensor([5, 31]), torch.tensor([5, 1])
    together, alone = model(x, lengths, floor), model(x[:1, :5], lengths[:1], floor[:1])
    assert alone.lengths.tolist() == [5] and int(together.lengths[1]) < int(
        together.stages[0].chunk_lengths[1]
    )
    assert (alone.stages[0].boundary_prob[0, 1:] < 1).all()  # so that smoothing would show
    torch.testing.assert_close(together.states[0, :5], alone.states[0], rtol=0, atol=1e-10)


def test_floor_reaches_every_stage_that_shortens():
    model = hierarchical(
        FixedStrideChunker(stride=2), "chunks", inner=hierarchical(FixedStrideChunker(stride=30), "chunks")
    ).eval()
    out = model(padded(torch.float32), LENGTHS, torch.tensor([9, 1, 2, 7]))
    assert out.lengths.tolist() == [9, 1, 2, 7]


def test_floor_reaches_the_chunker():
    model = hierarchical(FixedStrideChunker(stride=30), "chunks").eval()
    out = model(padded(torch.float32), LENGTHS, torch.tensor([5, 5, 1, 4]))
    assert out.lengths.tolist() == [5, 1, 1, 4]


def test_unknown_output():
    with pytest.raises(ValueError, match="output 'phones' is unknown; choose frames or chunks"):
        hierarchical(FixedStrideChunker(stride=2), "phones")
    with pytest.raises(ValueError, match="cannot return to their frames"):
        hierarchical(dynamic(), "frames", inner=hierarchical(dynamic(), "chunks"))


def test_an_outer_encoder_that_cannot_be_one():
    with pytest.raises(ValueError, match="the outer encoder's output is chunks"):
        hierarchical(dynamic(), "chunks", outer=hierarchical(dynamic(), "chunks"))
    outer = ConMambaEncoder(
        num_layers=2, d_model=D_MODEL, d_ffn=32, kernel_size=7, dropout=0.1, intermediate_layer=1
    )
    with pytest.raises(ValueError, match="intermediate_layer of outer does nothing"):
        hierarchical(dynamic(), "chunks", outer=outer)
