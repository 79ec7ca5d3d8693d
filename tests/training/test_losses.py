"""The hybrid loss has known answers: the CTC by enumerating alignments, smoothed cross-entropy by its
formula."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from encoders import LENGTHS, by_ctc, encode, hmamba, hnet, padded
from hypothesis import given, settings
from hypothesis import strategies as st

from hmamba_asr.models.asr import ASROutput, min_ctc_steps
from hmamba_asr.models.outputs import EncoderOutput
from hmamba_asr.training.losses import RatioLoss, hybrid_loss

BLANK, EOS, VOCAB = 0, 2, 5


def output(ctc_logits, lengths, attention_logits=None):
    states = torch.zeros(*ctc_logits.shape[:2], 4)
    return ASROutput(EncoderOutput(states, torch.tensor(lengths)), ctc_logits, attention_logits)


def loss_of(*args, ctc_weight=0.3, label_smoothing=0.1, **options):
    return hybrid_loss(
        *args, ctc_weight=ctc_weight, label_smoothing=label_smoothing, blank=BLANK, eos=EOS, **options
    )


def with_intermediate(out, logits, lengths):
    """Add intermediate ``logits`` (B, T, vocab), and the states that they were read from, to ``out``."""
    between = EncoderOutput(torch.zeros(*logits.shape[:2], 4), torch.tensor(lengths))
    return replace(out, encoded=replace(out.encoded, intermediate=between), intermediate_logits=logits)


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


def ctc_by_enumeration(log_probs, labels):
    """-log of the summed probability of all frame-wise paths that collapse to ``labels``; log_probs (T,
    vocab)."""
    frames, vocab = log_probs.shape
    total = sum(
        math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        for path in itertools.product(range(vocab), repeat=frames)
        if collapse(path) == labels
    )
    return -math.log(total)


def smoothed_by_hand(logits, labels, smoothing):
    """Sum over tokens of (1 - s) (-log p_label) + s x mean over the vocabulary of -log p."""
    total = 0.0
    for row, label in zip(logits.log_softmax(-1), labels, strict=True):
        total += (1 - smoothing) * -float(row[label]) + smoothing * -float(row.mean())
    return total


@pytest.mark.parametrize("labels", [[], [3], [3, 4], [4, 4], [1, 3, 1]])
def test_ctc_by_enumeration_of_alignments(labels):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, VOCAB)
    targets = torch.zeros(2, 3, dtype=torch.long)
    targets[0, : len(labels)] = torch.tensor(labels)
    targets[1] = torch.tensor([3, 1, 4])
    # The first utterance has its 4 frames, the second only 3: its last frame is padding.
    loss = loss_of(output(logits, [4, 3]), targets, torch.tensor([len(labels), 3]), ctc_weight=1.0)
    assert set(loss.parts) == {"ctc"} and not loss.infeasible.any()
    assert loss.total[0].item() == pytest.approx(
        ctc_by_enumeration(logits[0].log_softmax(-1), labels), rel=1e-4
    )
    assert loss.total[1].item() == pytest.approx(
        ctc_by_enumeration(logits[1, :3].log_softmax(-1), [3, 1, 4]), rel=1e-4
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothed_cross_entropy_by_hand(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, VOCAB)
    targets = torch.tensor([[3, 4, 1], [4, 0, 0], [0, 0, 0]])
    lengths = torch.tensor([3, 1, 0])
    loss = loss_of(
        output(torch.randn(3, 9, VOCAB), [9, 9, 9], logits),
        targets,
        lengths,
        ctc_weight=0.0,
        label_smoothing=smoothing,
    )
    expected = [
        smoothed_by_hand(logits[0], [3, 4, 1, EOS], smoothing),
        smoothed_by_hand(logits[1, :2], [4, EOS], smoothing),
        smoothed_by_hand(logits[2, :1], [EOS], smoothing),
    ]
    assert set(loss.parts) == {"attention"}
    assert loss.total.tolist() == pytest.approx(expected, rel=1e-5)


def test_weights_and_sum_of_parts():
    torch.manual_seed(0)
    out = output(torch.randn(2, 9, VOCAB), [9, 7], torch.randn(2, 4, VOCAB))
    targets, lengths = torch.tensor([[3, 4, 1], [4, 3, 0]]), torch.tensor([3, 2])
    both = loss_of(out, targets, lengths, ctc_weight=0.25)
    ctc, attention = (loss_of(out, targets, lengths, ctc_weight=weight) for weight in (1.0, 0.0))
    torch.testing.assert_close(both.parts["ctc"], 0.25 * ctc.total)
    torch.testing.assert_close(both.parts["attention"], 0.75 * attention.total)
    torch.testing.assert_close(both.total, both.parts["ctc"] + both.parts["attention"])
    assert both.total.shape == (2,) and both.total.dtype == torch.float32


def test_intermediate_ctc_by_enumeration_of_alignments():
    """Frames and chunks have lengths of their own; the attention part is untouched."""
    torch.manual_seed(0)
    chunks, frames = torch.randn(2, 3, VOCAB), torch.randn(2, 5, VOCAB)
    out = output(chunks, [3, 2], torch.randn(2, 3, VOCAB))
    targets, lengths = torch.tensor([[3, 4], [4, 0]]), torch.tensor([2, 1])
    loss = loss_of(with_intermediate(out, frames, [5, 4]), targets, lengths, intermediate_ctc_weight=0.25)
    without = loss_of(out, targets, lengths)
    expected = [
        ctc_by_enumeration(frames[0].log_softmax(-1), [3, 4]),
        ctc_by_enumeration(frames[1, :4].log_softmax(-1), [4]),
    ]
    assert loss.parts["intermediate_ctc"].tolist() == pytest.approx(
        [0.25 * 0.3 * value for value in expected], rel=1e-4
    )
    torch.testing.assert_close(loss.parts["ctc"], 0.75 * without.parts["ctc"])
    torch.testing.assert_close(loss.parts["attention"], without.parts["attention"])
    torch.testing.assert_close(loss.total, sum(loss.parts.values()))


def test_without_intermediate_logits_its_weight_is_nothing():
    """So it is in validation, and validation losses compare across weights."""
    torch.manual_seed(0)
    out = output(torch.randn(2, 9, VOCAB), [9, 7], torch.randn(2, 4, VOCAB))
    targets, lengths = torch.tensor([[3, 4, 1], [4, 3, 0]]), torch.tensor([3, 2])
    loss, usual = loss_of(out, targets, lengths, intermediate_ctc_weight=0.5), loss_of(out, targets, lengths)
    assert loss.parts.keys() == usual.parts.keys() and torch.equal(loss.total, usual.total)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_intermediate_weight_divides_the_gradient(weight):
    """An utterance with too few chunks for its labels has no gradient from its chunks, but one from its
    frames."""
    torch.manual_seed(0)
    chunks, frames = (
        torch.randn(2, 2, VOCAB, requires_grad=True),
        torch.randn(2, 6, VOCAB, requires_grad=True),
    )
    out = with_intermediate(output(chunks, [2, 2], torch.randn(2, 4, VOCAB)), frames, [6, 6])
    loss = loss_of(
        out, torch.tensor([[3, 4, 3], [4, 3, 0]]), torch.tensor([3, 2]), intermediate_ctc_weight=weight
    )
    assert loss.infeasible.tolist() == [True, False]
    loss.total.sum().backward()
    of_frames = [False, False] if frames.grad is None else [bool(g.any()) for g in frames.grad]
    assert of_frames == [weight > 0] * 2
    assert [bool(g.any()) for g in chunks.grad] == [False, weight < 1]


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_an_intermediate_weight_out_of_range(weight):
    with pytest.raises(ValueError, match=r"intermediate_ctc_weight must lie in \[0, 1\]"):
        loss_of(
            output(torch.randn(1, 3, VOCAB), [3]),
            torch.tensor([[3]]),
            torch.tensor([1]),
            intermediate_ctc_weight=weight,
        )


def test_only_a_router_has_a_ratio_loss():
    """The CTC outside, H-Net inside: the CTC's stage has a target and adds nothing."""
    encoder = hmamba(by_ctc(), "frames", inner=hmamba(hnet(), "frames"))
    stages = encode(encoder, padded(), LENGTHS).stages
    assert [(stage.target_ratio, stage.has_router) for stage in stages] == [(3.0, False), (2.0, True)]
    outer, inner = RatioLoss(weight=1.0).stage_losses(stages, step=0)
    assert outer.shape == inner.shape == (4,) and not outer.any() and (inner > 0).all()
    assert inner.requires_grad and not outer.requires_grad


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=4))
def test_frames_needed_is_the_shortest_path(batch):
    targets = torch.ones(
        len(batch), max(len(t) for t in batch), dtype=torch.long
    )  # padded with a real token, 1
    for row, target in zip(targets, batch, strict=True):
        row[: len(target)] = torch.tensor(target)
    expected = [len(t) + sum(a == b for a, b in itertools.pairwise(t)) for t in batch]
    assert min_ctc_steps(targets, torch.tensor([len(t) for t in batch])).tolist() == expected


def test_frames_needed_is_what_ctc_can_emit():
    for target in itertools.chain.from_iterable(itertools.product((3, 4), repeat=n) for n in range(4)):
        needed = int(min_ctc_steps(torch.tensor([target], dtype=torch.long), torch.tensor([len(target)])))
        reachable = [
            frames
            for frames in range(7)
            if any(collapse(p) == list(target) for p in itertools.product((0, 3, 4), repeat=frames))
        ]
        assert needed == reachable[0]


def test_infeasible_utterances_are_flagged_and_have_a_finite_gradient():
    torch.manual_seed(0)
    ctc_logits = torch.randn(3, 5, VOCAB, requires_grad=True)
    attention_logits = torch.randn(3, 4, VOCAB, requires_grad=True)
    targets = torch.tensor([[3, 3, 3], [3, 3, 3], [3, 4, 3]])
    out = output(ctc_logits, [5, 4, 2], attention_logits)  # they need 5, 5 and 3 frames
    loss = loss_of(out, targets, torch.tensor([3, 3, 3]))
    assert loss.infeasible.tolist() == [False, True, True]
    assert loss.parts["ctc"][0] > 0 and loss.parts["ctc"][1:].tolist() == [0.0, 0.0]
    assert (loss.parts["attention"] > 0).all()
    loss.total.sum().backward()
    assert ctc_logits.grad.isfinite().all() and attention_logits.grad.isfinite().all()
    assert ctc_logits.grad[0].abs().sum() > 0 and not ctc_logits.grad[1:].any()


@pytest.mark.parametrize("where", ["ctc", "attention"])
@pytest.mark.parametrize("feasible", [True, False])
def test_nan_is_never_hidden(where, feasible):
    torch.manual_seed(0)
    logits = {"ctc": torch.randn(2, 9, VOCAB), "attention": torch.randn(2, 4, VOCAB)}
    logits[where][1, 1] = float("nan")
    out = output(logits["ctc"], [9, 9 if feasible else 2], logits["attention"])
    loss = loss_of(out, torch.tensor([[3, 4, 1], [3, 4, 1]]), torch.tensor([3, 3]))
    assert loss.total[1].isnan() and loss.total[0].isfinite()
    assert loss.infeasible.tolist() == [False, not feasible]


def test_padding_of_the_targets_and_logits_does_not_matter():
    torch.manual_seed(0)
    ctc_logits, attention_logits = torch.randn(1, 9, VOCAB), torch.randn(1, 3, VOCAB)
    short = loss_of(output(ctc_logits, [9], attention_logits), torch.tensor([[3, 4]]), torch.tensor([2]))
    wide = output(
        torch.cat([ctc_logits, torch.full((1, 4, VOCAB), 7.0)], 1),
        [9],
        torch.cat([attention_logits, torch.full((1, 3, VOCAB), -3.0)], 1),
    )
    padded = loss_of(wide, torch.tensor([[3, 4, 4, 1, 0]]), torch.tensor([2]))
    torch.testing.assert_close(padded.total, short.total)
    assert padded.infeasible.tolist() == short.infeasible.tolist()


def test_half_precision_logits_are_scored_in_float32():
    torch.manual_seed(0)
    out = output(torch.randn(1, 9, VOCAB).bfloat16(), [9], torch.randn(1, 3, VOCAB).bfloat16())
    loss = loss_of(out, torch.tensor([[3, 4]]), torch.tensor([2]))
    wide = loss_of(
        output(out.ctc_logits.float(), [9], out.attention_logits.float()),
        torch.tensor([[3, 4]]),
        torch.tensor([2]),
    )
    assert loss.total.dtype == torch.float32 and torch.equal(loss.total, wide.total)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_bad_ctc_weight(weight):
    with pytest.raises(ValueError, match=r"ctc_weight must lie in \[0, 1\]"):
        loss_of(
            output(torch.randn(1, 9, VOCAB), [9]), torch.tensor([[3]]), torch.tensor([1]), ctc_weight=weight
        )


def test_attention_loss_without_targets_in_the_model():
    with pytest.raises(ValueError, match="the model was called without targets"):
        loss_of(output(torch.randn(1, 9, VOCAB), [9]), torch.tensor([[3]]), torch.tensor([1]))
