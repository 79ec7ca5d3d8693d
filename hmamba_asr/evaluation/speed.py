"""How fast recognisers are: one protocol for trained runs and for random weights.

The samples lie in memory when the clock starts, so reading is not counted (the RTF in results.json counts
it). Every subject recognises all utterances once untimed; then, in each pass, all subjects take their turn,
so that whatever else the machine does hits them alike. A GPU is waited for at both ends of each stage. RTF is
processing time over audio time, padding being nobody's audio.

First-token latency: from the samples in memory to the first token on the host, i.e. features, the whole
encoder, and the first step of the search. None of these encoders streams, so that it grows with the
utterance. A greedy CTC search has no steps: its first token comes with the last. The first token of a beam is
its best one then; later steps may prefer another.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from hmamba_asr.evaluation.timing import PhaseTimer
from hmamba_asr.system.memory import added_memory_mib

WARMUP = 1  # passes
PASSES = 3
WAYS = ("batch_1", "batched")
RUN_FILE = "efficiency.json"  # in a run's folder, of `hmamba-asr efficiency`
RUN_KIND, BENCHMARK_KIND = "run", "benchmark"  # of a file of figures

_WRITERS = {RUN_KIND: "hmamba-asr efficiency", BENCHMARK_KIND: "scripts/benchmarks/efficiency.py --json"}


@dataclass(frozen=True)
class Subject:
    """What is timed: ``features(wavs (B, S), lengths (B,))`` -> features, lengths; ``model(features,
    lengths)`` -> its output; ``search(output)`` -> token ids of each utterance;
    ``search.first_tokens(output)``, all on ``device``."""

    features: Callable
    model: Callable
    search: Callable
    device: torch.device

    @torch.no_grad()
    def recognise(self, utterances: Sequence[torch.Tensor], timer: PhaseTimer) -> list[list[int]]:
        """Token ids of a batch of utterances (S,) on the host."""
        return self._run(utterances, timer, self.search)

    @torch.no_grad()
    def first_tokens(self, utterances: Sequence[torch.Tensor], timer: PhaseTimer) -> list[int | None]:
        """The first of them alone."""
        return self._run(utterances, timer, self.search.first_tokens)

    def _run(self, utterances: Sequence[torch.Tensor], timer: PhaseTimer, search: Callable) -> list:
        with timer.phase("features"):
            wavs = pad_sequence(list(utterances), batch_first=True).to(self.device)
            lengths = torch.tensor([len(samples) for samples in utterances], device=self.device)
            features, lengths = self.features(wavs, lengths)
        with timer.phase("encoder"):
            output = self.model(features, lengths)
        with timer.phase("decoding"):
            return search(output)


def measure(
    subjects: Mapping[str, Subject],
    utterances: Sequence[torch.Tensor],
    *,
    sample_rate: int,
    batch_size: int,
    passes: int = PASSES,
) -> dict[str, Any]:
    """Figures of each subject on the utterances (S,), in what JSON can hold: ``protocol`` and ``subjects``.

    Of a subject: for each of "batch_1" and "batched" ``rtf`` {min, median, max} over the passes and the RTF
    of each pass in ``passes``, ``audio_hours_per_hour`` (1 / the median), ``stage_rtf`` (medians),
    ``memory_mib`` (what the longest batch adds, None where it cannot be told); ``first_token_seconds`` {min,
    median, max} over utterances, each the median of its passes; and ``same_hypotheses``, utterances whose
    tokens are the same in both.

    Raises:
        ValueError: there are no utterances, or a size below 1.
    """
    if not utterances or batch_size < 1 or passes < 1:
        raise ValueError(
            "nothing to measure: give at least one utterance, a batch size and passes of 1 or more."
        )
    ordered = sorted(utterances, key=len, reverse=True)
    audio = sum(map(len, ordered)) / sample_rate
    found: dict[str, dict[str, Any]] = {name: {} for name in subjects}
    hypotheses: dict[str, list[list[list[int]]]] = {name: [] for name in subjects}
    for way, size in zip(WAYS, (1, batch_size), strict=True):
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        for name, subject in subjects.items():
            for _ in range(WARMUP):
                warm = [
                    tokens
                    for batch in batches
                    for tokens in subject.recognise(batch, PhaseTimer(subject.device))
                ]
            hypotheses[name].append(warm)
        timers: dict[str, list[PhaseTimer]] = {name: [] for name in subjects}
        for _ in range(passes):
            for name, subject in subjects.items():
                timers[name].append(PhaseTimer(subject.device))
                for batch in batches:
                    subject.recognise(batch, timers[name][-1])
        for name, subject in subjects.items():
            memory = added_memory_mib(
                lambda: subject.recognise(batches[0], PhaseTimer(subject.device)), subject.device
            )  # noqa: B023
            found[name][way] = _figures(timers[name], audio, memory)
    for name, latency in _first_tokens(subjects, ordered, passes).items():
        found[name]["first_token_seconds"] = latency
        found[name]["same_hypotheses"] = sum(a == b for a, b in zip(*hypotheses[name], strict=True))
    protocol = {
        "utterances": len(ordered),
        "audio_seconds": audio,
        "shortest_seconds": len(ordered[-1]) / sample_rate,
        "median_seconds": statistics.median(map(len, ordered)) / sample_rate,
        "longest_seconds": len(ordered[0]) / sample_rate,
        "batch": batch_size,
        "warmup": WARMUP,
        "passes": passes,
    }
    return {"protocol": protocol, "subjects": found}


def _first_tokens(
    subjects: Mapping[str, Subject], utterances: Sequence[torch.Tensor], passes: int
) -> dict[str, dict[str, float]]:
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for utterance in utterances:
        timers: dict[str, list[PhaseTimer]] = {name: [] for name in subjects}
        for number in range(WARMUP + passes):
            for name, subject in subjects.items():
                timer = PhaseTimer(subject.device)
                subject.first_tokens([utterance], timer)
                timers[name] += [timer] if number >= WARMUP else []
        for name in subjects:
            taken[name].append(statistics.median(timer.total for timer in timers[name]))
    return {name: spread(seconds) for name, seconds in taken.items()}


def _figures(timers: Sequence[PhaseTimer], audio: float, memory: float | None) -> dict[str, Any]:
    rtf = [timer.total / audio for timer in timers]
    stages = {
        stage: statistics.median(timer.seconds[stage] for timer in timers) / audio
        for stage in timers[0].seconds
    }
    return {
        "rtf": spread(rtf),
        "passes": rtf,
        "audio_hours_per_hour": 1 / statistics.median(rtf),
        "stage_rtf": stages,
        "memory_mib": memory,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def read_figures(path: str | Path, kind: str) -> dict[str, Any]:
    """A file of `hmamba-asr efficiency` (`RUN_KIND`) or of scripts/benchmarks/efficiency.py
    (`BENCHMARK_KIND`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not of that kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; write it with {_WRITERS[kind]}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not readable as JSON ({error}); write it anew with {_WRITERS[kind]}."
        ) from error
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise ValueError(f"{path} holds no figures of {_WRITERS[kind]}; give a file of its.")
    return found


def render_speed(found: Mapping[str, Any], *, what: str = "search") -> str:
    """What `measure` found, for people; ``what`` the subjects are."""
    protocol = found["protocol"]
    lines = [
        f"{protocol['utterances']} utterances of {protocol['shortest_seconds']:.1f} to {protocol['longest_seconds']:.1f} s "
        f"(median {protocol['median_seconds']:.1f} s), samples in memory; median (min to max) of {protocol['passes']} "
        f"passes after {protocol['warmup']} to warm up; MiB: what the longest batch adds",
        "",
    ]
    width = max(map(len, [*found["subjects"], what]))
    lines.append(
        f"{what:<{width}}  {'batch':>5}  {'RTF':<28}{'audio h/h':>10}{'features':>10}{'encoder':>10}{'decoding':>10}{'MiB':>8}"
    )
    for name, figures in found["subjects"].items():
        for way, size in zip(WAYS, (1, protocol["batch"]), strict=True):
            part = figures[way]
            stages = "".join(
                f"{part['stage_rtf'][stage]:>10.3g}" for stage in ("features", "encoder", "decoding")
            )
            memory = "" if part["memory_mib"] is None else f"{part['memory_mib']:.0f}"
            hours = f"{part['audio_hours_per_hour']:.3g}"
            lines.append(
                f"{name:<{width}}  {size:>5}  {format_spread(part['rtf']):<28}{hours:>10}{stages}{memory:>8}"
            )
    lines += ["", "First token, ms from samples in memory, batch 1: median (min to max) over utterances"]
    for name, figures in found["subjects"].items():
        latency = {key: f"{1000 * value:.0f}" for key, value in figures["first_token_seconds"].items()}
        lines.append(f"{name:<{width}}  {latency['median']} ({latency['min']} to {latency['max']})")
    lines.append("")
    for name, figures in found["subjects"].items():
        lines.append(
            f"{name:<{width}}  {figures['same_hypotheses']} of {protocol['utterances']} hypotheses alike alone and batched"
        )
    return "\n".join(lines)


def format_spread(values: Mapping[str, float]) -> str:
    """As `0.0123 (0.012 to 0.013)`."""
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"
