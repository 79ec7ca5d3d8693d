"""scripts/draw_models.py: the kept drawing is what the script draws, and it says what the models are."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import draw_models
import pytest

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import load_parts

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def _words(path: Path) -> list[str]:
    return [text.text for text in ElementTree.parse(path).getroot().iter(f"{SVG}text")]


def test_the_kept_drawings_are_what_the_script_draws(tmp_path, capsys):
    assert draw_models.main(["--folder", str(tmp_path / "new")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in written] == ["model_light.svg", "model_dark.svg"]
    for path in written:
        assert path.read_text() == (draw_models.DEFAULT_FOLDER / path.name).read_text()
    assert _words(written[0]) == _words(written[1])


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_drawing_is_described_readable_and_complete_in_itself(colours):
    path = draw_models.DEFAULT_FOLDER / f"model_{colours}.svg"
    text = path.read_text()
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    named = {element.get("id"): element.text for element in root if element.get("id")}
    assert root.get("aria-labelledby").split() == ["title", "description"] and all(named.values())
    sizes = [int(size) for size in re.findall(r"font-size: (\d+)px", text)]
    assert sizes and min(sizes) >= 13
    assert not re.search(r"href|url\((?!#)|@import|@font-face", text)
    style = root.find(f"{SVG}style").text
    used = {element.get("class") for element in root.iter() if element.get("class")}
    assert used <= set(re.findall(r"^\.([\w-]+)", style, re.M))
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter(f"{SVG}rect"):
        x, y, wide, high = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        assert 0 <= x <= x + wide <= width and 0 <= y <= y + high <= height


def test_the_drawing_says_what_the_models_are(tmp_path):
    def load(name: str) -> dict:
        text = compose(ROOT / "hparams" / f"{name}.yaml")
        given = {"data_folder": str(tmp_path), "output_folder": str(tmp_path / "out")}
        return load_parts(text, ["features", "frontend", "encoder"], given)

    words = _words(draw_models.DEFAULT_FOLDER / "model_light.svg")
    flat, hierarchical = load("conmamba_small_ls100"), load("hmamba_small_ls100")
    encoder = hierarchical["encoder"]
    counts = [len(stack.blocks) for stack in (flat["encoder"], encoder.outer, encoder.inner)]
    assert [word for word in words if word.endswith(" blocks")] == [f"{count} blocks" for count in counts]
    # Frames: 100 features a second, four to a frame.
    hop = flat["features"].hop_seconds
    rate = flat["frontend"].output_lengths(round(60 / hop)) / 60
    assert f"{round(1 / hop)} a second" in words and f"{rate:g} a second, {1000 / rate:g} ms each" in words
    assert encoder.chunker.kind == "ctc" and encoder.output == "chunks"
    ratio = draw_models.FRAMES / len(draw_models.CHUNKS)
    assert ratio == encoder.chunker.target_ratio and f"on average, here {ratio:g}" in words
    modules = [name for name, _ in encoder.inner.blocks[0].named_children() if not name.startswith("mamba_")]
    assert modules == ["ffn_in", "mamba", "conv", "ffn_out", "norm"]
    at = words.index("Every block") + 2
    drawn = [
        "half",
        "feed-forward",
        "bidirectional",
        "Mamba",
        "convolution",
        "half",
        "feed-forward",
        "layer",
        "norm",
    ]
    assert words[at : at + 9] == drawn
