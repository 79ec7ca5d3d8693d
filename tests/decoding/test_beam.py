"""Our joint beam search gives SpeechBrain's hypotheses, and keeps its own rules."""

import itertools
import math

import pytest
import torch
from speechbrain.decoders.scorer import (
    CoverageScorer,
    CTCScorer,
    KenLMScorer,
    LengthScorer,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear
from torch import nn

from hmamba_asr.decoding import beam as beam_module
from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.ctc_prefix import CTCPrefixScorer
from hmamba_asr.decoding.stepper import TransformerStepper

BLANK, BOS, EOS, VOCAB, D = 0, 1, 2, 40, 16
LENGTHS = [25, 19, 13, 7, 2, 1]


def language_model(seed=0, vocab=VOCAB):
    torch.manual_seed(seed)
    lm = TransformerLM(vocab, d_model=D, nhead=2, num_encoder_layers=2, d_ffn=32).eval()
    with torch.no_grad():
        lm.output_proj.layers[-1].w.weight.mul_(3)
    return lm


def scorers(model, *, ctc=0.0, lm=None, length=0.0, partial=(), window=0):
    """Make a ScorerBuilder; each searcher needs its own, because SpeechBrain's scorers keep states."""
    groups, weights = {True: [], False: []}, {}
    if ctc:
        weights["ctc"] = ctc
        scorer = CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS, ctc_window_size=window)
        groups["ctc" in partial].append(scorer)
    if lm is not None:
        weights["transformerlm"] = 0.5
        groups["lm" in partial].append(TransformerLMScorer(language_model=lm, temperature=1.15))
    if length:
        weights["length"] = length
        groups[False].append(LengthScorer(vocab_size=VOCAB))
    return (
        ScorerBuilder(full_scorers=groups[False], partial_scorers=groups[True], weights=weights)
        if weights
        else None
    )


def searcher(kind, model, *, added=None, **options):
    options = {
        "beam_size": 4,
        "min_decode_ratio": 0.0,
        "max_decode_ratio": 1.0,
        "using_eos_threshold": False,
        **options,
    }
    scorer = scorers(model, **(added or {}))
    return kind(modules=[model, model.output_head], bos_index=BOS, eos_index=EOS, scorer=scorer, **options)


def batch(seed=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(len(lengths), max(lengths), D, generator=generator), torch.tensor(lengths)


def compare(reference_searcher, model, states, lengths, **options):
    """Return for every utterance whether the hypotheses agree, and the difference of the scores."""
    relative = lengths / states.shape[1]
    with torch.no_grad():
        expected = searcher(reference_searcher, model, **options)(states.clone(), relative)
        actual = searcher(JointBeamSearcher, model, **options)(states, relative)
    return [
        (a == b, abs(float(s - t)))
        for a, b, s, t in zip(actual[0], expected[0], actual[2], expected[2], strict=True)
    ]


def test_hypotheses_are_speechbrains(recogniser, reference_searcher):
    """12 settings and 24 utterances; some utterances have one frame."""
    results = []
    for seed, eos_bias in enumerate(
        [1.0, -50.0, 0.0, 3.0]
    ):  # one never ends by itself: it reaches the step limit
        model, lm = recogniser(seed=seed, vocab=VOCAB, eos_bias=eos_bias), language_model(seed)
        for beam, ctc, with_lm in itertools.product((1, 4, 10), (0.0, 0.4), (False, True)):
            added = {"ctc": ctc, "lm": lm if with_lm else None}
            results += compare(
                reference_searcher, model, *batch(seed), beam_size=beam, added=added, temperature=1.15
            )
    same = [score for identical, score in results if identical]
    assert len(results) >= 200 and len(same) >= 0.995 * len(results)
    assert max(score for _, score in results) <= 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"using_eos_threshold": True},
        {"using_eos_threshold": True, "eos_threshold": 1.05, "added": {"ctc": 0.3}},
        {"min_decode_ratio": 0.4, "max_decode_ratio": 0.7, "added": {"ctc": 0.3}},
        {"length_normalization": False, "added": {"ctc": 0.3}},
        {"length_normalization": False, "added": {"ctc": 0.3, "length": 1.5}},
        {"length_normalization": False, "added": {"length": 8.0}},
        {"added": {"ctc": 0.3, "partial": ("ctc",)}},
    ],
    ids=str,
)
def test_the_rules_are_speechbrains(options, recogniser, reference_searcher):
    results = []
    for seed in range(3):
        results += compare(
            reference_searcher, recogniser(seed=seed, vocab=VOCAB, eos_bias=2.0), *batch(seed), **options
        )
    assert all(same and score < 1e-3 for same, score in results)


def steady_attention(tokens, step, frames):
    """Return attention (..., frames) that moves by about two frames a step, depending on the token.

    The attention of random decoders jumps.
    """
    peaks = (2 * step + tokens * 7 % 5).clamp(max=frames - 1)
    return torch.nn.functional.one_hot(peaks, frames).float()


@pytest.fixture
def attends_steadily(monkeypatch, reference_searcher):
    """Make the decoders of both searches attend steadily."""
    theirs, ours = reference_searcher.forward_step, TransformerStepper.step

    def forward_step(self, inp_tokens, memory, enc_states, enc_lens):
        log_probs, memory, _ = theirs(self, inp_tokens, memory, enc_states, enc_lens)
        return log_probs, memory, steady_attention(inp_tokens, memory.shape[1] - 1, enc_states.shape[1])

    def step(self, state, tokens, *, with_attention=False):
        hidden, attention = ours(self, state, tokens, with_attention=with_attention)
        return hidden, steady_attention(
            tokens, int(state.position) - 1, attention.shape[-1]
        ) if with_attention else None

    monkeypatch.setattr(reference_searcher, "forward_step", forward_step)
    monkeypatch.setattr(TransformerStepper, "step", step)


@pytest.mark.parametrize("ctc", [0.0, 0.3])
def test_attention_shifts_block_as_in_speechbrain(ctc, recogniser, reference_searcher, attends_steadily):
    blocked = 0
    for seed in range(4):
        model, (states, lengths) = recogniser(seed=seed, vocab=VOCAB, eos_bias=2.0), batch(seed, [25, 19])
        options = {"added": {"ctc": ctc}, "using_max_attn_shift": True}
        results = compare(reference_searcher, model, states, lengths, **options, max_attn_shift=4)
        assert all(same and score < 1e-3 for same, score in results)
        found = [
            searcher(JointBeamSearcher, model, **options, max_attn_shift=shift)(states, lengths / 25)[0]
            for shift in (4, 100)
        ]
        blocked += found[0] != found[1]
    assert blocked


@pytest.mark.parametrize("window", [4, 6])
def test_the_ctc_window_is_speechbrains_on_one_utterance(
    window, recogniser, reference_searcher, attends_steadily
):
    """One utterance only: SpeechBrain has one window for all utterances of a batch."""
    narrowed = 0
    for seed in range(4):
        model, (states, lengths) = recogniser(seed=seed, vocab=VOCAB, eos_bias=2.0), batch(seed, [25])
        (result,) = compare(reference_searcher, model, states, lengths, added={"ctc": 0.3, "window": window})
        assert result[0] and result[1] < 1e-3
        found = [
            searcher(JointBeamSearcher, model, added={"ctc": 0.3, "window": w})(states, lengths / 25)[2]
            for w in (window, 100, 0)
        ]
        assert float(found[1]) == pytest.approx(float(found[2]), abs=1e-5)
        narrowed += abs(float(found[0] - found[1])) > 1e-4
    assert narrowed


def test_where_every_hypothesis_jumps_the_best_goes_on(recogniser):
    """Random attention and a shift of one frame would rule out every hypothesis."""
    search = searcher(
        JointBeamSearcher, recogniser(vocab=VOCAB, eos_bias=-9.0), using_max_attn_shift=True, max_attn_shift=1
    )
    for (best,), length in zip(search.search(*batch()), LENGTHS, strict=True):
        assert len(best.tokens) == length - 1 and math.isfinite(best.score)


def test_speechbrains_own_recogniser_is_searched_too(reference_searcher):
    torch.manual_seed(0)
    model = TransformerASR(
        VOCAB,
        8,
        d_model=D,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=2,
        d_ffn=24,
        activation=nn.GELU,
        normalize_before=False,
        causal=False,
    ).eval()
    model.output_head, model.ctc_head = (
        Linear(input_size=D, n_neurons=VOCAB),
        Linear(input_size=D, n_neurons=VOCAB),
    )
    results = compare(reference_searcher, model, *batch(), added={"ctc": 0.4})
    assert all(same and score < 1e-3 for same, score in results)


# ---- batches, lengths, ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("checks", [1, 4])
def test_a_mixed_batch_gives_what_each_utterance_gives_alone(recogniser, monkeypatch, checks):
    """The results do not depend on how often the search checks whether it is over."""
    monkeypatch.setattr(beam_module, "STEPS_BETWEEN_CHECKS", {"cpu": checks})
    for seed in range(4):
        model, lm = recogniser(seed=seed, vocab=VOCAB, eos_bias=1.5), language_model(seed)
        search = searcher(JointBeamSearcher, model, added={"ctc": 0.4, "lm": lm}, topk=3)
        states, lengths = batch(seed, [4, 25, 1, 13, 0, 19])
        states[lengths == 0] = float("nan")
        together = search.search(states, lengths)
        for x, n, found in zip(states, lengths, together, strict=True):
            (alone,) = search.search(x[None, :n], n[None])
            assert [h.tokens for h in found] == [h.tokens for h in alone]
            assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)


def test_no_frames_is_an_empty_hypothesis(recogniser):
    search = searcher(JointBeamSearcher, recogniser(vocab=VOCAB), added={"ctc": 0.4})
    for frames in (0, 5):
        assert search(torch.zeros(2, frames, D), torch.zeros(2))[0] == [[], []]


def test_one_frame_has_no_room_for_more_than_the_end(recogniser):
    search = searcher(JointBeamSearcher, recogniser(vocab=VOCAB, eos_bias=-9.0), added={"ctc": 0.4})
    ((best,),) = search.search(torch.randn(1, 1, D), torch.tensor([1]))
    assert best.tokens == [] and not best.ended and math.isfinite(best.score)


def test_a_ctc_of_blanks_only_leaves_nothing(recogniser, reference_searcher):
    model = recogniser(vocab=VOCAB, eos_bias=1.0)
    with torch.no_grad():
        model.ctc_head.w.bias[BLANK] += 40.0
    states, lengths = batch()
    results = compare(reference_searcher, model, states, lengths, added={"ctc": 0.4})
    assert all(same and score < 1e-3 for same, score in results)
    assert searcher(JointBeamSearcher, model, added={"ctc": 0.9})(states, lengths / 25)[0] == [[]] * 6


def test_the_step_limit_is_reached_and_kept(recogniser):
    model = recogniser(vocab=VOCAB, eos_bias=-50.0)  # room for 40 tokens
    search = searcher(JointBeamSearcher, model)
    states, lengths = batch(lengths=[60, 50, 12])
    for (best,), limit in zip(search.search(states, lengths), (40, 40, 12), strict=True):
        assert len(best.tokens) == limit - 1 and not best.ended


@pytest.mark.parametrize("ctc", [0.0, 0.4])
def test_a_beam_of_one_is_greedy_decoding(recogniser, ctc):
    """A plain loop over one utterance with the uncached decoder and CTC prefix scores finds the same."""
    for seed in range(5):
        model = recogniser(seed=seed, vocab=VOCAB, eos_bias=2.0)
        states, lengths = batch(seed, [25])
        tokens = [BOS]
        with torch.no_grad():
            prefixes = CTCPrefixScorer(model.ctc_head(states).log_softmax(-1), lengths, blank=BLANK, eos=EOS)
            state = prefixes.start()
            while tokens[-1] != EOS and len(tokens) <= 25:
                hidden, _ = model.decode(torch.tensor([tokens]), states, lengths)
                scores = (1 - ctc) * model.output_head(hidden)[0, -1].log_softmax(-1)
                if ctc:
                    scores = scores + ctc * prefixes.next_scores(state)[0, 0]
                tokens.append(int(scores.argmax()))
                state = prefixes.extend(state, torch.tensor([[0]]), torch.tensor([tokens[-1:]]))
            found = searcher(JointBeamSearcher, model, beam_size=1, added={"ctc": ctc})(states, lengths / 25)[
                0
            ]
        assert found == [tokens[1:-1]]


def test_the_ctc_alone_finds_the_most_likely_label_sequence(recogniser):
    """A beam that holds every prefix finds the best of all label sequences. The decoder has weight 0."""
    frames, vocab = 5, 5
    for seed in range(3):
        model = recogniser(seed=seed, vocab=vocab)
        states = torch.randn(1, frames, D, generator=torch.Generator().manual_seed(seed))
        search = searcher(
            JointBeamSearcher,
            model,
            added={"ctc": 1.0},
            beam_size=300,
            max_decode_ratio=2.0,
            length_normalization=False,
        )
        model.decoder = None
        probs = model.ctc_head(states)[0].softmax(-1)
        found: dict[tuple, float] = {}
        for path in itertools.product(range(vocab), repeat=frames):
            labels = tuple(label for label, _ in itertools.groupby(path) if label != BLANK)
            if EOS not in labels:  # for the search it is the end
                weight = math.prod(float(probs[t, label]) for t, label in enumerate(path))
                found[labels] = found.get(labels, 0.0) + weight
        expected = max(found, key=found.get)
        ((best,),) = search.search(states, torch.tensor([frames]))
        assert tuple(best.tokens) == expected
        assert best.score == pytest.approx(math.log(found[expected]), abs=1e-4)


def test_a_search_ends_when_no_live_hypothesis_can_win(recogniser, monkeypatch):
    """Scores only fall, so without length normalisation no open hypothesis catches up with a finished one."""
    model = recogniser(vocab=VOCAB, eos_bias=2.0)
    states, lengths = batch()
    steps = []
    inner = JointBeamSearcher._step
    monkeypatch.setattr(JointBeamSearcher, "_step", lambda self, *a: steps.append(1) or inner(self, *a))
    search = searcher(JointBeamSearcher, model, length_normalization=False, beam_size=10)
    early = search.search(states, lengths)
    early_steps = len(steps)
    search.max_gain = math.inf  # never sure
    late = search.search(states, lengths)
    assert [h[0].tokens for h in early] == [h[0].tokens for h in late]
    assert early_steps < len(steps) - early_steps


# ---- results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [True, False])
def test_scores_are_made_of_their_parts(recogniser, normalised):
    model, lm = recogniser(vocab=VOCAB, eos_bias=5.0), language_model()
    added = {"ctc": 0.3, "lm": lm, **({} if normalised else {"length": 0.7})}
    search = searcher(JointBeamSearcher, model, added=added, topk=4, length_normalization=normalised)
    states, lengths = batch(lengths=[20])
    (found,) = search.search(states, lengths)
    weights = {"attention": 0.7, "ctc": 0.3, "transformerlm": 0.5, "length": 0.7}
    assert len(found) == 4 and len({tuple(h.tokens) for h in found}) == 4
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for hypothesis in found:
        count = len(hypothesis.tokens) + 1
        total = sum(weights[name] * part for name, part in hypothesis.parts.items())
        assert hypothesis.score == pytest.approx(total / count if normalised else total, abs=1e-4)
        assert sum(hypothesis.log_probs) == pytest.approx(0.7 * hypothesis.parts["attention"], abs=1e-3)
        whole = torch.tensor([[BOS, *hypothesis.tokens]])
        with torch.no_grad():
            expected = (
                (lm(whole) / 1.15)
                .log_softmax(-1)[0]
                .gather(-1, torch.tensor([[*hypothesis.tokens, EOS]]).T)
                .sum()
            )
        assert hypothesis.ended and hypothesis.parts["transformerlm"] == pytest.approx(
            float(expected), abs=1e-3
        )


def test_nbest_tensors_have_speechbrains_form(recogniser, reference_searcher):
    model = recogniser(vocab=VOCAB, eos_bias=1.0)
    states, lengths = batch(lengths=[25, 19])
    options = {"topk": 3, "return_topk": True, "beam_size": 8, "added": {"ctc": 0.4}}
    with torch.no_grad():
        expected = searcher(reference_searcher, model, **options)(states.clone(), lengths / 25)
        actual = searcher(JointBeamSearcher, model, **options)(states, lengths / 25)
    for theirs, ours in zip(expected[:3], actual[:3], strict=True):
        assert theirs.shape[:2] == ours.shape[:2] == (2, 3)
    torch.testing.assert_close(actual[2], expected[2], rtol=0, atol=1e-3)
    counts, ours = ((found[1] * found[0].shape[-1]).round().long().tolist() for found in (expected, actual))
    assert counts == ours
    for b, k in itertools.product(range(2), range(3)):
        n = counts[b][k]
        assert actual[0][b, k, :n].tolist() == expected[0][b, k, :n].tolist()
        torch.testing.assert_close(actual[3][b, k, : n + 1], expected[3][b, k, : n + 1], rtol=0, atol=1e-3)


def test_bfloat16_finds_close_hypotheses(recogniser):
    """With autocast or bfloat16 weights, scores agree with float32 within the precision."""
    model, lm = recogniser(vocab=VOCAB, eos_bias=1.0), language_model()
    states, lengths = batch()
    added = {"ctc": 0.4, "lm": lm}
    exact = searcher(JointBeamSearcher, model, added=added)(states, lengths / 25)[2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = searcher(JointBeamSearcher, model, added=added)(states, lengths / 25)[2]
    model.bfloat16(), lm.bfloat16()
    half = searcher(JointBeamSearcher, model, added=added)(states.bfloat16(), lengths / 25)[2]
    for scores in (autocast, half):
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, exact, rtol=0.05, atol=0.05)


# ---- n-gram ------------------------------------------------------------------------------------------------


class FakeKenLM:
    """A bigram over words with KenLM's methods; its state is the last word."""

    class State:
        word = None

    class Model:
        def NullContextWrite(self, state):
            state.word = "<null>"

        def BaseScore(self, state, word, following):
            following.word = word
            return -((len(state.word or "") * 7 + int(word[1:]) * 5) % 11) / 3.0


def ngram_scorer(partial):
    scorer = KenLMScorer.__new__(KenLMScorer)  # its constructor wants the package and a file
    scorer.kenlm, scorer.lm, scorer.id2char = FakeKenLM, FakeKenLM.Model(), [f"w{i}" for i in range(VOCAB)]
    group = {"partial_scorers" if partial else "full_scorers": [scorer]}
    return ScorerBuilder(**group, weights={"kenlm": 0.3})


@pytest.mark.parametrize("partial", [True, False])
def test_ngram_scores_follow_each_hypothesis(recogniser, partial):
    model = recogniser(vocab=VOCAB, eos_bias=1.0)
    rules = {
        "min_decode_ratio": 0.0,
        "max_decode_ratio": 1.0,
        "using_eos_threshold": False,
        "beam_size": 4,
        "topk": 3,
    }
    search = JointBeamSearcher([model, model.output_head], BOS, EOS, **rules, scorer=ngram_scorer(partial))
    states, lengths = batch()
    for found in search.search(states, lengths):
        for hypothesis in found:
            state, total = FakeKenLM.State(), 0.0
            FakeKenLM.Model().NullContextWrite(state)
            for token in [*hypothesis.tokens, EOS]:
                following = FakeKenLM.State()
                total += FakeKenLM.Model().BaseScore(state, f"w{token}", following) * math.log(10)
                state = following
            if hypothesis.ended:
                assert hypothesis.parts["kenlm"] == pytest.approx(total, rel=1e-4)


# ---- what it refuses ---------------------------------------------------------------------------------------


def test_bad_settings_are_refused_by_name(recogniser):
    model = recogniser(vocab=VOCAB)
    with pytest.raises(ValueError, match="no counterpart of CoverageScorer"):
        coverage = ScorerBuilder(full_scorers=[CoverageScorer(vocab_size=VOCAB)], weights={"coverage": 1.0})
        JointBeamSearcher([model, model.output_head], BOS, EOS, 0.0, 1.0, 4, scorer=coverage)
    with pytest.raises(ValueError, match="exclude each other"):
        searcher(JointBeamSearcher, model, added={"length": 1.0})
    with pytest.raises(ValueError, match="topk is 5 and beam_size 4"):
        searcher(JointBeamSearcher, model, topk=5)
    with pytest.raises(ValueError, match="bos is token 0, which .* takes for padding"):
        JointBeamSearcher(
            [model, model.output_head], 0, EOS, 0.0, 1.0, 4, scorer=scorers(model, lm=language_model())
        )
    with pytest.raises(ValueError, match="three different tokens"):
        JointBeamSearcher([model, model.output_head], BLANK, EOS, 0.0, 1.0, 4, scorer=scorers(model, ctc=0.3))
    with pytest.raises(ValueError, match="utterance 1 of the batch are not finite"):
        states, lengths = batch()
        states[1, 3, 0] = float("nan")
        searcher(JointBeamSearcher, model).search(states, lengths)
