"""CTC prefix scores equal those of an enumeration of all paths, and SpeechBrain's; known greedy answers."""

import itertools
import math
from functools import partial

import pytest
import torch
from speechbrain.decoders.ctc import CTCPrefixScore
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder

from hmamba_asr.decoding import scorers
from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.ctc_prefix import CTCPrefixScorer
from hmamba_asr.decoding.greedy import ctc_greedy
from hmamba_asr.ops.ctc import IMPOSSIBLE

BLANK, EOS = 0, 3


def greedy_input(*paths, vocab=12):
    """Make logits whose best tokens are the given paths, padded with token 9."""
    longest = max(len(path) for path in paths)
    padded = torch.tensor([[*path, *[9] * (longest - len(path))] for path in paths]).view(len(paths), longest)
    return torch.nn.functional.one_hot(padded, vocab).float(), torch.tensor([len(path) for path in paths])


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
    assert ctc_greedy(*greedy_input(*paths), blank=0) == list(paths.values())
    assert ctc_greedy(torch.zeros(2, 0, 12), torch.tensor([0, 0]), blank=0) == [[], []]


def test_ctc_greedy_other_blank():
    assert ctc_greedy(*greedy_input((0, 0, 3, 3, 0)), blank=3) == [[0, 0]]


# ---- prefix scores -----------------------------------------------------------------------------------------


def enumerate_paths(log_probs):
    """Add up the probability of each label sequence over all paths; eos is an ordinary label."""
    found: dict[tuple, float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = tuple(label for label, _ in itertools.groupby(path) if label != BLANK)
        weight = math.exp(sum(float(frame[label]) for frame, label in zip(log_probs, path, strict=True)))
        found[labels] = found.get(labels, 0.0) + weight
    return found


def log_prefix(found, prefix):
    total = sum(p for labels, p in found.items() if labels[: len(prefix)] == prefix)
    return math.log(total) if total else -math.inf


def agree(actual, expected):
    return (
        actual == pytest.approx(expected, abs=1e-9) if math.isfinite(expected) else actual < IMPOSSIBLE / 10
    )


def random_log_probs(*shape, seed=0, scale=1.5):
    return (
        scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).log_softmax(-1)


def test_a_label_that_is_ruled_out():
    """A label of probability 0 gives finite sums over frames, where -inf would give NaN."""
    log_probs = random_log_probs(1, 6, 5)
    log_probs[..., 2] = -math.inf
    scorer = CTCPrefixScorer(log_probs, torch.tensor([6]), blank=BLANK, eos=EOS)
    state = scorer.start()
    for label in (1, 2, 4):
        scores = scorer.next_scores(state)
        assert not scores.isnan().any() and (scores[0, 0, 2] < scores[0, 0, [1, 4]] - 50).all()
        state = scorer.extend(state, torch.tensor([[0]]), torch.tensor([[label]]))
        assert all(x.isfinite().all() for x in (state.in_label, state.in_blank, state.score))
    assert state.score.item() < -1e3


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_prefix_scores_are_the_enumeration_of_all_paths(frames):
    """Every prefix of up to three labels, also with repeats, in a batch of unequal lengths."""
    vocab, lengths = 4, torch.tensor([frames, max(1, frames - 2)])
    log_probs = random_log_probs(2, frames, vocab)
    log_probs[1, lengths[1] :] = float("nan")  # padding
    scorer = CTCPrefixScorer(log_probs, lengths, blank=BLANK, eos=EOS)
    found = [enumerate_paths(x[:n]) for x, n in zip(log_probs, lengths, strict=True)]
    state, prefixes, checked = scorer.start(), [()], 0
    for _ in range(4):
        scores = scorer.next_scores(state)
        for b, all_paths in enumerate(found):
            for k, prefix in enumerate(prefixes):
                assert agree(float(state.score[b, k]), log_prefix(all_paths, prefix))
                if not math.isfinite(log_prefix(all_paths, prefix)):
                    continue  # nothing is known about what follows the impossible
                for label in (1, 2):
                    expected = log_prefix(all_paths, (*prefix, label)) - log_prefix(all_paths, prefix)
                    if math.isfinite(expected):
                        assert agree(float(scores[b, k, label]), expected)
                        checked += 1
                    else:
                        assert scores[b, k, label] < -70
                whole = all_paths.get(prefix, 0.0)
                expected = math.log(whole) - log_prefix(all_paths, prefix) if whole else -math.inf
                assert agree(float(scores[b, k, EOS]), expected)
                assert scores[b, k, BLANK] == IMPOSSIBLE
        grown = [(k, (*prefix, label)) for k, prefix in enumerate(prefixes) for label in (1, 2)]
        parents = torch.tensor([[k for k, _ in grown]] * 2)
        state = scorer.extend(state, parents, torch.tensor([[prefix[-1] for _, prefix in grown]] * 2))
        prefixes = [prefix for _, prefix in grown]
    assert checked >= min(2 * frames, 20)


def test_extending_by_eos_scores_the_prefix_as_all_there_is():
    log_probs = random_log_probs(1, 4, 4)
    scorer = CTCPrefixScorer(log_probs, torch.tensor([4]), blank=BLANK, eos=EOS)
    parents, labels = torch.tensor([[0, 0]]), torch.tensor([[1, EOS]])
    state = scorer.extend(scorer.start(), parents, labels)
    found = enumerate_paths(log_probs[0])
    assert state.score[0].tolist() == pytest.approx([log_prefix(found, (1,)), math.log(found[()])])


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_prefix_scores_are_speechbrains(scale):
    """Random hypotheses in float32, up to sharp distributions. SpeechBrain sums frame by frame."""
    frames, vocab, beam, generator = 60, 30, 5, torch.Generator().manual_seed(1)
    log_probs = random_log_probs(1, frames, vocab, scale=scale).float()
    lengths = torch.tensor([frames])
    theirs, memory = (
        CTCPrefixScore(log_probs.clone().expand(beam, -1, -1).clone(), lengths.expand(beam), BLANK, EOS),
        None,
    )
    # SpeechBrain scores as many hypotheses as utterances here: a beam of five utterances that are the same
    ours = CTCPrefixScorer(log_probs, lengths, blank=BLANK, eos=EOS)
    state, tokens = ours.start(), torch.ones(beam, dtype=torch.long)
    for step in range(12):
        expected, memory = theirs.forward_step(tokens, memory)
        actual = ours.next_scores(state).expand(1, beam, -1)[0]
        close = expected > -70
        close[:, BLANK] = False
        torch.testing.assert_close(actual[close], expected[close], rtol=1e-4, atol=2e-3)
        assert (actual[~close] < -60).all()
        likely = expected[:, EOS + 1 :].clamp(min=-60).softmax(-1)
        tokens = EOS + 1 + torch.multinomial(likely, 1, generator=generator)[:, 0]
        memory = theirs.permute_mem(memory, tokens.view(beam, 1))
        parents = torch.zeros(1, beam, dtype=torch.long) if step == 0 else torch.arange(beam).view(1, beam)
        state = ours.extend(state, parents, tokens.view(1, beam))


@pytest.mark.kernels
def test_a_search_with_the_kernels_finds_what_one_without_finds(recogniser, monkeypatch, device):
    model = recogniser(vocab=11, eos_bias=1.0).to(device)
    states, lengths = (
        torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0)).to(device),
        torch.tensor([9, 4, 1]),
    )
    found = []
    for backend in ("reference", "triton"):
        monkeypatch.setattr(scorers, "CTCPrefixScorer", partial(CTCPrefixScorer, backend=backend))
        ctc = CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)
        search = JointBeamSearcher(
            modules=[model, model.output_head],
            bos_index=1,
            eos_index=EOS,
            min_decode_ratio=0.0,
            max_decode_ratio=0.5,
            beam_size=3,
            topk=3,
            scorer=ScorerBuilder(full_scorers=[ctc], weights={"ctc": 0.4}),
        )
        found.append(search.search(states, lengths.to(device)))
    for plain, fused in zip(*found, strict=True):
        assert [h.tokens for h in plain] == [h.tokens for h in fused]
        assert [h.score for h in plain] == pytest.approx([h.score for h in fused], abs=1e-4)
