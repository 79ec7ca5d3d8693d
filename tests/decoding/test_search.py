"""Hypotheses of a whole recogniser do not depend on the other utterances of a batch."""

import pytest
import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder

from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.beam_search import BeamSearch
from hmamba_asr.decoding.greedy import GreedySearch
from hmamba_asr.decoding.search import Search

BLANK, BOS, EOS, N_MELS = 0, 1, 2, 20
FRAMES = [60, 23, 4, 1, 41]


def beam_search(
    model, searcher=JointBeamSearcher, ctc_weight=0.4, min_decode_ratio=0.0, max_decode_ratio=1.0
):
    scorer = None
    if ctc_weight:
        ctc = CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)
        scorer = ScorerBuilder(full_scorers=[ctc], weights={"ctc": ctc_weight})
    return BeamSearch(
        searcher=searcher(
            modules=[model, model.output_head],
            bos_index=BOS,
            eos_index=EOS,
            beam_size=4,
            scorer=scorer,
            min_decode_ratio=min_decode_ratio,
            max_decode_ratio=max_decode_ratio,
            using_eos_threshold=False,
        )
    )


def batch_of_features(seed=0):
    torch.manual_seed(100 + seed)
    return torch.randn(len(FRAMES), max(FRAMES) + 9, N_MELS)  # noise past the ends


def together_and_alone(model, search, features):
    with torch.no_grad():
        together = search(model(features, torch.tensor(FRAMES)))
        alone = [
            search(model(x[None, :n], torch.tensor([n])))[0] for x, n in zip(features, FRAMES, strict=True)
        ]
    return together, alone


@pytest.mark.parametrize("kind", ["conmamba", "conformer"])
def test_greedy_hypotheses_do_not_depend_on_the_batch(recogniser, kind):
    for seed in range(5):
        together, alone = together_and_alone(
            recogniser(kind, seed), GreedySearch(blank=BLANK), batch_of_features(seed)
        )
        assert together == alone
        assert any(together)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
@pytest.mark.parametrize("eos_bias", [-4.0, 0.0, 3.0])  # never ends by itself; sometimes; early
def test_beam_hypotheses_do_not_depend_on_the_batch(recogniser, ctc_weight, eos_bias):
    found = []
    for seed in range(3):
        model = recogniser(seed=seed, eos_bias=eos_bias)
        together, alone = together_and_alone(
            model, beam_search(model, ctc_weight=ctc_weight), batch_of_features(seed)
        )
        assert together == alone
        found += together
    assert any(found)


@pytest.mark.parametrize(("ratios", "eos_bias"), [((0.0, 0.5), -4.0), ((0.3, 1.0), 8.0), ((0.0, 0.01), -4.0)])
def test_beam_step_limits_are_each_utterances_own(recogniser, ratios, eos_bias):
    """The models would go past the upper limit, or end before the lower one."""
    model = recogniser(eos_bias=eos_bias)
    search = beam_search(model, ctc_weight=0.0, min_decode_ratio=ratios[0], max_decode_ratio=ratios[1])
    together, alone = together_and_alone(model, search, batch_of_features())
    assert together == alone
    for hypothesis, frames in zip(
        together, model.frontend.output_lengths(torch.tensor(FRAMES)).tolist(), strict=True
    ):
        assert int(frames * ratios[0]) - 1 <= len(hypothesis) <= max(1, int(frames * ratios[1]))


def test_beam_is_speechbrains_on_one_utterance(recogniser):
    for seed in range(3):
        model, features = recogniser(seed=seed), batch_of_features(seed)
        for x, n in zip(features, FRAMES, strict=True):
            with torch.no_grad():
                output = model(x[None, :n], torch.tensor([n]))
            assert beam_search(model)(output) == beam_search(model, searcher=S2STransformerBeamSearcher)(
                output
            )


def test_search_follows_no_gradient_and_leaves_the_recogniser_where_it_is(recogniser):
    model = recogniser()
    search = beam_search(model)
    assert not list(search.parameters())
    hypotheses = search(model(batch_of_features()[:, :60], torch.tensor(FRAMES)))
    assert len(hypotheses) == len(FRAMES) and all(isinstance(token, int) for token in hypotheses[0])


def test_first_tokens_are_those_of_a_beam_of_one_and_do_not_depend_on_the_batch(recogniser):
    """After one step, the best first token does not depend on the beam's width."""
    seen = set()
    for seed in range(4):
        model, features = recogniser(seed=seed), batch_of_features(seed)
        wide, narrow, greedy = beam_search(model), beam_search(model), GreedySearch(blank=BLANK)
        narrow.searcher.beam_size = 1
        for search, whole in ((wide, narrow), (greedy, greedy)):
            together, alone = together_and_alone(model, search.first_tokens, features)
            hypotheses, _ = together_and_alone(model, whole, features)
            assert together == alone
            ends = None if search is greedy else EOS
            limits = model.frontend.output_lengths(torch.tensor(FRAMES)).tolist()
            for token, hypothesis, limit in zip(together, hypotheses, limits, strict=True):
                if search is greedy or limit > 1:  # a hypothesis gives its last token up at its limit
                    assert token == (hypothesis[0] if hypothesis else ends)
            seen |= set(together)
    assert len(seen) > 3


def test_first_tokens_of_what_cannot_give_them_are_refused(recogniser):
    model = recogniser()
    output = model(batch_of_features()[:, :60], torch.tensor(FRAMES))
    with pytest.raises(ValueError, match="S2STransformerBeamSearcher cannot stop after its first step"):
        beam_search(model, searcher=S2STransformerBeamSearcher).first_tokens(output)
    output.encoded.lengths[2] = 0
    with pytest.raises(ValueError, match="has no encoder states"):
        beam_search(model).first_tokens(output)


def test_a_search_refers_to_the_recogniser_without_owning_it(recogniser):
    """The recogniser's owner moves it and sets its mode; a repeated evaluation digests it once."""
    model = recogniser("conmamba", 0).train()
    for search in (GreedySearch(blank=BLANK), beam_search(model)):
        assert isinstance(search, Search) and search.lm_folder is None
        assert search.eval().state_dict() == {} and not list(search.children())
    assert isinstance(search.searcher, JointBeamSearcher) and model.training


def test_a_search_of_ones_own_says_what_it_must_define(recogniser):
    class Empty(Search):
        pass

    for method in (Empty(), Empty().first_tokens):
        with pytest.raises(NotImplementedError):
            method(None)
