"""Greedy and beam search: known answers, and hypotheses that do not depend on batch mates."""

import pytest
import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.nnet.linear import Linear

from hmamba_asr.decoding.beam import BeamSearch, BeamSearcher, GreedySearch
from hmamba_asr.decoding.ctc import ctc_greedy
from hmamba_asr.models.asr import ASRModel, ASROutput
from hmamba_asr.models.encoder import ConformerControl, ConMambaEncoder, EncoderOutput
from hmamba_asr.modules.frontend import ConvSubsampling

BLANK, BOS, EOS, VOCAB, N_MELS = 0, 1, 2, 12, 20
FRAMES = [60, 23, 4, 1, 41]


def logits_of(*paths):
    """Logits whose best token at each frame is the given one; paths padded with token 9."""
    longest = max(len(path) for path in paths)
    padded = torch.tensor([[*path, *[9] * (longest - len(path))] for path in paths]).view(len(paths), longest)
    return torch.nn.functional.one_hot(padded, VOCAB).float(), torch.tensor([len(path) for path in paths])


def test_ctc_greedy_known_answers():
    paths = {
        (0, 3, 3, 0, 3, 4): [3, 3, 4],
        (3, 3, 3): [3],
        (3, 4, 3): [3, 4, 3],
        (0, 0, 0, 0): [],
        (5,): [5],
        (0,): [],
        (): [],
        (4, 0, 0, 4, 4, 0): [4, 4],
    }
    assert ctc_greedy(*logits_of(*paths), blank=BLANK) == list(paths.values())
    assert ctc_greedy(torch.zeros(2, 0, VOCAB), torch.tensor([0, 0]), blank=BLANK) == [[], []]


def test_ctc_greedy_other_blank():
    assert ctc_greedy(*logits_of((0, 0, 3, 3, 0)), blank=3) == [[0, 0]]


def recogniser(kind="conmamba", seed=0, eos_bias=0.0):
    """Random, with sharp heads; a higher ``eos_bias`` ends hypotheses earlier."""
    torch.manual_seed(seed)
    sizes = {"num_layers": 1, "d_model": 16, "d_ffn": 32, "kernel_size": 3, "dropout": 0.1}
    model = ASRModel(
        frontend=ConvSubsampling(n_mels=N_MELS, channels=[4, 4], d_model=16, dropout=0.1),
        encoder=ConMambaEncoder(**sizes, d_state=4) if kind == "conmamba" else ConformerControl(**sizes, nhead=2),
        ctc_head=Linear(input_size=16, n_neurons=VOCAB), output_head=Linear(input_size=16, n_neurons=VOCAB),
        d_model=16, num_decoder_layers=1, nhead=2, d_ffn=32, dropout=0.1, max_target_length=40,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for head in (model.ctc_head, model.output_head):
            head.w.weight.mul_(2)
        model.output_head.w.bias[EOS] += eos_bias
    return model


def beam_search(model, searcher=BeamSearcher, ctc_weight=0.4, beam_size=4, max_decode_ratio=1.0, min_decode_ratio=0.0):
    scorer = None
    if ctc_weight:
        ctc = CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)
        scorer = ScorerBuilder(full_scorers=[ctc], weights={"ctc": ctc_weight})
    return BeamSearch(
        searcher=searcher(
            modules=[model, model.output_head], bos_index=BOS, eos_index=EOS, beam_size=beam_size, scorer=scorer,
            min_decode_ratio=min_decode_ratio, max_decode_ratio=max_decode_ratio, using_eos_threshold=False,
        )
    )  # fmt: skip


def batch_of_features(seed=0):
    torch.manual_seed(100 + seed)
    return torch.randn(len(FRAMES), max(FRAMES) + 9, N_MELS)  # noise past the ends


def together_and_alone(model, search, features):
    with torch.no_grad():
        together = search(model(features, torch.tensor(FRAMES)))
        alone = [search(model(x[None, :n], torch.tensor([n])))[0] for x, n in zip(features, FRAMES, strict=True)]
    return together, alone


@pytest.mark.parametrize("kind", ["conmamba", "conformer"])
def test_greedy_hypotheses_do_not_depend_on_the_batch(kind):
    for seed in range(5):
        together, alone = together_and_alone(recogniser(kind, seed), GreedySearch(blank=BLANK), batch_of_features(seed))
        assert together == alone
        assert any(together)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
@pytest.mark.parametrize("eos_bias", [-4.0, 0.0, 3.0])  # never ends by itself; sometimes; early
def test_beam_hypotheses_do_not_depend_on_the_batch(ctc_weight, eos_bias):
    found = []
    for seed in range(3):
        model = recogniser(seed=seed, eos_bias=eos_bias)
        together, alone = together_and_alone(model, beam_search(model, ctc_weight=ctc_weight), batch_of_features(seed))
        assert together == alone
        found += together
    assert any(found)


@pytest.mark.parametrize(("ratios", "eos_bias"), [((0.0, 0.5), -4.0), ((0.3, 1.0), 8.0), ((0.0, 0.01), -4.0)])
def test_beam_step_limits_are_each_utterances_own(ratios, eos_bias):
    """The models want to go on past the upper limit, or to end before the lower one."""
    model = recogniser(eos_bias=eos_bias)
    search = beam_search(model, ctc_weight=0.0, min_decode_ratio=ratios[0], max_decode_ratio=ratios[1])
    together, alone = together_and_alone(model, search, batch_of_features())
    assert together == alone
    for hypothesis, frames in zip(together, model.frontend.output_lengths(torch.tensor(FRAMES)).tolist(), strict=True):
        assert int(frames * ratios[0]) - 1 <= len(hypothesis) <= max(1, int(frames * ratios[1]))


def test_beam_is_speechbrains_on_one_utterance():
    for seed in range(3):
        model, features = recogniser(seed=seed), batch_of_features(seed)
        for x, n in zip(features, FRAMES, strict=True):
            with torch.no_grad():
                output = model(x[None, :n], torch.tensor([n]))
            assert beam_search(model)(output) == beam_search(model, searcher=S2STransformerBeamSearcher)(output)


def test_beam_of_one_is_greedy_decoding_of_the_decoder():
    model = recogniser(eos_bias=2.0)
    encoded = model.encode(batch_of_features()[:1], torch.tensor([60]))
    tokens = [BOS]
    with torch.no_grad():
        while tokens[-1] != EOS and len(tokens) <= encoded.states.shape[1]:
            hidden, _ = model.decode(torch.tensor([tokens]), encoded.states, encoded.lengths)
            tokens.append(int(model.output_head(hidden)[0, -1].argmax()))
        assert tokens[-1] == EOS  # ended by itself
        hypotheses = beam_search(model, ctc_weight=0.0, beam_size=1)(ASROutput(encoded, encoded.states, None))
    assert hypotheses == [tokens[1:-1]]


def test_beam_stays_within_the_decoders_limit():
    """Without an end of sentence the search stops at max_target_length tokens instead of failing there."""
    model = recogniser(eos_bias=-50.0)
    states = torch.randn(2, 60, 16)  # more frames than the decoder's 40 tokens
    output = ASROutput(EncoderOutput(states, torch.tensor([60, 50])), model.ctc_head(states), None)
    hypotheses = beam_search(model, ctc_weight=0.0)(output)
    assert all(30 < len(hypothesis) <= 40 for hypothesis in hypotheses)


def test_search_follows_no_gradient_and_leaves_the_recogniser_where_it_is():
    model = recogniser()
    search = beam_search(model)
    assert not list(search.parameters())
    hypotheses = search(model(batch_of_features()[:, :60], torch.tensor(FRAMES)))
    assert len(hypotheses) == len(FRAMES) and all(isinstance(token, int) for token in hypotheses[0])
