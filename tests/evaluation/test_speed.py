"""The protocol of speed: what is timed and how often, figures on a fake clock, and the check of
hypotheses."""

from __future__ import annotations

import json

import pytest
import torch

from hmamba_asr.evaluation import timing as efficiency
from hmamba_asr.evaluation.speed import Subject, measure, render_speed

RATE = 100


class Recogniser:
    """Advance a clock: 1 s for a batch of features, 2 s for a batch of the encoder, 3 s for an utterance of
    the search and 0.5 s for a step. Records the batches that it was given."""

    def __init__(self, clock: list[float], batch_mates_matter: bool = False):
        self.clock, self.batch_mates_matter = clock, batch_mates_matter
        self.batches: list[list[int]] = []

    def features(self, wavs, lengths):
        self.clock[0] += 1.0
        self.batches.append(lengths.tolist())
        assert all(not row[length:].any() for row, length in zip(wavs, lengths.tolist(), strict=True))
        return wavs, lengths

    def model(self, features, lengths):
        self.clock[0] += 2.0
        return lengths

    def __call__(self, output):
        self.clock[0] += 3.0 * len(output)
        return [[length, len(output) * self.batch_mates_matter] for length in output.tolist()]

    def first_tokens(self, output):
        self.clock[0] += 0.5
        return output.tolist()

    def subject(self) -> Subject:
        return Subject(self.features, self.model, self, torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: now[0])
    return now


UTTERANCES = [torch.ones(number) for number in (500, 1000, 2500)]  # 40 s together


def test_figures_are_those_of_the_clock(clock):
    recogniser = Recogniser(clock)
    found = measure({"one": recogniser.subject()}, UTTERANCES, sample_rate=RATE, batch_size=2, passes=2)
    figures = found["subjects"]["one"]
    assert figures["batch_1"]["rtf"] == dict.fromkeys(("min", "median", "max"), 3 * 6.0 / 40)
    assert figures["batch_1"]["audio_hours_per_hour"] == pytest.approx(40 / 18)
    assert figures["batched"]["passes"] == pytest.approx([(2 * 3.0 + 9.0) / 40] * 2)
    assert figures["batched"]["stage_rtf"] == pytest.approx(
        {"features": 2 / 40, "encoder": 4 / 40, "decoding": 9 / 40}
    )
    assert figures["first_token_seconds"] == {"min": 3.5, "median": 3.5, "max": 3.5}
    assert figures["same_hypotheses"] == 3
    assert found["protocol"] == {
        "utterances": 3,
        "audio_seconds": 40.0,
        "shortest_seconds": 5.0,
        "median_seconds": 10.0,
        "longest_seconds": 25.0,
        "batch": 2,
        "warmup": 1,
        "passes": 2,
    }
    assert json.loads(json.dumps(found)) == found
    # Longest first: one by one and batched, a pass to warm up, two timed ones and, for the memory, the
    # longest batch.
    alone, together = [[2500], [1000], [500]], [[2500, 1000], [500]]
    assert recogniser.batches[:17] == [*alone * 3, [2500], *together * 3, [2500, 1000]]
    assert recogniser.batches[17:] == [[n] for n in (2500, 1000, 500) for _ in range(3)]
    text = render_speed(found)
    assert "3 utterances of 5.0 to 25.0 s (median 10.0 s)" in text and "0.45 (0.45 to 0.45)" in text
    assert "3500 (3500 to 3500)" in text


def test_subjects_take_turns_and_those_whose_batch_mates_matter_are_told(clock):
    order = []
    subjects = {}
    for name in ("a", "b"):
        recogniser = Recogniser(clock, batch_mates_matter=name == "b")
        recogniser.model = lambda features, lengths, name=name: order.append(name) or lengths
        subjects[name] = recogniser.subject()
    found = measure(subjects, UTTERANCES[:2], sample_rate=RATE, batch_size=2, passes=2)
    assert "".join(order[:12]) == "aabb" * 3  # one by one: two utterances each, warm-up and two passes
    assert [found["subjects"][name]["same_hypotheses"] for name in ("a", "b")] == [2, 0]
    assert "0 of 2 hypotheses alike alone and batched" in render_speed(found, what="model")


@pytest.mark.parametrize(
    ("utterances", "batch", "passes"), [([], 1, 1), (UTTERANCES, 0, 1), (UTTERANCES, 1, 0)]
)
def test_nothing_to_measure_is_refused(clock, utterances, batch, passes):
    with pytest.raises(ValueError, match="at least one utterance"):
        measure(
            {"a": Recogniser(clock).subject()}, utterances, sample_rate=RATE, batch_size=batch, passes=passes
        )
