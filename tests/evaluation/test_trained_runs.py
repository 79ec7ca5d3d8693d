"""Boundaries and alignments of trained runs, by the functions and by the command line."""

from __future__ import annotations

import json
import re

import pytest

from hmamba_asr import cli
from hmamba_asr.evaluation.ctc_alignment import ctc_alignments
from hmamba_asr.evaluation.segmentation import read_segmentations
from hmamba_asr.evaluation.stability import measure_stability
from hmamba_asr.evaluation.wer import read_trn

pytestmark = pytest.mark.slow


def test_boundaries_are_compared_with_the_tokens_of_a_ctc(h_mamba_run, full_run, capsys):
    """The CTC is the run's own, which emits a label for each chunk, or another run's."""
    command = ["boundaries", str(h_mamba_run.folder), "--split", "test-clean", "--utterances", "4"]
    for more, aligner, chunk_rate in (
        ([], h_mamba_run, True),
        (["--aligner", str(full_run.folder)], full_run, False),
    ):
        assert cli.main([*command, *more, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["source"] == {"kind": "CTC", "folder": str(aligner.folder), "chunk_rate": chunk_rate}
        assert list(found["agreement"]) == ["tokens", "words"] and found["silence"] is None
        assert 0 < found["utterances"] <= 4 and found["utterances"] + found["without_alignment"] == 6
        assert cli.main([*command, *more]) == 0
        text = capsys.readouterr().out
        assert (
            "No forced alignment" in text
            and ("agreement with its own chunks means nothing" in text) is chunk_rate
        )
        assert "In silence" not in text and "Stability" not in text


def test_ctc_alignments_hold_the_reference(h_mamba_run, full_run):
    references, _ = read_trn(full_run.folder / "test" / "test-clean" / "greedy")
    found = ctc_alignments(full_run.folder, h_mamba_run.folder, split="test-clean", utterances=6)
    chunks = {
        item.id: item
        for item in read_segmentations(h_mamba_run.folder / "test" / "test-clean" / "chunks.jsonl")
    }
    assert found.alignments and not found.chunk_rate
    for key, alignment in found.alignments.items():
        words = [label for *_, label in alignment.intervals["words"] if label]
        assert words == references[key].split()
        item = chunks[key]
        for tier in alignment.intervals.values():
            edges = [tier[0][0], *(end for _, end, _ in tier)]
            assert edges == sorted(edges) and [start for start, *_ in tier] == edges[:-1]
            # From the first frame's beginning to the last one's end, on frames that begin where chunks may.
            assert (edges[0], edges[-1]) == pytest.approx((item.first, item.first + item.step * item.frames))
            frames = [(edge - item.first) / item.step for edge in edges]
            assert frames == pytest.approx([round(frame) for frame in frames], abs=1e-6)


def test_boundaries_stay_where_the_recording_stays(h_mamba_run, full_run, capsys):
    folder = h_mamba_run.folder
    found = measure_stability(
        folder, split="test-clean", noise=[200.0, -20.0], speed=[1.0, 1.1], utterances=5
    )
    assert list(found["conditions"]) == ["noise 200 dB", "noise -20 dB", "speed 1", "speed 1.1"]
    for unchanged in ("noise 200 dB", "speed 1"):
        for kinds in found["conditions"][unchanged].values():
            assert kinds["chunks"]["f1"] == 1.0 and kinds["uniform"]["f1"] < 1.0
        assert found["kept"][unchanged] == found["kept"]["clean"]
    noisy, faster = (found["conditions"][name]["20"]["chunks"] for name in ("noise -20 dB", "speed 1.1"))
    assert noisy["f1"] < 1.0 and faster["true"] == noisy["true"]
    command = ["boundaries", str(folder), "--split", "test-clean", "--utterances", "5"]
    assert cli.main([*command, "--noise", "20", "--speed", "1.1", "--json"]) == 0
    stability = json.loads(capsys.readouterr().out)["stability"]
    assert (
        stability["conditions"]["speed 1.1"] == found["conditions"]["speed 1.1"]
        and stability["utterances"] == 5
    )
    assert cli.main([*command, "--noise", "20"]) == 0
    assert "Stability: 5 utterances" in (text := capsys.readouterr().out) and re.search(
        r"noise 20 dB +20 ms +chunks", text
    )
    for wrong, message in (
        (["--speed", "3"], "a speed of 3 is no speech"),
        (["--noise", "20", "--stage", "1"], "no chunking stage 1"),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no chunking stage; give a run of H-Mamba"):
        measure_stability(full_run.folder, noise=[20.0], utterances=1)
