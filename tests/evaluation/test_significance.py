"""Intervals and tests between systems: against SciPy, exact enumeration, NIST's sctk, and known answers."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from hmamba_asr.evaluation.significance import bootstrap_interval, matched_pairs, paired_bootstrap
from hmamba_asr.evaluation.wer import align, read_trn, score_split
from hmamba_asr.evaluation.word_alignment import AlignedUtterance

OUTPUTS = Path(__file__).parents[1] / "outputs"  # of a conmamba_demo run on test-other
# What sctk 2.4.10 says of them: sclite -o sgml of each, then sc_stats -t mapsswe -v
NIST = {"segments": 131, "mean": -1.321, "deviation": 1.291, "z": -11.712}


@pytest.fixture(scope="module")
def outputs() -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    return {search: read_trn(OUTPUTS / search) for search in ("greedy", "beam")}


@pytest.fixture(scope="module")
def aligned(outputs):
    return {search: align(*transcripts) for search, transcripts in outputs.items()}


def counts(utterances) -> tuple[np.ndarray, np.ndarray]:
    return np.array([item.errors for item in utterances]), np.array([item.words for item in utterances])


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_the_interval_is_scipys(aligned, search):
    errors, words = counts(aligned[search])
    expected = scipy.stats.bootstrap(
        (errors, words),
        lambda e, w, axis: 100 * e.sum(axis) / w.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        batch=1000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    found = bootstrap_interval(errors, words)
    assert found == pytest.approx(
        tuple(expected), abs=0.25
    )  # both are drawn: about three standard errors of the ends
    assert found == bootstrap_interval(errors, words) != bootstrap_interval(errors, words, seed=1)


def test_the_interval_of_three_utterances_is_that_of_all_27_resamples():
    errors, words = [0, 3, 1], [10, 10, 5]
    rates = [
        100 * sum(errors[i] for i in drawn) / sum(words[i] for i in drawn)
        for drawn in itertools.product(range(3), repeat=3)
    ]
    low, high = np.percentile(rates, [2.5, 97.5], method="inverted_cdf")
    assert bootstrap_interval(errors, words) == pytest.approx((low, high), abs=0.01)


def test_a_larger_corpus_has_an_interval_smaller_by_the_square_root():
    random = np.random.default_rng(0)
    errors, words = random.binomial(12, 0.1, 4000), np.full(4000, 12)
    few, many = (bootstrap_interval(errors[:n], words[:n]) for n in (250, 4000))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.15)
    # Of independent words: 1.96 standard deviations of a binomial share to either side
    assert many.high - many.low == pytest.approx(2 * 196 * math.sqrt(0.1 * 0.9 / 48_000), rel=0.1)


def test_score_split_has_the_interval(outputs, aligned):
    score = score_split(*outputs["beam"])
    interval = score.wer_interval()
    assert (
        interval == bootstrap_interval(*counts(aligned["beam"]))
        and interval.low < score.wer.rate < interval.high
    )


def test_paired_bootstrap_of_real_outputs(aligned):
    (greedy, words), (beam, _) = counts(aligned["greedy"]), counts(aligned["beam"])
    found = paired_bootstrap(greedy, beam, words)
    assert found.difference == pytest.approx(100 * (beam.sum() - greedy.sum()) / words.sum())
    assert found.p == pytest.approx(
        2 / 10_001
    )  # no resample in 10 000 turns it round, and none is added on either side
    # Linearised, the difference of two ratios with one denominator is a mean of (d - difference * words)
    residual = (beam - greedy) - found.difference / 100 * words
    error = 100 * residual.std(ddof=1) * math.sqrt(len(words)) / words.sum()
    assert found.interval == pytest.approx(
        (found.difference - 1.96 * error, found.difference + 1.96 * error), abs=0.5
    )
    turned = paired_bootstrap(beam, greedy, words)
    assert turned.difference == -found.difference and turned.interval == pytest.approx(
        [-x for x in reversed(found.interval)]
    )


def test_p_values_of_equal_systems_are_spread_evenly():
    """Without a true difference, one in ten experiments has p below 0.1."""
    random = np.random.default_rng(1)
    words = np.full(200, 10)
    ps = []
    for _ in range(400):
        a, b = random.binomial(10, 0.2, (2, 200))
        ps.append(paired_bootstrap(a, b, words, resamples=400).p)
    assert np.mean(np.array(ps) < 0.1) == pytest.approx(
        0.1, abs=0.05
    )  # three standard deviations of 400 draws
    assert paired_bootstrap(words, words, words).p == 1.0


def test_unequal_numbers_and_no_words_are_refused():
    with pytest.raises(ValueError, match="give both for each utterance"):
        bootstrap_interval([1, 2], [3])
    with pytest.raises(ValueError, match="references are empty"):
        bootstrap_interval([1], [0])


def test_matched_pairs_of_real_outputs_are_nists(aligned):
    found = matched_pairs(aligned["greedy"], aligned["beam"])
    assert found.segments == NIST["segments"]
    assert found.z == pytest.approx(NIST["z"], abs=5e-4)
    assert found.z == pytest.approx(
        NIST["mean"] / (NIST["deviation"] / math.sqrt(NIST["segments"])), rel=1e-3
    )
    assert found.p == pytest.approx(2 * scipy.stats.norm.sf(abs(found.z)))
    assert matched_pairs(aligned["beam"], aligned["greedy"]).z == -found.z


@pytest.mark.skipif(not shutil.which("sctk"), reason="NIST's sctk is not installed")
def test_errors_and_matched_pairs_are_those_of_sctk(aligned, tmp_path):
    """Compare on NIST's own alignments: it weights substitutions differently and places some errors
    elsewhere."""
    theirs = {}
    for search in aligned:
        files = [
            "-r",
            OUTPUTS / search / "ref.trn",
            "trn",
            "-h",
            OUTPUTS / search / "hyp.trn",
            "trn",
            "-i",
            "spu_id",
        ]
        done = subprocess.run(
            ["sctk", "sclite", *files, "-o", "sgml", "stdout"], capture_output=True, text=True, check=True
        )
        theirs[search] = done.stdout
    command = ["sctk", "sc_stats", "-p", "-t", "mapsswe", "-v", "-n", "x", "-O", str(tmp_path)]
    subprocess.run(command, input="".join(theirs.values()), capture_output=True, text=True, check=True)
    report = (tmp_path / "x.stats.mapsswe").read_text()
    segments, z = re.search(r"# segs: (\d+)\).*Z Stat: ([-\d.]+)", report).groups()
    parsed = {search: _parse_sgml(text) for search, text in theirs.items()}
    found = matched_pairs(parsed["greedy"], parsed["beam"])
    assert (found.segments, -found.z) == (int(segments), pytest.approx(float(z), abs=1e-3))
    for search, utterances in parsed.items():
        assert sum(item.errors for item in utterances) == sum(item.errors for item in aligned[search])


def _parse_sgml(text: str) -> list[AlignedUtterance]:
    found = []
    for key, path in re.findall(r'<PATH id="\((.*?)\)".*?>\n(.*?)\n</PATH>', text, flags=re.DOTALL):
        pairs = re.findall(r'[CSDI],("[^"]*")?,("[^"]*")?', path)
        found.append(
            AlignedUtterance(
                key, tuple((ref.strip('"') or None, hyp.strip('"') or None) for ref, hyp in pairs)
            )
        )
    return sorted(found, key=lambda item: item.id)


def utterance(reference: str, hypothesis: str, key: str = "u") -> AlignedUtterance:
    return align({key: reference}, {key: hypothesis})[0]


@pytest.mark.parametrize(
    ("a", "b", "segments"),
    [
        ("A B C D E", "A B C D E", 0),
        ("X B C D E", "A B C D X", 2),  # three words right in between
        ("A X C X E", "A B C D E", 1),  # one word right does not separate
        ("X B C X E", "A B C D E", 2),  # two do
        ("A B Z C D E", "A B C D", 2),  # an insertion, and a deletion three words later
        ("A Z B C Z D E", "A B C D E", 2),
        ("A Z B Z C D E", "A B C D E", 1),
        ("", "", 1),
    ],
)
def test_segments_by_hand(a, b, segments):
    reference = "A B C D E"
    assert matched_pairs([utterance(reference, a)], [utterance(reference, b)]).segments == segments


def test_segments_end_with_their_utterance():
    one, other = (align({"u": "A", "v": "A"}, {"u": hyp, "v": hyp}) for hyp in ("B", "A"))
    assert matched_pairs(one, other).segments == 2


def test_without_spread_there_is_no_p_value():
    same = [utterance("A B", "A X")]
    assert matched_pairs(same, same).p == 1.0
    assert matched_pairs(same, [utterance("A B", "A B")]).p is None


def test_other_utterances_and_other_references_are_refused():
    with pytest.raises(ValueError, match="not scored on the same utterances"):
        matched_pairs([utterance("A", "A", "u")], [utterance("A", "A", "v")])
    with pytest.raises(ValueError, match="different references of utterance u"):
        matched_pairs([utterance("A", "A")], [utterance("B", "A")])
