"""results.json: written whole, read back, refused with a clear sentence; and the environment it describes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from hmamba_asr.evaluation.results import Entry, load_results, plain, write_results
from hmamba_asr.evaluation.timing import Efficiency
from hmamba_asr.evaluation.wer import score_split
from hmamba_asr.system.environment import collect_environment
from hmamba_asr.system.hardware import hardware

PUBLISHED = Path(__file__).resolve().parents[2] / "recipes" / "librispeech" / "results"


def test_what_the_package_produces_fits_the_schema(tmp_path, make_results):
    score = score_split({"u": "A B"}, {"u": "A"})
    speed = Efficiency(
        audio_seconds=2.0, phase_seconds={"read": 0.1}, wall_seconds=0.2, batch=1, hardware=hardware("cpu")
    )
    entry = Entry(wer=score.wer_record(), cer=score.cer.record(), efficiency=speed.record())
    written = make_results("x", {"dev": {"greedy": entry}}, environment=collect_environment("cpu"))
    assert written.evaluation["dev"]["greedy"] == entry
    write_results(tmp_path / "run" / "results.json", written)
    assert load_results([tmp_path]) == [written]


def test_every_published_file_is_read_and_written_as_it_is(tmp_path):
    """Also those of earlier versions. Only the keys that they lack are added, with null."""
    files = sorted(PUBLISHED.glob("*.results.json"))
    assert len(files) > 130
    for path in files:
        (results,) = load_results([path])
        write_results(tmp_path / "results.json", results)
        again = json.loads((tmp_path / "results.json").read_text())
        assert again.pop("operations") == plain(results.operations, "operations")
        assert again.pop("chunking") == plain(results.chunking, "chunking")
        before = json.loads(path.read_text())
        assert again == {key: value for key, value in before.items() if key not in ("operations", "chunking")}


def test_numbers_become_jsons(tmp_path, make_results):
    results = make_results("x", {})
    training = msgspec.structs.replace(
        results.training,
        seconds=math.nan,
        audio_seconds_per_second=math.inf,
        peak_memory_mib=torch.tensor(1.5),
        epochs=np.int64(3),
        train_splits=("a", "b"),
    )
    path = tmp_path / "results.json"
    write_results(path, msgspec.structs.replace(results, training=training, checkpoints=[tmp_path]))
    text = path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    (read,) = load_results([path])
    assert read.training.seconds is None and read.training.audio_seconds_per_second is None
    assert read.training.peak_memory_mib == 1.5 and read.training.epochs == 3
    assert read.training.train_splits == ["a", "b"] and read.checkpoints == [str(tmp_path)]


def test_a_value_json_cannot_hold_is_named_and_the_old_file_stays(tmp_path, make_results):
    path = tmp_path / "results.json"
    write_results(path, make_results("old", {}))
    broken = msgspec.structs.replace(make_results("new", {}), checkpoints=[object()])
    with pytest.raises(TypeError, match=r"results\.checkpoints\[0\] is of type object"):
        write_results(path, broken)
    assert load_results([path])[0].name == "old"


def test_a_wrong_result_is_written_all_the_same_and_complained_about(tmp_path, make_results):
    path = tmp_path / "results.json"
    broken = msgspec.structs.replace(make_results("x", {}), seed=None)
    with pytest.raises(ValueError, match="results.json: 'seed' should be int, but is null"):
        write_results(path, broken)
    assert json.loads(path.read_text())["name"] == "x"


def test_results_are_found_in_folders_once_each(tmp_path, make_results):
    for name in ("b/results.json", "a/deep/results.json", "kept/x.results.json"):
        write_results(tmp_path / name, make_results(name, {}))
    (tmp_path / "a" / "hparams.json").write_text("not mine")
    (tmp_path / "b" / "old-results.json").write_text("not mine")
    found = load_results([tmp_path, tmp_path / "b", tmp_path / "a" / ".." / "b" / "results.json"])
    assert [result.name for result in found] == [
        "a/deep/results.json",
        "b/results.json",
        "kept/x.results.json",
    ]


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such results file or folder"):
        load_results([tmp_path / "nowhere"])


@pytest.mark.parametrize("content", [b'{"schema": 1, "na', b"", b"\xff\xfe"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.results.json"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"broken\.results\.json: not readable as JSON \(.*Evaluate again, or remove"
    ):
        load_results([tmp_path])


def _delete(results, *keys):
    for key in keys[:-1]:
        results = results[key]
    del results[keys[-1]]


@pytest.mark.parametrize(
    "keys",
    [
        ("schema",),
        ("training", "train_splits"),
        ("environment", "git", "commit"),
        ("evaluation", "dev", "beam", "wer", "tokens"),
        ("evaluation", "dev", "beam", "efficiency"),
        ("evaluation", "dev", "beam", "efficiency", "hardware", "cpu"),
    ],
)
def test_every_level_of_the_schema_is_checked(tmp_path, make_results, make_entry, keys):
    entry = make_entry(words=10, errors=1, sentences=2, audio=1.0)
    results = plain(make_results("x", {"dev": {"beam": entry}}), "results")
    _delete(results, *keys)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"results\.json: the key '{'.'.join(keys)}' is missing"):
        load_results([path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "1234"}, "'seed' should be int, but is str"),
        ({"parameters": None}, "'parameters' should be object, but is null"),
        ({"schema": 2}, "schema 2, but this version reads 1"),
        (
            {"evaluation": {"dev": {"beam": {"wer": 3}}}},
            "'evaluation.dev.beam.wer' should be object, but is int",
        ),
        ({"evaluation": {"dev": None}}, r"'evaluation\[...\]' should be object, but is null"),
        ({"checkpoints": [1]}, r"'checkpoints\[0\]' should be str, but is int"),
    ],
)
def test_wrong_types_and_other_schemas_are_refused(tmp_path, make_results, changes, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**plain(make_results("x", {}), "results"), **changes}))
    with pytest.raises(ValueError, match=rf"results\.json: {message}"):
        load_results([path])


def test_what_is_no_object_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="the whole file should be object, but is list"):
        load_results([path])


def test_further_keys_are_kept(tmp_path, make_results):
    path = tmp_path / "results.json"
    content = plain(make_results("x", {}, training=None), "results")
    del content["further"]
    path.write_text(json.dumps({**content, "more": "keys are kept"}))
    (results,) = load_results([path])
    assert results.training is None and results.further == {"more": "keys are kept"}
    write_results(path, results)
    assert json.loads(path.read_text())["more"] == "keys are kept"
