"""The HTML page: whole and valid, asks for nothing over the network, shows what the runs hold, and opens in
Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from textgrids import TEXTGRID

from hmamba_asr import cli
from hmamba_asr.evaluation.results import load_results, write_results
from hmamba_asr.evaluation.segmentation import Segmentation, write_segmentations
from hmamba_asr.evaluation.wer import align, read_trn, score_split
from hmamba_asr.report.sections import CLIPS, WORST

OUTPUTS = Path(__file__).parents[1] / "outputs"
OPERATIONS = {"seconds": 10.0, "tokens": 40, "macs": {"frontend": 100_000_000, "encoder": 23_000_000}}
VOID = {"meta", "img", "br", "link", "hr", "input", "wbr"}


class Checker(HTMLParser):
    """Notes elements that are not closed in order, every attribute that is an address, and attributes by
    element."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.addresses: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.addresses += [
            value or ""
            for name, value in attributes
            if name in ("src", "href", "srcset", "action", "data", "poster")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Half a second of noise under each test utterance's name."""
    folder = tmp_path_factory.mktemp("corpus")
    noise = 0.1 * np.random.default_rng(0).normal(size=8000)
    for key in read_trn(OUTPUTS / "beam")[0]:
        soundfile.write(folder / f"{key}.flac", noise, 16000)
    return folder


@pytest.fixture
def make_run(tmp_path, make_results, make_entry, corpus):
    """A run as train.py leaves it, whose search "beam" found what the outputs' `search` did."""

    def make(name: str, search: str, *, chunks: bool = False, **changes) -> Path:
        folder = tmp_path / name
        shutil.copytree(OUTPUTS / search, folder / "test" / "test-other" / "beam")
        score = score_split(*read_trn(OUTPUTS / search))
        entry = make_entry(
            words=score.wer.tokens, sentences=120, errors=score.wer.errors, audio=300.0, processing=3.0
        )
        entry["wer"]["interval_95"] = list(score.wer_interval())
        yaml = f"data_folder: {corpus}\nname: {name} & <co>\n"
        own = {"hparams": yaml, "operations": OPERATIONS, **changes}
        results = make_results(name, {"test-other": {"beam": entry}}, **own)
        write_results(folder / "results.json", results)
        ids = list(read_trn(OUTPUTS / search)[0])
        (folder / "manifests").mkdir()
        rows = "".join(f"{key},0.5,$data_root/{key}.flac,s,A\n" for key in ids)
        (folder / "manifests" / "test-other.csv").write_text(f"ID,duration,wav,spk_id,wrd\n{rows}")
        epochs = [
            {"kind": "epoch", "epoch": n, "loss": 9.0 / n, "valid_loss": 8.0 / n, "valid_wer": 50.0 / n}
            for n in (1, 2)
        ]
        (folder / "train_log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in epochs))
        if chunks:
            items = [Segmentation(key, 13, -0.02, 0.04, ((0, 3, 5, 6, 12),)) for key in ids]
            write_segmentations(folder / "test" / "test-other" / "chunks.jsonl", items)
        return folder

    return make


def speed_of(rtf: float) -> dict:
    """What `hmamba-asr efficiency` leaves in a run's folder."""
    spread = {"min": 0.9 * rtf, "median": rtf, "max": 1.1 * rtf}
    way = {
        "rtf": spread,
        "passes": [rtf],
        "audio_hours_per_hour": 1 / rtf,
        "stage_rtf": {},
        "memory_mib": None,
    }
    protocol = {"batch": 8, "utterances": 16, "passes": 3, "shortest_seconds": 1.0, "longest_seconds": 30.0}
    subject = {"batch_1": way, "batched": way, "first_token_seconds": spread, "same_hypotheses": 16}
    return {
        "kind": "run",
        "split": "test-other",
        "hardware": {"cpu": "EPYC", "gpu": None, "torch_threads": 2},
        "torch": "2",
        "precision": "fp32",
        "protocol": protocol,
        "subjects": {"beam": subject},
    }


def measured(seconds: int, taken: float, **more) -> dict:
    return {"seconds": seconds, "encoder_seconds": taken, "memory_mib": 10.0 * seconds, **more}


BENCHMARK = {
    "kind": "benchmark",
    "hardware": {"cpu": "EPYC", "gpu": "GPU 9", "torch_threads": 2},
    "torch": "2",
    "precision": "fp32",
    "peer": "Conformer",
    "encoders": {
        "ConMamba": [measured(5, 0.5, ratio={"low": 1.5, "median": 2.0, "high": 2.5}), measured(1200, 9.0)],
        "Conformer": [measured(5, 1.0), {"seconds": 1200, "skipped": "skipped: may take 99 GiB"}],
    },
}


@pytest.fixture
def page(make_run, tmp_path) -> Path:
    first = make_run("conmamba", "greedy")
    second = make_run(
        "hmamba", "beam", chunks=True, overrides={"chunker": "<b>x</b>"}, chunking=[{"kind": "ctc"}]
    )
    for folder, rtf in ((first, 0.02), (second, 0.01)):
        (folder / "efficiency.json").write_text(json.dumps(speed_of(rtf)))
    benchmark = tmp_path / "benchmark.json"
    benchmark.write_text(json.dumps(BENCHMARK))
    grids = tmp_path / "grids"
    grids.mkdir()
    for key in list(read_trn(OUTPUTS / "beam")[0])[:3]:
        (grids / f"{key}.TextGrid").write_text(TEXTGRID)
    output = tmp_path / "out" / "page.html"
    arguments = [str(first), str(second), "-o", str(output), "--title", "A & B", "--alignments", str(grids)]
    arguments += ["--efficiency", str(benchmark)]
    assert cli.main(["report", *arguments]) == 0
    return output


def test_the_page_is_valid_and_self_contained(page):
    html = page.read_text(encoding="utf-8")
    checked = Checker(html)
    assert checked.problems == [] and checked.open == []
    assert checked.addresses and all(address.startswith(("data:", "#")) for address in checked.addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe|<img", html)
    identifiers = [attributes["id"] for _, attributes in checked.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    used = {address[1:] for address in checked.addresses if address.startswith("#")}
    used |= set(re.findall(r"url\(#(.*?)\)", html))
    assert used <= set(identifiers)
    # No style sheet of a figure is the whole page's, and each figure says what it shows.
    assert html.count("<style") == 1 and len(checked.all("svg")) > 5
    assert all(
        svg.get("role") == "img" and (svg.get("aria-label") or "").strip() for svg in checked.all("svg")
    )
    assert all(audio.get("aria-label") for audio in checked.all("audio"))
    # What scrolls sideways can be scrolled with the keyboard, and has a name
    assert all(
        div.get("tabindex") == "0" and div.get("aria-label")
        for div in checked.all("div")
        if div.get("class") == "wide"
    )
    assert any(meta.get("name") == "viewport" for meta in checked.all("meta"))
    assert len(html) < 2_000_000


def test_the_example_in_the_repository_is_small_and_self_contained():
    path = Path(__file__).resolve().parents[2] / "recipes" / "librispeech" / "results" / "demo_report.html"
    checked = Checker(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 1_500_000 and checked.problems == []
    assert all(address.startswith(("data:", "#")) for address in checked.addresses)
    assert len(checked.all("audio")) > 5 and len(checked.all("svg")) > 5
    assert not re.search("/(tmp|home|root|work|mnt)/", path.read_text(encoding="utf-8"))


def test_the_page_shows_what_the_runs_hold(page):
    html = page.read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<style.*?</style>|<wbr>", "", html)))
    assert "A &amp; B" in html and "&lt;b&gt;x&lt;/b&gt;" in html and "<b>x</b>" not in html
    assert "50.92 ± 5.6" in text and "26.52 ± 4." in text and "-24.40 (" in text and "\u25bc better" in text
    assert "&lt; 0.001, &lt; 0.001" in text
    assert "hmamba has a WER of 26.52% on test-other (beam) where conmamba has 50.92%" in text
    assert "the difference is significant. It is faster in these runs." in text
    checked = Checker(html)
    assert len(checked.all("article")) == WORST
    # Each of the worst ones has its recording, and so have the two spectrograms.
    assert len(checked.all("audio")) == WORST + 2 <= CLIPS + 2
    worst = max(align(*read_trn(OUTPUTS / "beam")), key=lambda item: item.errors)
    assert worst.id in text or worst.errors < 6
    assert "against a forced alignment of 3 utterances" in text and "phones, 20 ms" in text
    assert "python train.py" in text and "0123456789abcdef" in text and "torch 2.11.0" in text
    assert "Left out" not in text


def test_words_are_marked_as_in_the_alignment(page):
    """The first of the worst utterances, both runs: words are substituted, deleted and inserted as in the
    alignment."""
    article = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), flags=re.DOTALL).group()
    key = re.search(r"<h4>(.*?)</h4>", article).group(1)
    for search, paragraph in zip(
        ("greedy", "beam"), re.findall(r"<p>.*?</p>", article, flags=re.DOTALL), strict=True
    ):
        pairs = next(item.pairs for item in align(*read_trn(OUTPUTS / search)) if item.id == key)
        marked = [paragraph.count(f'title="{word}"') for word in ("substituted", "deleted", "inserted")]
        assert marked == [
            sum(None not in pair and pair[0] != pair[1] for pair in pairs),
            sum(pair[1] is None for pair in pairs),
            sum(pair[0] is None for pair in pairs),
        ]


def test_what_a_run_lacks_is_named(make_run, tmp_path, corpus):
    whole, bare = make_run("whole", "greedy"), make_run("bare", "beam")
    shutil.rmtree(bare / "test")
    (bare / "train_log.jsonl").unlink()
    for run in (whole, bare):
        shutil.rmtree(run / "manifests")
    output = tmp_path / "page.html"
    assert cli.main(["report", str(whole), str(bare), "-o", str(output)]) == 0
    html = output.read_text(encoding="utf-8")
    notes = html[html.index("Left out") :]
    assert "bare, test-other, beam: no transcripts" in notes and "bare: no training curve" in notes
    assert notes.count("test-other: recordings are not where they were") == 1
    assert "<audio" not in html and "cannot be tested" in html


def section(page: Path, name: str) -> str:
    """Its text, with a line for each row of a table."""
    html = page.read_text(encoding="utf-8")
    part = html[html.index(f'<section id="{name}"') :]
    part = part[: part.index("</section>")].replace("\n", " ").replace("<wbr>", "").replace("</tr>", "\n")
    rows = re.sub(r"<[^>]*>", " ", part)
    return unescape(re.sub(r" +", " ", rows))


def test_claims_are_judged_by_the_runs(page):
    text = section(page, "claims")
    (wer,) = re.findall("hmamba has the same WER as conmamba, or a lower one (.*)", text)
    assert "\u2713 supported" in wer and "WER 50.92% \u2192 26.52%, difference -24.40 (" in wer
    assert "points on test-other, beam; +2.55 is allowed" in wer
    (faster,) = re.findall("hmamba is faster than conmamba (.*)", text)
    assert (
        "\u2713 supported" in faster
        and "RTF 0.02 \u2192 0.01 (0.50 times) with beam, batch 1: faster" in faster
    )
    assert "RTF 0.02 (0.018 to 0.022) \u2192 0.01 (0.009 to 0.011), faster" in faster
    assert re.search("Fewer errors than with a fixed stride – not measured needs a model with a fixed", text)
    (phones,) = re.findall("hmamba puts its boundaries at phones (.*)", text)
    assert "F1 " in phones and "The rules" in text


def test_speed_stands_against_length_and_by_run(page):
    text = section(page, "speed")
    assert "hmamba beam 0.01 (0.009 to 0.011) 0.01 (0.009 to 0.011) batch 8 100 10 (9 to 11)" in text
    assert "with random weights on one utterance: fp32, GPU 9, torch 2" in text
    assert (
        "ConMamba 5 0.5 50 2.00 (1.50 to 2.50)" in text and "Conformer 1200 skipped: may take 99 GiB" in text
    )


def test_operations_are_those_of_the_results_or_counted_here(make_run, tmp_path, repo):
    """Results of an earlier version do not state them, and a model that was removed cannot be counted."""
    folder = repo / "recipes" / "librispeech" / "results"
    (old,) = load_results([folder / "conmamba_demo.1234.results.json"])
    (removed,) = load_results([folder / "router_an4.1234.results.json"])
    runs = [
        make_run("new", "beam"),
        make_run("old", "beam", hparams=old.hparams, operations=None),
        make_run("removed", "beam", hparams=removed.hparams, operations=None),
    ]
    output = tmp_path / "page.html"
    assert cli.main(["report", *map(str, runs), "-o", str(output)]) == 0
    text = section(output, "speed")
    assert "0.123 frontend 0.1, encoder 0.023" in text and "0.315 frontend 0.0337, encoder 0.254" in text
    assert "removed: no count of operations (hmamba_asr.modules.chunking.DynamicChunker" in section(
        output, "notes"
    )
    assert section(output, "wer").count("The code no longer has this model.") == 1


def test_a_file_of_another_kind_is_refused(make_run, tmp_path, capsys):
    run, file = make_run("a", "beam"), tmp_path / "speed.json"
    for content, message in (
        (json.dumps(speed_of(1.0)), "holds no figures of"),
        ("{", "is not readable as JSON"),
    ):
        file.write_text(content)
        assert (
            cli.main(["report", str(run), "-o", str(tmp_path / "page.html"), "--efficiency", str(file)]) == 2
        )
        assert f"error: {file} {message}" in capsys.readouterr().err
    file.unlink()
    assert cli.main(["report", str(run), "-o", str(tmp_path / "page.html"), "--efficiency", str(file)]) == 2
    assert "write it with scripts/benchmarks/efficiency.py --json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"), [(["gone"], "there is no .*results.json"), (["a", "a"], "named twice")]
)
def test_bad_input_is_one_sentence(make_run, tmp_path, capsys, names, message):
    make_run("a", "beam")
    output = tmp_path / "page.html"
    assert cli.main(["report", *(str(tmp_path / name) for name in names), "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error and not output.exists()


def test_runs_of_one_yaml_are_told_apart(make_run, tmp_path):
    folders = []
    for number, changes in enumerate(({}, {"seed": 2}, {"seed": 2}, {"overrides": {"size": "3"}})):
        run = make_run(f"run{number}", "beam", **changes)
        results = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**results, "name": "same"}))
        folders.append(str(run))
    output = tmp_path / "page.html"
    assert cli.main(["report", *folders, "-o", str(output)]) == 0
    labels = re.findall(r"<summary>(same.*?)</summary>", output.read_text(encoding="utf-8"))
    assert labels == ["same, seed 1234", "same, seed 2, run1", "same, seed 2, run2", "same --size 3"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Waits until every picture and recording is loaded or has failed, and tells whoever holds the page's frame.
# The page's own policy lets no script run, so that this is done to a copy without it.
PROBE = """\
<script>
// Whether a figure has an extent, and its lines and pictures have one too.
const drawn = (svg) => svg.getBoundingClientRect().height > 50 &&
  [...svg.querySelectorAll("path, image")].some((x) => x.getBBox().width > 50);
const ink = (element, key = "fill") => getComputedStyle(element)[key];
onload = async () => {
  const media = [...document.querySelectorAll("audio")];
  const settled = (element) => new Promise((done) => {
    if (element.readyState >= 1 || element.error) return done();
    for (const name of ["loadedmetadata", "error"]) element.addEventListener(name, done, {once: true});
    element.load();
  });
  await Promise.all(media.map(settled));
  parent.postMessage(JSON.stringify({
    pictures: document.querySelectorAll("svg").length,
    broken: [...document.querySelectorAll("svg")].filter((x) => !drawn(x)).map((x) => x.ariaLabel),
    tips: document.querySelectorAll("svg title").length,
    folded: [...document.querySelectorAll("details:not(.long) > :not(summary)")]
      .filter((x) => !x.matches(".long") && !x.checkVisibility()).length,
    navigation: document.querySelector("nav").checkVisibility(),
    ink: ink(document.querySelector("svg text")), background: ink(document.body, "backgroundColor"),
    recordings: media.length,
    silent: media.filter((x) => x.error || !(x.duration > 0)).map((x) => x.ariaLabel),
    width: innerWidth, needed: document.documentElement.scrollWidth,
  }), "*");
};
</script></body>"""
FRAME = """\
<!doctype html><iframe src="{name}" style="width: {width}px; height: 900px"></iframe><pre id="found"></pre>
<script>onmessage = (event) => document.getElementById("found").textContent = event.data</script>"""


@pytest.fixture
def chromium(tmp_path):
    """Opens a file in headless Chromium; gives the finished process and the addresses that the page asked
    for."""
    if not CHROMIUM:
        pytest.skip("no Chromium")
    log = tmp_path / "net.json"
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={log}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]

    def run(path: Path, *more: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        log.unlink(missing_ok=True)
        command = [CHROMIUM, *options, *more, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
        # The browser's own requests have no origin.
        started = [event for event in events if event.get("initiator", "not an origin") != "not an origin"]
        return done, [event["url"] for event in started if event["url"].startswith(("http", "ws"))]

    return run


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_opens_in_chromium_without_errors_or_requests(page, tmp_path, chromium, width):
    picture, size = tmp_path / "page.png", f"--window-size={width},900"
    done, requests = chromium(page, size, f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr and requests == []
    assert picture.stat().st_size > 10_000
    # A page that asks would be seen, and the policy in ours would stop it.
    asking = page.read_text().replace("</main>", '<img src="http://example.invalid/x.png" alt="x"></main>')
    other = page.with_name("asking.html")
    other.write_text(asking)
    done, requests = chromium(other, size, f"--screenshot={picture}")
    assert "CONSOLE" in done.stderr and "Content Security Policy" in done.stderr and requests == []
    other.write_text(asking.replace("Content-Security-Policy", "no-policy"))
    _, requests = chromium(other, size, f"--screenshot={picture}")
    assert set(requests) == {"http://example.invalid/x.png"}


@pytest.fixture
def probe(page, chromium):
    """Opens HTML in a frame of Chromium with a width and a colour scheme, and tells what is there."""

    def probe(html: str, width: int, *, dark: bool = False) -> dict:
        copy, frame = page.with_name("copy.html"), page.with_name("frame.html")
        copy.write_text(
            html.replace("Content-Security-Policy", "no-policy").replace("</body>", PROBE), encoding="utf-8"
        )
        frame.write_text(FRAME.format(name=copy.name, width=width), encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={int(not dark)}"
        done, _ = chromium(frame, "--window-size=1400,1000", "--dump-dom", "--timeout=20000", scheme)
        return json.loads(
            unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL).group(1))
        )

    return probe


@pytest.mark.parametrize("width", [1280, 420, 380])
def test_pictures_and_recordings_load_and_the_page_fits_the_screen(page, probe, width):
    html = page.read_text(encoding="utf-8")
    found = probe(html, width)
    assert found["broken"] == [] and found["silent"] == []
    assert found["pictures"] > 5 and found["recordings"] == WORST + 2
    assert found["needed"] <= found["width"] <= width  # tables scroll in themselves, the page does not
    # What is broken would be seen.
    spoilt = re.sub(r"(?s)(<svg [^>]*>).*?</svg>", r"\1</svg>", html, count=1)
    spoilt = spoilt.replace('src="data:audio/mpeg;base64,', 'src="data:audio/mpeg;base64,AAAA====', 1)
    spoilt = spoilt.replace("<main>", '<main><div style="width: 3000px">x</div>')
    found = probe(spoilt, width)
    assert len(found["broken"]) == len(found["silent"]) == 1 and found["needed"] >= 3000


def test_the_figures_have_the_colours_of_the_page_and_hover_texts(page, probe):
    html = page.read_text(encoding="utf-8")
    light, dark = probe(html, 800), probe(html, 800, dark=True)
    assert light["ink"] == "rgb(31, 35, 41)" and light["background"] == "rgb(255, 255, 255)"
    assert dark["ink"] == "rgb(227, 230, 234)" and dark["background"] == "rgb(20, 23, 27)"
    assert light["tips"] > 20
    assert "<title>conmamba: validation WER 25 after epoch 2</title>" in html
    # Every colour of a figure that has a meaning is the style sheet's.
    figures = " ".join(re.findall(r"(?s)<svg .*?</svg>", html))
    assert "var(--c0)" in figures and "#0b66c3" not in figures and "DejaVu" not in figures
    assert "#000000" not in re.sub(r"data:[^\"]*", "", figures)


def test_print_shows_what_is_folded_but_whole_yamls(page, probe):
    html = page.read_text(encoding="utf-8")
    assert probe(html, 800)["folded"] > 5 and probe(html, 800)["navigation"]
    printed = html.replace("@media print", "@media all").replace("@media screen and", "@media none and")
    assert printed.count("@media all") == 1
    found = probe(printed, 800, dark=True)
    assert found["folded"] == 0 and not found["navigation"] and found["background"] == "rgb(255, 255, 255)"


def test_seeds_are_one_row_and_one_line(make_run, tmp_path):
    """Two models with two seeds each: means in the table, single runs below it, claims by pairs of seeds."""
    folders = []
    for name, search in (("conmamba", "greedy"), ("hmamba", "beam")):
        for seed in (1, 2):
            run = make_run(f"{name}_{seed}", search, seed=seed)
            results = json.loads((run / "results.json").read_text())
            results["training"]["epochs"] = 70 if name == "conmamba" else 18
            (run / "results.json").write_text(json.dumps({**results, "name": name}))
            folders.append(str(run))
    output = tmp_path / "page.html"
    assert cli.main(["report", *folders, "-o", str(output)]) == 0
    html, text = output.read_text(encoding="utf-8"), section(output, "wer")
    assert "2 models, 4 runs." in html
    table, _ = text.split("All tests, run by run")
    assert re.search(r"hmamba 2 seeds \S+ 18 epochs against 70 epochs 26.52 ± 0.00 ▼ better", table)
    assert "for 2 of 2 pairs of seeds 18 14.1" in table and "seed 1" not in table
    assert re.search("hmamba, seed 2 conmamba, seed 2 test-other, beam 50.92 ± 5.6. 26.52 ± 4", text)
    assert re.search("hmamba, seed 1 26.52 ± 4", text)
    claims = section(output, "claims")
    (wer,) = re.findall("hmamba has the same WER as conmamba, or a lower one (.*)", claims)
    assert "18 epochs against 70 epochs" in wer and "supported holds for 2 of 2 pairs of seeds" in wer
    assert "hmamba: validation WER 25 after epoch 2 (mean of 2 seeds)" in html
    assert "The comparison is not fair: 18 epochs against 70 epochs." in html
    assert html.count('<article class="utterance">') == WORST and "hmamba, seed 2: " not in section(
        output, "split-1"
    )
