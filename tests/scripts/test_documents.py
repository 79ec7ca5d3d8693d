"""Shell scripts and documents parse, name what exists, and their commands are accepted."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from commands import COMMANDS, Refused, check_block, code_blocks, split_commands

ROOT = Path(__file__).resolve().parents[2]


RECIPES = ROOT / "recipes" / "librispeech"


SHELL = sorted(
    [
        *ROOT.glob("scripts/*.sh"),
        *ROOT.glob("recipes/**/*.sh"),
        *ROOT.glob("recipes/**/*.slurm"),
        ROOT / ".ci/run",
    ]
)


DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "TRAINING_SUMMARY.md",
    ROOT / "hparams" / "README.md",
    RECIPES / "README.md",
    ROOT / "scripts" / "benchmarks" / "README.md",
    ROOT / "tests" / "README.md",
]
PAGES = [*DOCUMENTS, RECIPES / "results" / "NOTES.md", ROOT / "CHANGELOG.md"]


PLACEHOLDER = re.compile(r"/X\.")


NAMED_FILE = re.compile(
    r"(?<![\w/.<])((?:hparams|scripts|recipes|tests|hmamba_asr)/[\w./-]*\w|train\.py|[A-Z_]{4,}\.md)(?![\w$<{*])"
)


def _named_files(text: str) -> set[str]:
    """Files and folders of the repository that ``text`` names: in commands, in prose and as links."""
    return {name for name in NAMED_FILE.findall(text) if not PLACEHOLDER.search(name)}


def _missing(text: str) -> set[str]:
    return {name for name in _named_files(text) if not (ROOT / name).exists()}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SHELL, ids=_name)
def test_shell_scripts_parse_stop_at_errors_and_are_explained(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert "set -euo pipefail" in lines or any(
        line.startswith('. "') and "setup.sh" in line for line in lines
    )


def test_a_full_disk_is_said_before_anything_is_installed(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    df = tmp_path / "bin" / "df"
    df.parent.mkdir()
    df.write_text(
        "#!/bin/sh\necho Filesystem 1048576-blocks Used Available Capacity Mounted on\necho /dev/x 9 9 3100 "
        "99% /\n"
    )
    df.chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/setup.sh"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{df.parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert re.fullmatch(
        rf"error: installing takes \d+ MB of disk in {re.escape(str(tmp_path))}, where 3100 MB are free; "
        r".*\n",
        done.stderr,
    )


@pytest.mark.parametrize("path", [*SHELL, *DOCUMENTS, *sorted(ROOT.glob("hparams/**/*.yaml"))], ids=_name)
def test_named_files_exist(path):
    # Kept results appear with the first measured row.
    assert _missing(path.read_text(encoding="utf-8")) <= {"recipes/librispeech/results"}


@pytest.mark.parametrize(
    "text", ["`hparams/gone.yaml`", "python scripts/gone.py", "(tests/ops/test_gone.py)", "see GONE_ABOUT.md"]
)
def test_a_file_that_is_not_there_is_seen(text):
    assert _missing(text)


def test_every_yaml_and_recipe_is_in_the_documents():
    readmes = [(folder / "README.md").read_text(encoding="utf-8") for folder in (ROOT, ROOT / "hparams")]
    assert [path.name for path in ROOT.glob("hparams/*.yaml") if _name(path) not in readmes[0]] == []
    others = [*ROOT.glob("hparams/lm/*.yaml"), *ROOT.glob("hparams/variants/*.yaml")]
    names = [path.relative_to(ROOT / "hparams").as_posix() for path in others]
    assert [name for name in names if name not in readmes[1]] == []
    recipes = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert [
        path.name
        for path in RECIPES.glob("*")
        if path.suffix in (".sh", ".slurm") and path.name not in recipes
    ] == []


def _anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken_links(document: Path) -> list[str]:
    """Relative links and pictures that lead to no file, or to no heading of it."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    broken = []
    for link in found:
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        missing = not target.exists() or (anchor and anchor not in _anchors(target))
        if missing and "://" not in link:
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_and_pictures_of_the_documents_exist(path):
    assert _broken_links(path) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "PAGE.md"
    page.write_text(
        "# A page: two\n[a](PAGE.md#a-page-two) [b](gone.md) [c](#gone) ![d](gone.png)\n"
        '<img src="gone.svg"> [e](https://example.org/x)\n',
        encoding="utf-8",
    )
    assert _broken_links(page) == ["gone.md", "#gone", "gone.png", "gone.svg"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_code_blocks_of_the_documents_work(path):
    """Commands are parsed by what they call, Python is compiled with its imports, YAML is parsed."""
    blocks = list(code_blocks(path.read_text(encoding="utf-8")))
    assert blocks
    for language, content in blocks:
        try:
            check_block(language, content)
        except Refused as refusal:
            pytest.fail(f"{path.name}: {refusal}\n\n{content}")


def test_checking_a_script_leaves_the_environment_alone():
    """inspect_kernels.py asks for kernels that Triton compiles; other tests run them in its interpreter."""
    before = dict(os.environ)
    check_block("bash", "python scripts/benchmarks/inspect_kernels.py --capability 86 --brief")
    assert dict(os.environ) == before


def test_the_readme_holds_commands_of_each_kind():
    commands = [
        words
        for language, content in code_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
        if language in COMMANDS
        for words in split_commands(content)
    ]
    assert len(commands) >= 10
    assert {"hmamba-asr", "torchrun", "python", "bash"} <= {words[0] for words in commands}


GOOD = [
    "hmamba-asr download an4 --dest DIR",
    "$ hmamba-asr transcribe RUN a.flac --search greedy > a.txt",
    "python train.py hparams/conmamba_demo.yaml --data_folder DIR --seed 7  # a comment",
    "B='hparams/conmamba_mini.yaml --variant hparams/variants/hmamba.yaml'\npython train.py $B --seed 4",
    "for seed in 1 2; do python train.py hparams/conmamba_demo.yaml --data_folder DIR --seed $seed; done",
    "OMP_NUM_THREADS=1 torchrun --nproc-per-node 4 train.py \\\n  hparams/conmamba_mini.yaml --data_folder D",
    "python train.py RUN/hyperparams.yaml --test_only --lm_folder LM/export",
    'python train.py hparams/conmamba_demo.yaml --data_folder DIR --encoder "{causal: true}"',
    "python recipes/librispeech/train_lm.py hparams/lm/transformer_lm.yaml --tokenizer_file FILE",
    "python scripts/benchmarks/profile_training.py hparams/conmamba_mini.yaml --data_folder DIR --steps 12",
    "python scripts/benchmarks/chunking.py --device cpu --splits 8+4",
    "python -m pytest -m 'not slow' tests/ops && bash scripts/setup.sh; . .venv/bin/activate",
    'pip install -e ".[report,plots]"',
    "git clone https://example.org/x && cd x",
]


@pytest.mark.parametrize("command", GOOD)
def test_a_good_command_is_accepted(command):
    assert check_block("", command) >= 1


@pytest.mark.parametrize(
    "command, complaint",
    [
        ("hmamba-asr transcrib RUN a.flac", "invalid choice"),
        ("hmamba-asr transcribe RUN a.flac --serch greedy", "--serch"),
        ("hmamba-asr download train-clean-101 --dest DIR", "no split train-clean-101"),
        ("hmamba-asr efficiency", "RUN"),
        ("python train.py hparams/gone.yaml --data_folder DIR", "no YAML hparams/gone.yaml"),
        ("python train.py hparams/conmamba_mini.yaml --sed 7", "--sed is no key"),
        ("python train.py hparams/conmamba_mini.yaml --variant hparams/variants/gone.yaml", "no YAML"),
        ("python train.py hparams/hmamba_demo.yaml --variant hparams/variants/hmamba.yaml", "hmamba"),
        ('python train.py hparams/conmamba_demo.yaml --data_folder D --encoder "{causl: true}"', "causl"),
        ("python train.py RUN/hyperparams.yaml --lm_foldr LM", "no YAML takes it"),
        ("torchrun --nprocs 4 train.py hparams/conmamba_mini.yaml", "--nprocs"),
        ("torchrun --nproc-per-node 4 train.py hparams/conmamba_mini.yaml --sed 7", "--sed is no key"),
        ("python recipes/librispeech/train_lm.py hparams/lm/gone.yaml", "no YAML"),
        ("python recipes/librispeech/train_ngram.py --order 4", "--tokenizer_file"),
        ("python scripts/summarize.py --chek", "--chek"),
        ("python scripts/plot_tradeoff.py speed --split", "--split"),
        ("python scripts/gone.py", "no scripts/gone.py"),
        ("python scripts/benchmarks/chunking.py --splits 8-4", "8-4"),
        (
            "python scripts/benchmarks/profile_training.py hparams/conmamba_mini.yaml --sed 7",
            "--sed is no key",
        ),
        ("python -m gone", "no module gone"),
        ("python -c 'import hmamba_asr.gone'", "hmamba_asr.gone"),
        ("pytest tests/gone", "no tests/gone"),
        ("python -m pytest -m slo", "no marker slo"),
        ("scripts/gone.sh DIR", "no scripts/gone.sh"),
        ("scripts/constraints.txt", "not executable"),
        ("bash scripts/gone.sh", "no scripts/gone.sh"),
        ("sbatch --nodes=2 recipes/librispeech/gone.slurm", "gone.slurm"),
        ('pip install -e ".[reports]"', "no extra reports"),
        ("sudo make", "no rule for the program 'sudo'"),
        ("hmamba-asr report 'RUN", "quotation"),
    ],
)
def test_a_bad_command_is_refused(command, complaint):
    with pytest.raises(Refused, match=re.escape(complaint)):
        check_block("", f"bash scripts/setup.sh\n{command}\n")


@pytest.mark.parametrize(
    "language, content, complaint",
    [
        ("python", "import hmamba_asr\nhmamba_asr.lod('x')", "lod"),
        ("python", "from hmamba_asr.models.outputs import Gone", "Gone"),
        ("python", "import hmamba_asr.gone", "gone"),
        ("python", "import hmamba_asr\nhmamba_asr.load('RUN', serch='greedy')", "serch"),
        ("python", "from hmamba_asr import load\nload()", "missing"),
        ("python", "print(", "not Python"),
        ("yaml", "a: [1", "not YAML"),
        ("yaml", "a: !new:hmamba_asr.models.conmamba.Gone", "no hmamba_asr.models.conmamba.Gone"),
        ("json", "{", "Expecting"),
        ("pyton", "x", "no rule for a block of 'pyton'"),
    ],
)
def test_a_bad_block_is_refused(language, content, complaint):
    ((found, text),) = code_blocks(
        f"- an item\n\n  ```{language}\n  " + content.replace("\n", "\n  ") + "\n  ```\n"
    )
    with pytest.raises(Refused, match=re.escape(complaint)):
        check_block(found, text)


def test_the_example_of_an_encoder_runs():
    """hparams/README.md shows how to add an encoder: it has the contract's shapes and lengths."""
    readme = (ROOT / "hparams" / "README.md").read_text(encoding="utf-8")
    (code,) = [
        b
        for b in re.findall(r"^```python\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
        if "EncoderOutput" in b
    ]

    scope: dict = {}
    exec(compile(code, "hparams/README.md", "exec"), scope)
    (name,) = [node.name for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]
    encoder = scope[name](num_layers=2, d_model=8, dropout=0.0).eval()
    x, lengths = torch.randn(2, 7, 8), torch.tensor([7, 4])
    together = encoder(x, lengths)
    assert together.states.shape == (2, 7, 8) and together.lengths.tolist() == [7, 4]
    alone = encoder(x[1:, :4], lengths[1:])
    torch.testing.assert_close(together.states[1, :4], alone.states[0], rtol=0, atol=1e-5)
    assert not together.states[1, 4:].any()


def _requirements() -> list[str]:
    """Direct dependencies of pyproject.toml, those of the `cuda` extra apart: it is built for the machine's
    own CUDA."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = dict(re.findall(r"^(\w+) = (\[.*?\])", text, flags=re.DOTALL | re.MULTILINE))
    wanted = [
        item for name in ("dependencies", "ngram", "demo", "dev") for item in ast.literal_eval(lists[name])
    ]
    return [re.split(r"[<>=!~\[ ;]", item)[0] for item in wanted]


def test_every_direct_dependency_is_pinned():
    text = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-") for line in lines if re.match(r"[\w.-]+==\d", line)
    }
    assert len(_requirements()) >= 10
    assert [name for name in _requirements() if name.lower().replace("_", "-") not in pinned] == []
    assert [line for line in lines if line and "==" not in line] == []
