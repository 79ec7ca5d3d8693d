"""Chunks against phones and words: matching against SciPy, measures and baselines against known values."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from hmamba_asr import cli
from hmamba_asr.evaluation.boundary_agreement import Agreement, describe_boundaries, hits
from hmamba_asr.evaluation.segmentation import Segmentation, write_segmentations
from hmamba_asr.evaluation.textgrid import Tiers


def tier(*ends: float, labels: str = "ABCDEFGHIJKLMNOPQRST") -> tuple:
    return tuple(zip((0.0, *ends[:-1]), ends, labels, strict=False))


_TIMES = st.lists(st.integers(0, 60), unique=True, max_size=14).map(
    lambda values: [0.01 * value for value in sorted(values)]
)


@settings(deadline=None, max_examples=150)
@given(_TIMES, _TIMES, st.sampled_from([0.005, 0.02, 0.04]))
def test_hits_are_the_largest_matching(true, found, tolerance):
    near = np.abs(np.subtract.outer(true, found)) <= tolerance + 1e-6
    expected = (maximum_bipartite_matching(csr_array(near)) >= 0).sum() if near.any() else 0
    assert hits(true, found, tolerance) == expected


@pytest.mark.parametrize(
    ("true", "found", "right", "precision", "recall", "f1", "r_value"),
    [
        (10, 10, 10, 1.0, 1.0, 1.0, 1.0),
        (10, 20, 10, 0.5, 1.0, 2 / 3, 1 - (1 + 1 / 2**0.5) / 2),  # twice as many as there are
        (10, 5, 5, 1.0, 0.5, 2 / 3, 1 - 0.5**0.5 / 2),
        (10, 40, 10, 0.25, 1.0, 0.4, 1 - (3 + 3 / 2**0.5) / 2),
    ],
)
def test_measures_by_hand(true, found, right, precision, recall, f1, r_value):
    found = Agreement(true, found, right).to_dict()
    assert [found[key] for key in ("precision", "recall", "f1", "r_value")] == pytest.approx(
        [precision, recall, f1, r_value]
    )


def test_boundaries_at_every_phone_are_perfect_for_phones_and_too_many_for_words():
    ends = [0.2 * k for k in range(1, 11)]
    alignments = {"u": Tiers({"phones": tier(*ends), "words": tier(*ends[1::2])})}
    chunks = Segmentation("u", frames=20, first=0.0, step=0.1, starts=(tuple(range(0, 20, 2)),))
    found = describe_boundaries([chunks, Segmentation("other", 3, 0.0, 0.1, ((0,),))], alignments)
    phones, words = (found["agreement"][name]["20"] for name in ("phones", "words"))
    over = phones["chunks"].pop("f1_over")
    assert (
        over["uniform"] == [0.0, 0.0] and 0 < over["random"][0] == over["random"][1]
    )  # one utterance, always the same
    assert phones["chunks"] == {
        **dict.fromkeys(("precision", "recall", "f1", "r_value"), 1.0),
        "true": 9,
        "found": 9,
        "hits": 9,
    }
    assert phones["uniform"]["f1"] == 1.0  # these phones are evenly spaced
    assert (words["chunks"]["true"], words["chunks"]["recall"], words["chunks"]["precision"]) == (
        4,
        1.0,
        pytest.approx(4 / 9),
    )
    assert (found["utterances"], found["without_alignment"]) == (1, 1)
    assert found["durations"] == {2: 10} and found["frame_ms"] == 100
    assert found["silence"] == {"boundaries": 0.0, "time": 0.0}


def test_random_boundaries_hit_as_often_as_chance_has_it():
    """A true boundary is drawn with probability count / (frames - 1), if frames are further apart than the
    tolerance."""
    random = np.random.default_rng(3)
    chunks, alignments = [], {}
    for number in range(60):
        places = 0.1 * np.sort(random.choice(np.arange(1, 50), 10, replace=False))
        intervals = tier(*places.tolist(), 5.0)
        alignments[f"u{number}"] = Tiers({"phones": intervals, "words": intervals})
        starts = (0, *np.sort(random.choice(np.arange(1, 50), 12, replace=False)).tolist())
        chunks.append(Segmentation(f"u{number}", 50, 0.0, 0.1, (starts,)))
    at_20 = describe_boundaries(chunks, alignments)["agreement"]["phones"]["20"]
    for kind in (
        "random",
        "chunks",
    ):  # here those of the chunks are drawn as well, once instead of twenty times
        tolerance = 0.03 if kind == "random" else 0.15
        assert at_20[kind]["recall"] == pytest.approx(12 / 49, rel=tolerance)
        assert at_20[kind]["precision"] == pytest.approx(10 / 49, rel=tolerance)
        assert at_20[kind]["found"] == 60 * 12
    low, high = at_20["chunks"]["f1_over"]["random"]
    assert low < at_20["chunks"]["f1"] - at_20["random"]["f1"] < high and low < 0 < high < 0.1


def test_silence_is_counted():
    phones = ((0.0, 1.0, "sil"), (1.0, 2.0, "A"), (2.0, 4.0, "B"))
    chunks = Segmentation("u", 40, 0.0, 0.1, ((0, 2, 5, 15, 30),))
    found = describe_boundaries([chunks], {"u": Tiers({"phones": phones, "words": phones})})
    assert found["silence"] == {"boundaries": 0.5, "time": 0.25}
    with pytest.raises(ValueError, match="no chunking stage 1; these chunks have 1"):
        describe_boundaries([chunks], {"u": Tiers({"phones": phones, "words": phones})}, stage=1)
    with pytest.raises(ValueError, match="no utterance of these chunks has an alignment"):
        describe_boundaries([chunks], {})


def test_the_command_prints_text_and_json(grid, tmp_path, capsys):
    """An utterance of one chunk has no boundaries: what cannot be measured is null."""
    write_segmentations(
        tmp_path / "run" / "test" / "dev" / "chunks.jsonl", [Segmentation("u1", 25, -0.02, 0.04, ((0,),))]
    )
    command = ["boundaries", str(tmp_path / "run"), "--split", "dev", "--alignments", str(grid.parent)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert (
        "1 utterances" in text
        and f"Forced alignments in {grid.parent}" in text
        and re.search(r"^1000 ms +1 +####", text, re.MULTILINE)
        and "50.0% of the time" in text
    )
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["agreement"]["phones"]["20"]["chunks"]["precision"] is None
    assert found["agreement"]["phones"]["20"]["chunks"]["recall"] == 0 and found["silence"][
        "time"
    ] == pytest.approx(0.5)
    assert found["source"] == {"kind": "TextGrid", "folder": str(grid.parent)}
    assert cli.main([*command[:2], "--split", "gone", *command[4:]]) == 2
    assert "only runs that chunk have one" in capsys.readouterr().err
