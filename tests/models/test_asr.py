"""The whole recogniser from samples to losses: what an utterance gets does not depend on its batch mates."""

import copy

import pytest
import torch
from speechbrain.nnet.linear import Linear

from hmamba_asr.hnet.router import HNetChunker
from hmamba_asr.lengths import valid_mask
from hmamba_asr.models.asr import ASRModel
from hmamba_asr.models.conformer import ConformerEncoder
from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.models.outputs import Encoder, EncoderOutput
from hmamba_asr.modules.chunkers import CTCChunker
from hmamba_asr.modules.frontend import ConvSubsampling, LogMelFeatures
from hmamba_asr.training.losses import RatioLoss, hybrid_loss

VOCAB, BOS, EOS, D_MODEL, N_MELS = 12, 1, 2, 16, 20
SAMPLES = [9600, 4000, 1700, 6011, 1]
TARGETS = [
    [5, 6, 7, 7, 8],
    [3, 3],
    [],
    [11],
    [4],
]  # 3, 3 needs its blank; the one-frame utterance has one label


def recogniser(kind="conmamba", causal=False, max_target_length=50):
    """Random parameters, with biases that are not zero, as after training."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "d_model": D_MODEL, "d_ffn": 32, "kernel_size": 7, "dropout": 0.1}
    if kind == "conformer":
        encoder = ConformerEncoder(**sizes, nhead=2)
    else:
        layer = 1 if kind == "conmamba" else None
        encoder = ConMambaEncoder(**sizes, d_state=4, causal=causal, intermediate_layer=layer)
    if kind.startswith(("hmamba", "hnet")):
        by_ctc = CTCChunker(target_ratio=1.5, window=10, chunks_per_label=1.1)
        encoder = HierarchicalEncoder(
            outer=encoder,
            chunker=by_ctc if kind.startswith("hmamba") else HNetChunker(d_model=D_MODEL, target_ratio=1.5),
            inner=ConMambaEncoder(**sizes, d_state=4),
            d_model=D_MODEL,
            output=kind.split()[1],
        )
    model = around(encoder, causal, max_target_length).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.2)
    return model


def around(encoder, causal=False, max_target_length=50):
    return ASRModel(
        frontend=ConvSubsampling(n_mels=N_MELS, channels=[6, 4], d_model=D_MODEL, dropout=0.1, causal=causal),
        encoder=encoder,
        ctc_head=Linear(input_size=D_MODEL, n_neurons=VOCAB),
        output_head=Linear(input_size=D_MODEL, n_neurons=VOCAB),
        d_model=D_MODEL,
        num_decoder_layers=2,
        nhead=2,
        d_ffn=32,
        dropout=0.1,
        max_target_length=max_target_length,
    )


def run(model, wavs, samples, targets):
    """Output and loss of a padded batch of waveforms and label lists, with an intermediate CTC where the
    encoder offers one."""
    features, lengths = LogMelFeatures(n_mels=N_MELS)(wavs, torch.tensor(samples))
    labels, label_lengths = labels_of(targets)
    bos = torch.nn.functional.pad(labels, (1, 0), value=BOS)
    output = model(features, lengths, bos, label_lengths + 1, not isinstance(model.encoder, ConformerEncoder))
    ratio = RatioLoss(weight=0.03) if output.encoded.stages else None
    weights = {"ctc_weight": 0.3, "label_smoothing": 0.1, "intermediate_ctc_weight": 0.5, "ratio": ratio}
    return output, hybrid_loss(output, labels, label_lengths, **weights, blank=0, eos=EOS)


def labels_of(targets):
    labels = torch.zeros(len(targets), max(len(t) for t in targets), dtype=torch.long)
    for row, target in zip(labels, targets, strict=True):
        row[: len(target)] = torch.tensor(target)
    return labels, torch.tensor([len(t) for t in targets])


def batch_wavs(fill):
    torch.manual_seed(2)
    wavs = 0.1 * torch.randn(len(SAMPLES), max(SAMPLES) + 3000)
    padding = ~valid_mask(torch.tensor(SAMPLES), wavs.shape[1])
    wavs[padding] = float("nan") if fill == "nan" else 10 * torch.randn(int(padding.sum()))
    return wavs


@pytest.mark.parametrize("fill", ["noise", "nan"])
@pytest.mark.parametrize(
    ("kind", "causal"),
    [
        ("conmamba", False),
        ("conmamba", True),
        ("conformer", False),
        ("hmamba chunks", False),
        ("hmamba frames", False),
        ("hnet chunks", False),
        ("hnet frames", False),
    ],
)
def test_states_logits_and_losses_do_not_depend_on_the_batch(kind, causal, fill):
    model, wavs = recogniser(kind, causal), batch_wavs(fill)
    # A chunker divides small differences by their spread: float32's rounding shows sooner. In float64 it does
    # not (test_encoder.py).
    atol = 1e-4 if model.encoder.chunkers else 1e-5
    output, loss = run(model, wavs, SAMPLES, TARGETS)
    for i, (samples, target) in enumerate(zip(SAMPLES, TARGETS, strict=True)):
        alone, alone_loss = run(model, wavs[i : i + 1, :samples], [samples], [target])
        n, u = alone.encoded.states.shape[1], len(target) + 1
        assert output.encoded.lengths[i] == n == alone.encoded.lengths[0]
        for together, single in [
            (output.encoded.states[i, :n], alone.encoded.states[0]),
            (output.ctc_logits[i, :n], alone.ctc_logits[0]),
            (output.attention_logits[i, :u], alone.attention_logits[0, :u]),
        ]:
            torch.testing.assert_close(together, single, rtol=0, atol=atol)
        if output.intermediate_logits is not None:
            own, frames = alone.intermediate_logits[0], int(alone.encoded.intermediate.lengths)
            assert output.encoded.intermediate.lengths[i] == frames == len(own)
            torch.testing.assert_close(output.intermediate_logits[i, :frames], own, rtol=0, atol=atol)
        assert ("intermediate_ctc" in loss.parts) == (kind != "conformer")
        # Losses are sums of up to tens of terms in float32.
        torch.testing.assert_close(loss.total[i], alone_loss.total[0], rtol=1e-5, atol=atol)
        for name, part in loss.parts.items():
            torch.testing.assert_close(part[i], alone_loss.parts[name][0], rtol=1e-5, atol=atol)
        assert loss.infeasible[i] == alone_loss.infeasible[0]
        for stage, own in zip(output.encoded.stages, alone.encoded.stages, strict=True):
            chunks = int(own.num_chunks)
            assert torch.equal(stage.starts[i, :chunks], own.starts[0]) and int(stage.num_chunks[i]) == chunks


@pytest.mark.parametrize("kind", ["conmamba", "conformer"])
def test_loss_gradients_of_a_batch_are_the_sum_over_utterances(kind):
    """In float32, as the losses are by design and SpeechBrain's Conformer is inside."""
    model, wavs = recogniser(kind), batch_wavs("noise")

    def gradients(*batch):
        model.zero_grad()
        run(model, *batch)[1].total.sum().backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    batch = gradients(wavs, SAMPLES, TARGETS)
    alone = [gradients(wavs[i : i + 1, :n], [n], TARGETS[i : i + 1]) for i, n in enumerate(SAMPLES)]
    assert len(batch) == sum(1 for _ in model.parameters())
    for name, grad in batch.items():
        together = sum(each[name] for each in alone)
        torch.testing.assert_close(
            grad, together, rtol=1e-5, atol=1e-5 * max(1.0, float(together.abs().max())), msg=name
        )


def test_nan_in_the_padding_reaches_no_gradient():
    model = recogniser()
    run(model, batch_wavs("nan"), SAMPLES, TARGETS)[1].total.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_decoder_sees_no_later_token():
    model = recogniser()
    encoded = model.encode(torch.randn(1, 40, N_MELS), torch.tensor([40]))
    tokens = torch.tensor([[BOS, 5, 6, 7]])
    hidden, attention = model.decode(tokens, encoded.states, encoded.lengths)
    changed, _ = model.decode(torch.tensor([[BOS, 5, 9, 9]]), encoded.states, encoded.lengths)
    assert hidden.shape == (1, 4, D_MODEL) and attention.shape == (1, 4, encoded.states.shape[1])
    torch.testing.assert_close(hidden[:, :2], changed[:, :2], rtol=0, atol=1e-6)
    assert (hidden[:, 2] - changed[:, 2]).abs().max() > 1e-3


def test_decode_gives_what_training_sees():
    """The searchers' step and the teacher-forced pass are one computation."""
    model = recogniser()
    features, lengths, tokens = (
        torch.randn(2, 40, N_MELS),
        torch.tensor([40, 23]),
        torch.tensor([[BOS, 5, 6], [BOS, 4, 4]]),
    )
    output = model(features, lengths, tokens, torch.tensor([3, 3]))
    hidden, _ = model.decode(tokens, output.encoded.states, output.encoded.lengths)
    torch.testing.assert_close(model.output_head(hidden), output.attention_logits, rtol=0, atol=1e-6)


def test_causal_recogniser_from_features_on():
    model, x = recogniser(causal=True), torch.randn(1, 60, N_MELS)
    changed = x.clone()
    changed[:, 29:] += 1.0  # encoder frame j stands at feature frame 4j
    before, after = (model(features, torch.tensor([60])).ctc_logits for features in (x, changed))
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8], after[:, 8])


@pytest.mark.parametrize("kind", ["hmamba chunks", "hmamba frames", "hnet chunks", "hnet frames"])
def test_bf16_autocast_of_an_hmamba_is_finite_and_trains(kind):
    """The states may differ by a boundary; losses and gradients are finite and reach a router."""
    model = recogniser(kind).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, loss = run(model, batch_wavs("nan"), SAMPLES, TARGETS)
    assert output.encoded.stages[0].prob.dtype == torch.float32 and loss.total.isfinite().all()
    loss.total.sum().backward()
    chunker = model.encoder.chunker
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if chunker.has_router:
        assert chunker.query.weight.grad.any() and chunker.key.weight.grad.any()


@pytest.mark.parametrize("kind", ["conmamba", "hmamba chunks", "hmamba frames", "hnet chunks", "hnet frames"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_silence_and_one_frame_train_end_to_end(value, kind):
    model = recogniser(kind).train()
    wavs = torch.full((2, 4000), value)
    output, loss = run(model, wavs, [4000, 1], [[5, 6], [7]])
    assert not loss.infeasible.any()
    if not model.encoder.shortens:
        assert output.encoded.lengths.tolist() == [7, 1]
    loss.total.sum().backward()
    assert loss.total.isfinite().all() and all(
        parameter.grad.isfinite().all() for parameter in model.parameters()
    )


def test_bf16_autocast_stays_near_float32():
    """2^-8 = 0.4% for each rounding; the losses within 2%, the logits within 0.15 after front-end, encoder
    and decoder."""
    model, wavs = recogniser(), batch_wavs("nan")
    exact, exact_loss = run(model, wavs, SAMPLES, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, rough_loss = run(model, wavs, SAMPLES, TARGETS)
    assert rough_loss.total.dtype == torch.float32 and rough.ctc_logits.isfinite().all()
    torch.testing.assert_close(rough_loss.total, exact_loss.total, rtol=0.02, atol=0)
    valid = valid_mask(exact.encoded.lengths, exact.ctc_logits.shape[1])
    assert 0 < (rough.ctc_logits.float() - exact.ctc_logits)[valid].abs().max() < 0.15


def test_target_longer_than_the_limit():
    model = recogniser(max_target_length=4)
    features, lengths = torch.randn(1, 40, N_MELS), torch.tensor([40])
    model(features, lengths, torch.ones(1, 4, dtype=torch.long), torch.tensor([4]))
    with pytest.raises(ValueError, match="the token sequence has 5 tokens; the decoder's positions end at 4"):
        model(features, lengths, torch.ones(1, 5, dtype=torch.long), torch.tensor([5]))


def test_the_intermediate_logits_are_the_shared_head_on_what_the_encoder_gave():
    features, lengths = torch.randn(2, 40, N_MELS), torch.tensor([40, 23])
    for kind in ("conmamba", "hmamba chunks"):
        model = recogniser(kind)
        plain, both = model(features, lengths), model(features, lengths, intermediate=True)
        assert plain.intermediate_logits is None and torch.equal(plain.ctc_logits, both.ctc_logits)
        between = both.encoded.intermediate
        assert between.lengths.tolist() == [10, 6] and both.intermediate_logits.shape == (2, 10, VOCAB)
        assert torch.equal(both.intermediate_logits, model.ctc_head(between.states))


def test_an_encoder_without_intermediate_output_says_so():
    with pytest.raises(ValueError, match=r"the encoder has no intermediate output.*intermediate_layer"):
        recogniser("conformer")(torch.randn(1, 40, N_MELS), torch.tensor([40]), intermediate=True)


def test_without_targets_there_are_no_attention_logits():
    output = recogniser()(torch.randn(1, 40, N_MELS), torch.tensor([40]))
    assert output.attention_logits is None and output.ctc_logits.shape == (1, 10, VOCAB)


def test_heads_are_those_the_searcher_shares():
    model = recogniser()
    assert model.output_head.w.out_features == VOCAB and model.ctc_head is not model.output_head
    assert {"ctc_head.w.weight", "output_head.w.weight"} <= set(dict(model.named_parameters()))


def test_the_ctc_head_belongs_to_the_model():
    """A chunker that reads the CTC saves no head of its own, and a checkpoint has the keys that it always
    had."""
    model = recogniser("hmamba chunks")
    assert not [name for name in model.state_dict() if "chunker" in name]
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert [name for name in names if "ctc_head" in name] == ["ctc_head.w.weight", "ctc_head.w.bias"]
    old = recogniser("hmamba chunks")
    old.encoder.chunker = CTCChunker(
        target_ratio=1.5, ctc_head=old.ctc_head
    )  # as YAMLs of version 0.1 say it
    model.load_state_dict(old.state_dict())


def test_a_copied_model_chunks_by_its_own_head():
    """An exponential average and DDP copy the model; the copy's chunks follow the copy's head."""
    model, x, lengths = recogniser("hmamba chunks"), torch.randn(1, 160, N_MELS), torch.tensor([160])
    copied = copy.deepcopy(model)
    before = model.encode(x, lengths).stages[0]
    assert torch.equal(copied.encode(x, lengths).stages[0].prob, before.prob)
    torch.nn.init.normal_(copied.ctc_head.w.weight)
    assert not torch.equal(copied.encode(x, lengths).stages[0].prob, before.prob)
    assert torch.equal(model.encode(x, lengths).stages[0].prob, before.prob)
    wide = copied.double().encode(x.double(), lengths).stages[0]
    assert wide.prob.dtype == torch.float64


@pytest.mark.parametrize("kind", ["conmamba", "conformer", "hmamba chunks", "hmamba frames"])
def test_states_have_their_times_in_seconds(kind):
    """Encoder frame t is centred on feature frame 4 t: it begins two feature frames before."""
    encoded = recogniser(kind).encode(torch.randn(2, 160, N_MELS), torch.tensor([160, 41]))
    axis = encoded.time_axis
    offset, hop = axis.scale(0.01)
    assert (offset, hop) == (pytest.approx(-0.02), pytest.approx(0.04)) and axis.frames.tolist() == [40, 11]
    assert axis.seconds(torch.tensor([0.5, 7.5]), 0.01).tolist() == pytest.approx([0.0, 0.28])  # centres
    for row, frames in enumerate((40, 11)):
        starts = torch.arange(frames)
        if encoded.stages and encoded.lengths[row] < frames:
            starts = encoded.stages[0].starts[row, : encoded.lengths[row]]
        expected = [-0.02 + 0.04 * start for start in [*starts.tolist(), frames]]
        assert axis.edges(row, 0.01).tolist() == pytest.approx(expected)


def test_a_model_says_how_it_chunks():
    assert recogniser().chunking == []
    assert recogniser("hmamba chunks").chunking == [{"kind": "ctc", "ratio": 1.5}]
    assert recogniser("hnet frames").chunking == [{"kind": "router", "ratio": 1.5}]


def test_an_encoder_that_keeps_no_contract_is_refused_at_start():
    class Plain(torch.nn.Module):
        def forward(self, x, lengths):
            return EncoderOutput(x, lengths)

    class Old(Encoder):
        def forward(self, x, lengths):
            return EncoderOutput(x, lengths)

    class New(Encoder):
        def forward(self, x, lengths, min_states=None):
            return EncoderOutput(x, lengths)

    class Reader(New):
        reads_ctc = True

    with pytest.raises(
        ValueError, match=r"derive it from hmamba_asr.models.outputs.Encoder: `class Plain\(Encoder\):`"
    ):
        around(Plain())
    with pytest.raises(ValueError, match=r"write `def forward\(self, x, lengths, min_states=None\):`"):
        around(Old())
    with pytest.raises(
        ValueError, match=r"`def forward\(self, x, lengths, min_states=None, ctc_head=None\):`"
    ):
        around(Reader())
    features, lengths = torch.randn(2, 40, N_MELS), torch.tensor([40, 23])
    labels = torch.tensor([[BOS, 5], [BOS, 4]])
    shortening = New()
    shortening.shortens = True
    with pytest.raises(ValueError, match="New shortens its output and does not say when its states begin"):
        around(shortening)(torch.randn(1, 40, N_MELS), torch.tensor([40]))
    output = around(New()).train()(features, lengths, labels, torch.tensor([2, 2]))
    assert output.encoded.lengths.tolist() == [10, 6] and output.encoded.time_axis.frames.tolist() == [10, 6]
