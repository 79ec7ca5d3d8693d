"""Phase times, real-time factor and merging, on a fake clock."""

from __future__ import annotations

import pytest
import torch

from hmamba_asr.evaluation import timing
from hmamba_asr.evaluation.results import plain
from hmamba_asr.evaluation.timing import Efficiency, PhaseTimer, merge


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def test_phases_add_up(clock):
    timer = PhaseTimer("cpu")
    for seconds in (1.0, 2.0):
        with timer.phase("features"):
            clock.now += seconds
        clock.now += 50.0  # between phases: nobody's time
        with timer.phase("encoder"):
            clock.now += 10 * seconds
    assert timer.seconds == {"features": 3.0, "encoder": 30.0}
    assert timer.total == 33.0
    timer.reset()
    assert timer.seconds == {} and timer.total == 0.0


def test_a_phase_that_raises_is_counted_and_closed(clock):
    timer = PhaseTimer("cpu")
    with pytest.raises(KeyError), timer.phase("read"):
        clock.now += 4.0
        raise KeyError
    with timer.phase("read"):
        clock.now += 1.0
    assert timer.seconds == {"read": 5.0}


def test_nested_phases_are_refused():
    timer = PhaseTimer("cpu")
    with timer.phase("encoder"), pytest.raises(RuntimeError, match="'features' begins inside 'encoder'"):  # noqa: SIM117
        with timer.phase("features"):
            pass


def test_the_device_is_synchronised_at_both_edges(clock, monkeypatch):
    """Kernels that were queued before a phase do not count for it; those queued within do."""
    queued = [7.0]

    def synchronize(device):
        assert device == torch.device("cuda")
        clock.now += sum(queued)
        queued.clear()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    timer = PhaseTimer("cuda")
    with timer.phase("encoder"):
        queued.append(3.0)
    assert timer.seconds == {"encoder": 3.0}


def _measured(**changes) -> Efficiency:
    values = {
        "audio_seconds": 100.0,
        "phase_seconds": {"read": 1.0, "decoding": 4.0},
        "wall_seconds": 6.0,
        "batch": 8,
        "hardware": {"device": "cpu", "cpu": "EPYC", "cores": 2, "gpu": None},
    }
    return Efficiency(**{**values, **changes})


def test_rtf_is_processing_time_per_audio_time():
    measured = _measured()
    assert measured.rtf == pytest.approx(0.05)
    assert plain(measured.record(), "efficiency") == {
        "rtf": 0.05,
        "processing_seconds": 5.0,
        "audio_seconds": 100.0,
        "stage_seconds": {"read": 1.0, "decoding": 4.0},
        "wall_seconds": 6.0,
        "batch": 8,
        "hardware": {
            "device": "cpu",
            "cpu": "EPYC",
            "cores": 2,
            "torch_threads": None,
            "gpu": None,
            "gpu_memory_mib": None,
            "cuda": None,
            "platform": None,
        },
        "processes": 1,
    }
    with pytest.raises(ValueError, match="no audio"):
        _ = _measured(audio_seconds=0.0).rtf


def test_merge_adds_audio_and_takes_the_longest_wall_time():
    other = _measured(audio_seconds=300.0, phase_seconds={"read": 2.0, "lm": 3.0}, wall_seconds=9.0)
    merged = merge([_measured(), other])
    assert merged.audio_seconds == 400.0
    assert merged.wall_seconds == 9.0
    assert merged.phase_seconds == {"read": 3.0, "decoding": 4.0, "lm": 3.0}
    assert merged.processes == 2
    assert merged.rtf == pytest.approx(10.0 / 400.0)
    assert merged.hardware == _measured().hardware and merged.batch == 8


def test_merge_of_equal_processes_keeps_the_rtf_and_names_mixed_hardware():
    parts = [
        _measured(),
        _measured(hardware={"device": "cpu", "cpu": "Xeon", "cores": 4, "gpu": None}, batch=4),
    ]
    merged = merge(parts)
    assert merged.rtf == parts[0].rtf
    assert merged.hardware == {"device": "cpu", "cpu": "EPYC + Xeon", "cores": "2 + 4", "gpu": None}
    assert merged.record().hardware.cores == "2 + 4"
    assert merged.batch == "4 + 8"
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_phase_on_cuda_lasts_until_its_kernels_are_done():
    timer = PhaseTimer("cuda")
    with timer.phase("sleep"):
        torch.cuda._sleep(100_000_000)  # cycles: returns at once, runs for tens of milliseconds
    assert timer.seconds["sleep"] > 0.01
