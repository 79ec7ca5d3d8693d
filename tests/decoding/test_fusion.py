"""Language models in the search, on its results, and with the decoder's internal one subtracted."""

import random

import pytest
import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, KenLMScorer, ScorerBuilder, TransformerLMScorer
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from hmamba_asr.decoding import scorers
from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.beam_search import BeamSearch

BLANK, BOS, EOS, VOCAB, D, TEMPERATURE = 0, 1, 2, 30, 16, 1.2
LENGTHS = [20, 11, 1, 0, 6]


def language_model(seed=0):
    torch.manual_seed(seed)
    lm = TransformerLM(VOCAB, d_model=D, nhead=2, num_encoder_layers=2, d_ffn=32, dropout=0.1).eval()
    with torch.no_grad():
        lm.output_proj.layers[-1].w.weight.mul_(3)
    return lm


def search_of(
    model, *, lm=None, weight=0.5, ctc=0.4, kind=JointBeamSearcher, fusion="shallow", ilm=None, **options
):
    """Make a BeamSearch with CTC 0.4, attention 0.6 and a language model if one is given."""
    full, weights = [CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)], {"ctc": ctc}
    if lm is not None:
        full.append(TransformerLMScorer(language_model=lm, temperature=1.15))
        weights["transformerlm"] = weight
    options = {"beam_size": 5, "topk": 5, "using_eos_threshold": False, "temperature": TEMPERATURE, **options}
    searcher = kind(
        modules=[model, model.output_head],
        bos_index=BOS,
        eos_index=EOS,
        min_decode_ratio=0.0,
        max_decode_ratio=1.0,
        scorer=ScorerBuilder(full_scorers=full, weights=weights),
        **options,
    )
    return BeamSearch(searcher=searcher, lm=lm, lm_fusion=fusion, internal_lm_weight=ilm)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LENGTHS), max(LENGTHS), D, generator=generator), torch.tensor(LENGTHS)


def lm_log_prob(lm, tokens):
    """Return the language model's log-probability of a sentence with its end, without a cache."""
    with torch.no_grad():
        log_probs = (lm(torch.tensor([[BOS, *tokens]])) / 1.15).log_softmax(-1)[0]
    return float(log_probs.gather(1, torch.tensor([*tokens, EOS]).unsqueeze(1)).sum())


def silent_log_prob(model, tokens):
    """Return the decoder's log-probability of a sentence with its end, with zero cross-attention."""
    hooks = [
        layer.multihead_attn.register_forward_hook(
            lambda module, given, out: (torch.zeros_like(out[0]), out[1])
        )
        for layer in model.decoder.layers
    ]
    with torch.no_grad():
        hidden, _ = model.decode(torch.tensor([[BOS, *tokens]]), torch.randn(1, 3, D), torch.tensor([3]))
        log_probs = (model.output_head(hidden)[0] / TEMPERATURE).log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return float(log_probs.gather(1, torch.tensor([*tokens, EOS]).unsqueeze(1)).sum())


# ---- rescoring ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [True, False])
def test_rescored_lists_are_those_of_a_plain_loop(recogniser, normalised):
    """A plain loop rescores the n-best lists sentence by sentence. Some lists change their order."""
    reordered = 0
    for seed in range(4):
        model, lm = recogniser(seed=seed, vocab=VOCAB, eos_bias=2.0), language_model(seed)
        plain = search_of(model, length_normalization=normalised).searcher.search(*batch(seed))
        search = search_of(model, lm=lm, fusion="rescore", length_normalization=normalised).searcher
        for before, after in zip(plain, search.search(*batch(seed)), strict=True):
            expected = []
            for hypothesis in before:
                if hypothesis.parts:  # the utterance has frames
                    share = lm_log_prob(lm, hypothesis.tokens)
                    count = len(hypothesis.tokens) + 1 if normalised else 1
                    expected.append((hypothesis.score + 0.5 * share / count, hypothesis.tokens, share))
            expected.sort(key=lambda item: -item[0])
            if expected:
                assert [h.tokens for h in after] == [tokens for _, tokens, _ in expected]
                assert [h.score for h in after] == pytest.approx([score for score, *_ in expected], abs=1e-4)
                assert [h.parts["transformerlm"] for h in after] == pytest.approx(
                    [e[2] for e in expected], abs=1e-3
                )
            reordered += [h.tokens for h in before] != [h.tokens for h in after]
    assert reordered >= 3


def test_rescoring_ranks_the_whole_beam_and_gives_the_best(recogniser):
    model, lm = recogniser(seed=1, vocab=VOCAB, eos_bias=2.0), language_model(1)
    all_five = search_of(model, lm=lm, fusion="rescore").searcher.search(*batch(1))
    search = search_of(model, lm=lm, fusion="rescore", topk=1)
    best = search.searcher.search(*batch(1))
    assert [found[0].tokens for found in best] == [found[0].tokens for found in all_five]
    assert all(len(found) == 1 for found in best) and max(map(len, all_five)) > 3
    states, lengths = batch(1)
    tokens, _, scores, _ = search.searcher(
        states, lengths / states.shape[1]
    )  # SpeechBrain's call gives the same
    assert tokens == [found[0].tokens for found in best]
    assert scores.tolist() == pytest.approx([found[0].score for found in best], abs=1e-6)


def test_sentences_in_parts_are_the_sentences_at_once(recogniser, monkeypatch):
    lm = language_model()
    scorer = scorers.TransformerLMScorer(TransformerLMScorer(language_model=lm, temperature=1.15), 1.0, False)
    generator = torch.Generator().manual_seed(5)
    sentences = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (7, 0, 12, 3, 12, 1)]
    given = {"bos": BOS, "eos": EOS, "device": torch.device("cpu")}
    with torch.no_grad():
        whole = scorer.score_sentences(sentences, **given)
        monkeypatch.setattr(scorers, "LOGITS_AT_ONCE", 2 * 14 * VOCAB)
        parts = scorer.score_sentences(sentences, **given)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert whole.tolist() == pytest.approx([lm_log_prob(lm, sentence) for sentence in sentences], abs=1e-4)


@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_rescoring_in_bfloat16(recogniser, way):
    model, lm = recogniser(vocab=VOCAB, eos_bias=1.0), language_model()
    states, lengths = batch()
    exact = search_of(model, lm=lm, fusion="rescore").searcher.search(states, lengths)
    if way == "weights":
        model.bfloat16(), lm.bfloat16()
        states = states.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        found = search_of(model, lm=lm, fusion="rescore").searcher.search(states, lengths)
    assert [h[0].score for h in found] == pytest.approx([h[0].score for h in exact], rel=0.05, abs=0.05)


# ---- internal language model -------------------------------------------------------------------------------


def test_the_internal_language_model_is_the_decoder_without_cross_attention_and_taken_off(recogniser):
    differ = 0
    for seed in range(3):
        model, lm = recogniser(seed=seed, vocab=VOCAB, eos_bias=2.0), language_model(seed)
        off = search_of(model, lm=lm, fusion="ilm", ilm=0.25).searcher.search(*batch(seed))
        shallow = search_of(model, lm=lm).searcher.search(*batch(seed))
        for found, without in zip(off, shallow, strict=True):
            differ += [h.tokens for h in found] != [h.tokens for h in without]
            for hypothesis in found:
                if not (hypothesis.ended and hypothesis.parts):
                    continue  # at the step limit the last token's shares are counted, and the token given up
                parts = hypothesis.parts
                assert parts["internal_lm"] == pytest.approx(
                    silent_log_prob(model, hypothesis.tokens), abs=1e-3
                )
                assert parts["transformerlm"] == pytest.approx(lm_log_prob(lm, hypothesis.tokens), abs=1e-3)
                total = (
                    0.6 * parts["attention"]
                    + 0.4 * parts["ctc"]
                    + 0.5 * parts["transformerlm"]
                    - 0.25 * parts["internal_lm"]
                )
                assert hypothesis.score == pytest.approx(total / (len(hypothesis.tokens) + 1), abs=1e-4)
    assert differ >= 3


# ---- n-gram ------------------------------------------------------------------------------------------------


def test_an_ngram_joins_as_in_speechbrain(recogniser, reference_searcher, tmp_path):
    """SpeechBrain's KenLM scorer with random bigrams, in its search and in ours."""
    pytest.importorskip("kenlm")
    draw = random.Random(0)
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCAB))]
    pairs = [(a, b) for a in words[1:] for b in words[2:] if a != "</s>" and draw.random() < 0.3]
    lines = ["\\data\\", f"ngram 1={VOCAB}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    lines += [f"{draw.uniform(-3, -0.5)}\t{word}\t{draw.uniform(-1, 0)}" for word in words]
    lines += ["", "\\2-grams:", *(f"{draw.uniform(-2, 0)}\t{a} {b}" for a, b in pairs), "", "\\end\\", ""]
    (tmp_path / "ngram.arpa").write_text("\n".join(lines))
    same, without = [], []
    for seed in range(3):
        model, (states, lengths) = recogniser(seed=seed, vocab=VOCAB, eos_bias=2.0), batch(seed)
        states, lengths = states[lengths > 0], lengths[lengths > 0]
        found = []
        for kind, weight in ((JointBeamSearcher, 0.3), (reference_searcher, 0.3), (JointBeamSearcher, 0.0)):
            scorer = KenLMScorer(str(tmp_path / "ngram.arpa"), VOCAB, words)
            ctc = CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)
            builder = ScorerBuilder(
                full_scorers=[ctc], partial_scorers=[scorer], weights={"ctc": 0.4, "kenlm": weight}
            )
            search = kind(
                modules=[model, model.output_head],
                bos_index=BOS,
                eos_index=EOS,
                min_decode_ratio=0.0,
                max_decode_ratio=1.0,
                beam_size=5,
                using_eos_threshold=False,
                scorer=builder,
            )
            with torch.no_grad():
                found.append(search(states.clone(), lengths / states.shape[1]))
        same += [a == b for a, b in zip(found[0][0], found[1][0], strict=True)]
        torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=1e-3)
        without += [a == b for a, b in zip(found[0][0], found[2][0], strict=True)]
    assert all(same) and not all(without)


# ---- all of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fusion", "ilm"), [("shallow", None), ("rescore", None), ("ilm", 0.3)])
def test_a_mixed_batch_gives_what_each_utterance_gives_alone(recogniser, fusion, ilm):
    for seed in range(3):
        model, lm = recogniser(seed=seed, vocab=VOCAB, eos_bias=1.5), language_model(seed)
        search = search_of(model, lm=lm, fusion=fusion, ilm=ilm).searcher
        states, lengths = batch(seed)
        for x, n, found in zip(states, lengths, search.search(states, lengths), strict=True):
            (alone,) = search.search(x[None, :n], n[None])
            assert [h.tokens for h in found] == [h.tokens for h in alone]
            assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)


@pytest.mark.parametrize(("fusion", "ilm"), [("shallow", None), ("rescore", None), ("ilm", 0.0)])
def test_weights_of_zero_change_nothing(recogniser, fusion, ilm):
    """A language model of weight 0 changes nothing; an internal one of weight 0 gives shallow fusion."""
    model, lm = recogniser(vocab=VOCAB, eos_bias=1.5), language_model()
    weight, plain = (0.5, search_of(model, lm=lm)) if fusion == "ilm" else (0.0, search_of(model))
    found = search_of(model, lm=lm, weight=weight, fusion=fusion, ilm=ilm).searcher.search(*batch())
    for ours, theirs in zip(found, plain.searcher.search(*batch()), strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-5)


@pytest.mark.parametrize(("fusion", "ilm"), [("shallow", None), ("rescore", None), ("ilm", 0.3)])
@pytest.mark.parametrize("weights", [{"ctc": 0.1}, {"lm": 0.9}, {"ctc": 1.0, "lm": 0.2}, {"ctc": 0.0}])
def test_other_weights_are_another_search(recogniser, fusion, ilm, weights):
    """The search equals one built with the weights, and the old weights bring the old search back."""
    model, lm = recogniser(seed=2, vocab=VOCAB, eos_bias=1.0), language_model(2)
    search, (states, lengths) = search_of(model, lm=lm, fusion=fusion, ilm=ilm).searcher, batch(2)
    before = search.search(states, lengths)
    search.set_weights(**weights)
    after, given = search.search(states, lengths), search.weights()
    search.set_weights(ctc=0.4, lm=0.5)
    again = search.search(states, lengths)
    options = {"ctc": weights.get("ctc", 0.4), "weight": weights.get("lm", 0.5)}
    built = search_of(model, lm=lm, fusion=fusion, ilm=ilm, **options).searcher
    assert given == built.weights() and given["attention"] == 1 - given["ctc"] == 1 - options["ctc"]
    assert given["transformerlm"] == options["weight"]
    for ours, theirs in ((after, built.search(states, lengths)), (again, before)):
        for a, b in zip(ours, theirs, strict=True):
            assert [h.tokens for h in a] == [h.tokens for h in b]
            assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-4)
    assert [h.score for hs in after for h in hs] != pytest.approx(
        [h.score for hs in before for h in hs], abs=1e-3
    )


def test_weights_that_cannot_be_are_refused_and_change_nothing(recogniser):
    model = recogniser(seed=0, vocab=VOCAB)
    search = search_of(model).searcher
    for weights, message in (
        ({"ctc": -0.1}, "the CTC's weight is -0.1; it must be from 0 to 1"),
        ({"ctc": 0.9, "lm": 0.3}, "has no language model to be given the weight 0.3"),
        ({"ctc": 0.9, "lm": float("nan")}, "the language model's weight is nan; it must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            search.set_weights(**weights)
        assert search.weights() == {"attention": 0.6, "ctc": 0.4}
    search.scorers[0].partial = True
    with pytest.raises(ValueError, match="have it among the full scorers"):
        search.set_weights(ctc=1.0)
    assert search.weights() == {"attention": 0.6, "ctc": 0.4}
    search.scorers.clear()
    with pytest.raises(ValueError, match="has no CTC to be given the weight 0.5"):
        search.set_weights(ctc=0.5)


def test_a_weight_of_no_language_model_is_refused(recogniser):
    """The user would take it for the weight of the scorers' model. Without one, lm_folder may be null."""
    model, lm = recogniser(vocab=VOCAB), language_model()
    with pytest.raises(ValueError, match="lm_weight is 0.4 and there is no lm_folder"):
        BeamSearch(searcher=search_of(model, lm=lm).searcher, lm=lm, lm_weight=0.4)
    assert BeamSearch(searcher=search_of(model).searcher, lm_weight=0.4).lm is None


def test_rescoring_keeps_within_the_positions_of_the_language_model(recogniser):
    model = recogniser(vocab=VOCAB, eos_bias=-50.0)  # goes on to the limit
    torch.manual_seed(0)
    lm = TransformerLM(VOCAB, d_model=D, nhead=2, num_encoder_layers=1, d_ffn=32, max_length=9).eval()
    found = search_of(model, lm=lm, fusion="rescore").searcher.search(*batch())
    assert len(found[0][0].tokens) == 8


def test_no_frames_at_all(recogniser):
    model = recogniser(vocab=VOCAB)
    search = search_of(model, lm=language_model(), fusion="rescore").searcher
    assert [
        found[0].tokens for found in search.search(torch.zeros(2, 0, D), torch.zeros(2, dtype=torch.long))
    ] == [[], []]


def test_what_cannot_be_is_refused(recogniser):
    model, lm = recogniser(vocab=VOCAB), language_model()
    with pytest.raises(ValueError, match="lm_fusion is 'deep'; choose one of shallow, rescore, ilm"):
        search_of(model, lm=lm, fusion="deep")
    with pytest.raises(
        ValueError, match="internal_lm_weight is 0.1 and lm_fusion shallow; set lm_fusion: ilm"
    ):
        search_of(model, lm=lm, ilm=0.1)
    with pytest.raises(ValueError, match="lm_fusion is ilm without an internal_lm_weight; set one"):
        search_of(model, lm=lm, fusion="ilm")
    for fusion, ilm in (("rescore", None), ("ilm", 0.1)):
        with pytest.raises(
            ValueError, match=f"lm_fusion is {fusion} and the search has no language model; give --lm_folder"
        ):
            search_of(model, fusion=fusion, ilm=ilm)
        with pytest.raises(
            ValueError, match="need JointBeamSearcher; the searcher is a S2STransformerBeamSearcher"
        ):
            search_of(model, lm=lm, kind=S2STransformerBeamSearcher, fusion=fusion, ilm=ilm)
    with pytest.raises(ValueError, match="no language model to rescore with"):
        search_of(model).searcher.enable_rescoring()
