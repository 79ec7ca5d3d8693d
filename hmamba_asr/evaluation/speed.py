"""Speed of recognisers: one protocol for trained runs and for random weights.

The samples are in memory when the clock starts, so reading does not count (in the RTF of results.json it
does). Every subject recognises all utterances once without timing. Then, in each pass, all subjects take
turns, so that other work of the machine slows all of them alike. The timer synchronises a GPU at both ends of
each phase. The RTF is processing time divided by the duration of the audio without padding.

The first-token latency runs from the samples in memory to the first token on the host: features, the whole
encoder and the first step of the search. None of these encoders streams, so the latency grows with the
utterance. A greedy CTC search has no steps, so its first token comes with the last one. The first token of a
beam is the best at that time; later steps may prefer another.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from hmamba_asr.evaluation.timing import PhaseTimer
from hmamba_asr.system.memory import added_memory_mib
from hmamba_asr.system.tables import text_table

if TYPE_CHECKING:
    from hmamba_asr.decoding.search import Search

WARMUP = 1  # passes
PASSES = 3
WAYS = ("batch_1", "batched")
PHASES = ("features", "encoder", "decoding")
RUN_KIND, BENCHMARK_KIND = "run", "benchmark"  # kinds of files of figures

_WRITERS = {RUN_KIND: "hmamba-asr efficiency", BENCHMARK_KIND: "scripts/benchmarks/efficiency.py --json"}


@dataclass(frozen=True)
class Subject:
    """A recogniser to time.

    Attributes
    ----------
    features
        Samples (B, S) and lengths (B,) to features and their lengths.
    model
        Features and lengths to the model's output.
    search
        The model's output to the token ids of each utterance.
    device
        Where all of them compute.
    """

    features: Callable
    model: Callable
    search: Search
    device: torch.device

    @torch.no_grad()
    def recognise(self, utterances: Sequence[torch.Tensor], timer: PhaseTimer) -> list[list[int]]:
        """Return the token ids of a batch of utterances (S,)."""
        return self._run(utterances, timer, self.search)

    @torch.no_grad()
    def first_tokens(self, utterances: Sequence[torch.Tensor], timer: PhaseTimer) -> list[int | None]:
        """Return the first token of each utterance (S,), None if it has no token."""
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
    """Measure the speed of subjects.

    Parameters
    ----------
    subjects
        What to time, by name.
    utterances
        Samples (S,) of each utterance.
    sample_rate
        Their rate in Hz.
    batch_size
        Utterances in a batch, for the batched figures.
    passes
        Number of timed passes.

    Returns
    -------
    dict
        Only types of JSON: ``protocol`` and ``subjects``. A subject has, for "batch_1" and for "batched":
        ``rtf`` {min, median, max} over the passes and ``passes``, the RTF of each; ``audio_hours_per_hour``
        (1 / the median); ``stage_rtf``, the median of each phase; ``memory_mib``, what the longest batch
        adds, None if that cannot be measured. It also has ``first_token_seconds`` {min, median, max} over
        utterances, each the median of its passes, and ``same_hypotheses``, the number of utterances whose
        tokens are the same alone and in a batch.

    Raises
    ------
    ValueError
        If there are no utterances, or a size is below 1.
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
            longest = partial(subject.recognise, batches[0], PhaseTimer(subject.device))
            memory = added_memory_mib(longest, subject.device)
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
    phases = {
        phase: statistics.median(timer.seconds[phase] for timer in timers) / audio
        for phase in timers[0].seconds
    }
    return {
        "rtf": spread(rtf),
        "passes": rtf,
        "audio_hours_per_hour": 1 / statistics.median(rtf),
        "stage_rtf": phases,
        "memory_mib": memory,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def read_figures(path: str | Path, kind: str) -> dict[str, Any]:
    """Read a file of `hmamba-asr efficiency` (`RUN_KIND`) or of scripts/benchmarks/efficiency.py
    (`BENCHMARK_KIND`).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not JSON, or not of that kind.
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
        raise ValueError(f"{path} holds no figures of {_WRITERS[kind]}; give a file that it wrote.")
    return found


def render_speed(found: Mapping[str, Any], *, what: str = "search") -> str:
    """Return what `measure` found as text. `what` says what the subjects are."""
    protocol, subjects = found["protocol"], found["subjects"]
    rows = []
    for name, figures in subjects.items():
        for way, size in zip(WAYS, (1, protocol["batch"]), strict=True):
            part = figures[way]
            rows.append(
                [
                    name,
                    size,
                    format_spread(part["rtf"]),
                    f"{part['audio_hours_per_hour']:.3g}",
                    *(f"{part['stage_rtf'][phase]:.3g}" for phase in PHASES),
                    None if part["memory_mib"] is None else f"{part['memory_mib']:.0f}",
                ]
            )
    headers = [what, "batch", "RTF", "audio h/h", *PHASES, "MiB"]
    speed = text_table(rows, headers, align=("left", "right", "left", *["right"] * 5))
    rows = []
    for name, figures in subjects.items():
        latency = {key: f"{1000 * value:.0f}" for key, value in figures["first_token_seconds"].items()}
        rows.append([name, f"{latency['median']} ({latency['min']} to {latency['max']})"])
    first_tokens = text_table(rows, [what, "ms"])
    agreement = [
        f"{name}: {figures['same_hypotheses']} of {protocol['utterances']} hypotheses alike alone and batched"
        for name, figures in subjects.items()
    ]
    return "\n".join(
        [
            f"{protocol['utterances']} utterances of {protocol['shortest_seconds']:.1f} to "
            f"{protocol['longest_seconds']:.1f} s (median {protocol['median_seconds']:.1f} s), samples in "
            "memory; median "
            f"(min to max) of {protocol['passes']} passes after {protocol['warmup']} to warm up; MiB: what "
            "the longest "
            "batch adds",
            "",
            speed,
            "",
            "First token, from samples in memory, batch 1: median (min to max) over utterances",
            first_tokens,
            "",
            *agreement,
        ]
    )


def format_spread(values: Mapping[str, float]) -> str:
    """Return for example `0.0123 (0.012 to 0.013)`."""
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"
