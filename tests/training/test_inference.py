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
