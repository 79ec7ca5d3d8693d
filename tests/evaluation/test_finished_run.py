"""The recordings of a run's split, and a sample of them over all durations."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from hmamba_asr.evaluation.finished_run import find_recording, split_recordings, spread_over_durations

DURATIONS = {"u3": 3.0, "u1": 1.0, "u9": 9.0, "u2": 2.0, "u4": 4.0}


@pytest.fixture
def run(tmp_path):
    """A run's folder and its resolved YAML. The recordings are silence."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "manifests").mkdir()
    rows = "".join(
        f"{key},{seconds},$data_root/{key}.flac,s,WORDS OF {key}\n" for key, seconds in DURATIONS.items()
    )
    (tmp_path / "manifests" / "dev.csv").write_text(f"ID,duration,wav,spk_id,wrd\n{rows}")
    for key in DURATIONS:
        soundfile.write(corpus / f"{key}.flac", np.zeros(10), 16000)
    return tmp_path, f"data_folder: {corpus}\n"


def test_recordings_are_those_of_the_manifest(run):
    folder, hparams = run
    found = split_recordings(folder, "dev", hparams=hparams)
    assert [(item.id, item.duration, item.text) for item in found] == [
        (key, DURATIONS[key], f"WORDS OF {key}") for key in sorted(DURATIONS)
    ]
    assert all(find_recording(folder, "dev", item.id, hparams=hparams) == item.audio for item in found)
    assert find_recording(folder, "dev", "other", hparams=hparams) is None


def test_missing_recordings_are_one_sentence(run):
    folder, hparams = run
    with pytest.raises(FileNotFoundError, match=r"no .*test\.csv; give one of the run's splits: dev\."):
        split_recordings(folder, "test", hparams=hparams)
    (folder / "corpus" / "u2.flac").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of the 5 recordings of dev are not where .*u2\.flac\); bring the corpus"
    ):
        split_recordings(folder, "dev", hparams=hparams)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, ["u1"]), (2, ["u1", "u9"]), (3, ["u1", "u3", "u9"]), (99, ["u1", "u2", "u3", "u4", "u9"])],
)
def test_a_few_are_spread_over_the_durations(run, count, chosen):
    found = split_recordings(run[0], "dev", hparams=run[1])
    assert [item.id for item in spread_over_durations(found, count)] == chosen
