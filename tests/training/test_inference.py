"""A trained run's folder transcribes as its evaluation did."""

from __future__ import annotations

import json
import shutil

import pytest
import soundfile

from hmamba_asr import cli
from hmamba_asr.inference import Recogniser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def moved_run(full_run, tmp_path_factory):
    """A copy elsewhere: nothing may depend on where the run was, or change the folder."""
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(full_run.folder, folder)
    (folder / "save" / ".partial-CKPT+now").mkdir()  # as of a training that is writing just now
    return folder


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_transcripts_are_those_of_the_evaluation(moved_run, corpus, search, capsys):
    lines = (moved_run / "test" / "test-clean" / search / "hyp.trn").read_text().splitlines()
    expected = {line.split("(")[1].rstrip(")"): line.split("(")[0].strip() for line in lines}
    audio = sorted((corpus / "test-clean").rglob("*.flac"))
    assert cli.main(["transcribe", str(moved_run), *map(str, audio), "--search", search]) == 0
    printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert [printed[str(path)].split() for path in audio] == [expected[path.stem].split() for path in audio]
    assert (moved_run / "save" / ".partial-CKPT+now").is_dir()


def test_words_have_times_inside_the_recording(moved_run, corpus, capsys):
    audio = sorted((corpus / "test-clean").rglob("*.flac"))
    assert cli.main(["transcribe", str(moved_run), *map(str, audio), "--json", "--search", "greedy"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(result["words"] for result in found)
    for result, path in zip(found, audio, strict=True):
        assert " ".join(word["text"] for word in result["words"]) == " ".join(result["text"].split())
        times = [time for word in result["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times) and all(0 <= time <= soundfile.info(path).duration + 0.04 for time in times)
        assert all(0 < word["confidence"] <= 1 for word in result["words"])


def test_the_speed_of_a_run_is_measured_on_its_test_utterances(moved_run, capsys):
    command = ["efficiency", str(moved_run), "--utterances", "3", "--batch", "2", "--passes", "1", "--device", "cpu"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((moved_run / "efficiency.json").read_text())
    assert (found["split"], list(found["subjects"]), found["protocol"]["utterances"]) == ("test-clean", ["greedy", "beam"], 3)
    assert (found["protocol"]["shortest_seconds"], found["protocol"]["longest_seconds"]) == pytest.approx((0.4, 1.2), abs=0.01)
    for figures in found["subjects"].values():
        assert figures["same_hypotheses"] == 3 and figures["batched"]["rtf"]["median"] > 0
        assert 0 < figures["first_token_seconds"]["median"] < 5
    assert cli.main([*command, "--split", "test-other", "--search", "greedy"]) == 0
    assert "test-other, " in (text := capsys.readouterr().out) and "beam" not in text
    for wrong, message in (
        (["--split", "gone"], "one of the run's splits: dev-clean"),
        (["--utterances", "0"], "nothing to measure"),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_weights_are_tuned_on_a_split(moved_run, corpus, capsys):
    """With the YAML's weight the errors are those of the evaluation; each weight is its own search."""
    command = ["tune", str(moved_run), "--split", "test-clean", "--batch", "4", "--device", "cpu"]
    assert cli.main([*command, "--ctc", "0.4", "1.0", "0.4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    evaluated = json.loads((moved_run / "results.json").read_text())["evaluation"]["test-clean"]["beam"]["wer"]
    ours = found["weights"]
    assert [entry["ctc"] for entry in ours] == [0.4, 1.0, 0.4] and found["search"] == "beam"
    for entry in (ours[0], ours[2]):
        assert {**entry["wer"], "interval_95": entry["interval_95"]} == evaluated
    assert ours[1]["wer"] != ours[0]["wer"]
    assert cli.main([*command, "--ctc", "0.4", "1.0"]) == 0
    text = capsys.readouterr().out
    assert text.count("lowest") == 1 and f"0.4     {ours[0]['wer']['rate']:.2f} (" in text
    for wrong, message in (
        ([], "nothing to tune"),
        (["--ctc", "1.5"], "the CTC's weight is 1.5; it must be from 0 to 1"),
        (["--lm", "0.3"], "the search has no language model to be given the weight 0.3"),
        (["--ctc", "0.3", "--search", "greedy"], "is no joint beam search"),
        (["--ctc", "0.3", "--batch", "0"], "a batch of 1 or more"),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_wrong_input_is_one_sentence(moved_run, corpus, tmp_path, capsys):
    audio = next((corpus / "test-clean").rglob("*.flac"))
    stereo, text = tmp_path / "stereo.wav", tmp_path / "text.wav"
    soundfile.write(stereo, [[0.0, 0.0]] * 100, 8000)
    text.write_text("no sound")
    recogniser = Recogniser(moved_run)
    with pytest.raises(ValueError, match="has 8000 Hz and 2 channel"):
        recogniser.transcribe(stereo)
    with pytest.raises(ValueError, match="text.wav cannot be read as audio"):
        recogniser.transcribe(text)
    with pytest.raises(ValueError, match="has no search 'other'; it has greedy, beam"):
        Recogniser(moved_run, search="other")
    assert cli.main(["transcribe", str(tmp_path), str(audio)]) == 2
    assert "holds no hyperparams.yaml" in capsys.readouterr().err
    (tmp_path / "hyperparams.yaml").write_text((moved_run / "hyperparams.yaml").read_text())
    assert cli.main(["transcribe", str(tmp_path), str(audio)]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
