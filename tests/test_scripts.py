"""Scripts, recipes and documents: they parse, name what exists, and act as they say when data or time run
out."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hmamba_asr import cli
from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import top_level_nodes
from hmamba_asr.data import librispeech
from hmamba_asr.data.download import ARCHIVES
from hmamba_asr.ops.dispatch import unavailable_reason

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes" / "librispeech"
SHELL = sorted(
    [
        *ROOT.glob("scripts/*.sh"),
        *ROOT.glob("recipes/**/*.sh"),
        *ROOT.glob("recipes/**/*.slurm"),
        ROOT / ".ci/run",
    ]
)
DOCUMENTS = [ROOT / "README.md", RECIPES / "README.md", ROOT / "TRAINING_SUMMARY.md"]
PLACEHOLDER = re.compile(r"/X\.")
NAMED_FILE = re.compile(
    r"(?<![\w/.<])((?:hparams|scripts|recipes|tests|hmamba_asr)/[\w./-]*\w|train\.py|[A-Z_]{4,}\.md)"
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
        "#!/bin/sh\necho Filesystem 1048576-blocks Used Available Capacity Mounted on\necho /dev/x 9 9 3100 99% /\n"
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
        rf"error: installing takes \d+ MB of disk in {re.escape(str(tmp_path))}, where 3100 MB are free; .*\n",
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
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in ROOT.glob("hparams/*.yaml") if _name(path) not in readme] == []
    recipes = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert [
        path.name
        for path in RECIPES.glob("*")
        if path.suffix in (".sh", ".slurm") and path.name not in recipes
    ] == []


def test_commands_in_the_documents_are_accepted(monkeypatch):
    """Each `hmamba-asr ...` line of a code block parses, with splits that can be downloaded."""
    called = []
    monkeypatch.setattr(cli.download, "download", lambda **options: called.append(options["splits"]) or {})
    monkeypatch.setattr(
        librispeech, "prepare_manifests", lambda **options: called.append(options["splits"]) or {}
    )
    monkeypatch.setattr(cli.demo, "run", lambda args: called.append([]) or 0)
    for name in ("transcribe", "tune", "compare", "boundaries", "efficiency", "report"):
        monkeypatch.setattr(getattr(cli, name), "run", lambda args: 0)
    for path in DOCUMENTS:
        for block in re.findall(
            r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        ):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("hmamba-asr "):
                    assert cli.main(line.split("#")[0].split()[1:]) == 0, line
                    if line.startswith("hmamba-asr download "):
                        assert set(called[-1]) <= ARCHIVES.keys(), line
    assert len(called) >= 2


def test_the_readmes_encoder_example_runs():
    """The README shows how to add an encoder: the example has the contract's shapes and lengths."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [
        b
        for b in re.findall(r"^```python\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
        if "EncoderOutput" in b
    ]
    import torch

    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
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


# ---- recipes, with stand-ins for what this machine does not have ------------------------------------------------------


def _stand_in(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


SETTINGS = {"YAML", "GPUS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SEEDS", "VARIANTS", "JOBS", "DRY_RUN"}


def _run_script(script: Path, *arguments: object, path: Path, cwd: Path = ROOT, **environment: str):
    inherited = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    environment = {**inherited, "PATH": f"{path}:{os.environ['PATH']}", **environment}
    command = ["bash", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=30)


@pytest.fixture
def corpus(tmp_path) -> Path:
    for split in ("train-clean-100", "dev-clean", "test-clean", "test-other"):
        (tmp_path / "data" / "LibriSpeech" / split).mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def stand_ins(tmp_path) -> Path:
    _stand_in(tmp_path / "bin", "torchrun", 'printf "%s\\n" torchrun "$@"')
    return tmp_path / "bin"


def test_the_4gpu_recipe_starts_torchrun_with_the_users_overrides(corpus, stand_ins):
    done = _run_script(
        RECIPES / "train_baseline_4gpu.sh", "data", "--seed", "7 8", path=stand_ins, cwd=corpus.parent
    )
    assert done.returncode == 0, done.stderr
    expected = [
        "torchrun",
        "--standalone",
        "--nproc-per-node",
        "4",
        "train.py",
        "hparams/conmamba_small_ls100.yaml",
    ]
    assert done.stdout.splitlines() == [*expected, "--data_folder", str(corpus), "--seed", "7 8"]


def test_the_4gpu_recipe_names_a_missing_split(corpus, stand_ins):
    (corpus / "LibriSpeech" / "dev-clean").rmdir()
    done = _run_script(RECIPES / "train_baseline_4gpu.sh", corpus, path=stand_ins)
    assert (
        done.returncode == 2 and "has no dev-clean; get it with: hmamba-asr download dev-clean" in done.stderr
    )
    assert "torchrun" not in done.stdout
    assert "give the folder" in _run_script(RECIPES / "train_baseline_4gpu.sh", path=stand_ins).stderr


def test_the_comparison_trains_both_yamls_alike(corpus, stand_ins):
    _stand_in(stand_ins, "python", 'printf "%s\\n" python "$@"')
    done = _run_script(RECIPES / "compare_encoders.sh", corpus, "--seed", "7", path=stand_ins)
    assert done.returncode == 0, done.stderr
    first, second, table = re.split(r"^(?=torchrun$|python$)", done.stdout, flags=re.MULTILINE)[1:]
    assert first.replace("conmamba", "conformer") == second != first
    assert "hparams/conmamba_small_ls100.yaml" in first and first.endswith("--seed\n7\n")
    assert table.split()[:3] == ["python", "scripts/summarize.py", "results"]


def _in_a_checkout_of_its_own(recipe: str, corpus: Path) -> Path:
    """A copy of a recipe that writes results into its checkout."""
    script = corpus.parent / "recipes" / "librispeech" / recipe
    script.parent.mkdir(parents=True)
    script.write_text((RECIPES / recipe).read_text())
    return script


def test_the_chunking_comparison_runs_what_is_not_finished_and_goes_on_after_a_failure(corpus, stand_ins):
    script = _in_a_checkout_of_its_own("compare_chunking.sh", corpus)
    # One write a call: two of them run at once.
    _stand_in(stand_ins, "python", 'echo "$*" >> calls.txt; case "$*" in *hmamba_n2/7*) exit 3;; esac')
    _stand_in(stand_ins, "nvidia-smi", "echo GPU 0")
    finished = corpus.parent / "results" / "chunking_an4" / "conmamba" / "7" / "results.json"
    finished.parent.mkdir(parents=True)
    finished.touch()
    done = _run_script(script, "an4", corpus, "--precision", "fp32", path=stand_ins, SEEDS="7", JOBS="2")
    assert done.returncode != 0 and done.stderr.count("error: ") == 1
    assert (
        "results/chunking_an4/hmamba_n2/7 ended with code 3; see results/chunking_an4/hmamba_n2/7/output.txt"
        in done.stderr
    )
    assert done.stdout.count("is finished") == 11
    calls = (corpus.parent / "calls.txt").read_text()
    assert calls.count("train.py hparams/conmamba_an4.yaml --variant ") == 11
    assert calls.count("train.py") == calls.count(" --precision fp32 ") == 11
    assert " --chunker {target_ratio: 1.0} " in calls


def test_the_chunking_comparisons_overrides_are_keys_of_their_yamls(corpus, stand_ins):
    _stand_in(stand_ins, "nvidia-smi", "echo GPU 0")
    for name, count in (("an4", 12), ("mini", 20)):
        done = _run_script(
            RECIPES / "compare_chunking.sh", name, corpus, path=stand_ins, SEEDS="7", DRY_RUN="1"
        )
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and len(lines) == count, done.stderr
        for line in lines:
            _, _, base, *words = shlex.split(line)
            options = {}
            for word in words:
                if word.startswith("--"):
                    values = options[word.removeprefix("--")] = []
                else:
                    values.append(word)
            text = compose(ROOT / base, [ROOT / variant for variant in options.pop("variant", [])])
            nodes = top_level_nodes(text)
            for key, (value,) in options.items():
                for inner in re.findall(r"\{(\w+): ", value):
                    assert inner in [name.value for name, _ in nodes[key].value], line
                assert key in nodes, line


def test_the_chunking_comparison_hands_overrides_on_as_they_are(corpus, stand_ins):
    words = ("--inner", "{num_layers: 6, d_state: 8}", "--output_note", "it's * 2")
    only = {"SEEDS": "7", "VARIANTS": "hmamba_n3"}
    done = _run_script(
        RECIPES / "compare_chunking.sh", "an4", corpus, *words, path=stand_ins, DRY_RUN="1", **only
    )
    assert done.returncode == 0, done.stderr
    typed = shlex.split(done.stdout)
    assert typed[:4] == ["python", "train.py", "hparams/conmamba_an4.yaml", "--variant"]
    assert typed[4:6] == ["hparams/variants/hmamba.yaml", "hparams/variants/n3.yaml"]
    assert typed[-4:] == [*words]


def test_the_chunking_comparison_uses_the_gpus_it_is_given(corpus, stand_ins):
    script = _in_a_checkout_of_its_own("compare_chunking.sh", corpus)
    _stand_in(stand_ins, "python", 'echo "gpu <${CUDA_VISIBLE_DEVICES-none}>"')
    settings = {"SEEDS": "7", "VARIANTS": "conmamba"}
    output = corpus.parent / "results" / "chunking_an4" / "conmamba" / "7" / "output.txt"
    for listing, given, expected in (
        ("echo GPU 0", {"CUDA_VISIBLE_DEVICES": "5,6"}, "5"),
        ("exit 9", {}, "none"),
        ("echo GPU 0", {}, "0"),
    ):
        _stand_in(stand_ins, "nvidia-smi", listing)
        done = _run_script(script, "an4", corpus, path=stand_ins, **settings, **given)
        assert done.returncode == 0, done.stderr
        assert output.read_text() == f"gpu <{expected}>\n"


def test_the_chunking_comparison_names_a_variant_that_is_not_there(corpus, stand_ins):
    done = _run_script(
        RECIPES / "compare_chunking.sh", "an4", corpus, path=stand_ins, VARIANTS="conmamba hmamba_n5"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: VARIANTS names 'hmamba_n5'; there are: conmamba hmamba_n1 ")


@pytest.mark.parametrize(
    ("exit_code", "state", "requeued"),
    [(143, "RUNNING", True), (143, "COMPLETING", False), (0, "RUNNING", False), (2, "RUNNING", False)],
)
def test_the_slurm_recipe_ranks_its_tasks_and_requeues_what_was_saved(
    tmp_path, corpus, exit_code, state, requeued
):
    bin_folder = tmp_path / "bin"
    _stand_in(
        bin_folder,
        "srun",
        """shift  # --kill-on-bad-exit=1
        worst=0
        for task in 0 1 2 3; do
          SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" || { code=$?; [ $code -gt $worst ] && worst=$code; }
        done
        exit $worst""",
    )
    _stand_in(
        bin_folder,
        "python",
        f'echo "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $*"\n[ "$RANK" != 1 ] || exit {exit_code}',
    )
    _stand_in(
        bin_folder,
        "scontrol",
        f"""case "$1 $2" in
          "show hostnames") printf 'n1\\nn2\\n' ;;
          "show job") echo "JobId=$3 JobState={state} Reason=None" ;;
          "requeue 4711") touch {tmp_path}/requeued ;;
          *) exit 1 ;;
        esac""",
    )
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "4",
    }
    done = _run_script(RECIPES / "train_baseline.slurm", corpus, "--seed", "7", path=bin_folder, **slurm)
    assert done.returncode == exit_code, done.stderr
    command = f"train.py hparams/conmamba_small_ls100.yaml --data_folder {corpus} --seed 7"
    assert done.stdout.splitlines() == [f"{rank}/4 {rank % 2} n1:24711 {command}" for rank in range(4)]
    assert (tmp_path / "requeued").exists() is requeued


# ---- benchmarks ---------------------------------------------------------------------------------------------------------


def test_scan_benchmark_times_what_it_checked(monkeypatch, capsys):
    import benchmark_scan
    import torch

    monkeypatch.setattr(benchmark_scan, "CPU_SHAPE", (2, 60, 6, 3))
    figures = benchmark_scan.on_cpu(torch.device("cpu"), pairs=2)
    assert figures["cpu_fwd_vs_loop"] > 0 and figures["cpu_fwd_bwd_vs_loop"] > 0
    assert "time loop" in capsys.readouterr().out

    right = benchmark_scan.loop_scan
    monkeypatch.setattr(benchmark_scan, "loop_scan", lambda *inputs: right(*inputs) * 1.001)
    with pytest.raises(SystemExit, match="time loop's output is off by .* not timed"):
        benchmark_scan.on_cpu(torch.device("cpu"), pairs=1)


def test_encoder_benchmark_runs_and_writes_its_figures(monkeypatch, tmp_path):
    import benchmark_encoder

    file = tmp_path / "figures.json"
    options = ["--device", "cpu", "--seconds", "2", "--pairs", "1", "--train", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["benchmark_encoder.py", *options])
    benchmark_encoder.main()
    (figure,) = json.loads(file.read_text(encoding="utf-8"))["lengths"].values()
    assert (
        figure["batch"] == 1 and figure["encoder_vs_conformer"] > 0 and figure["ours_frames_per_second"] > 0
    )


def test_frontend_benchmark_times_what_is_speechbrains(monkeypatch, tmp_path):
    import benchmark_frontend

    monkeypatch.setattr(benchmark_frontend, "FRAMES", 81)
    file = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["", "--device", "cpu", "--pairs", "1", "--json", str(file)])
    benchmark_frontend.main()
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert (
        figures["forward, float32"]["median"] > 0 and figures["forward and backward, bfloat16"]["median"] > 0
    )

    theirs = benchmark_frontend.SpeechBrains.forward
    monkeypatch.setattr(
        benchmark_frontend.SpeechBrains, "forward", lambda self, *x: (theirs(self, *x)[0] * 1.01, None)
    )
    with pytest.raises(SystemExit, match="the output is off by .* not timed"):
        benchmark_frontend.main()


def test_decoding_benchmark_checks_parity_and_writes_its_figures(monkeypatch, tmp_path):
    import benchmark_decoding

    small = {"VOCAB": 60, "TOKENS": 6, "SECONDS": 2}
    lm = {**benchmark_decoding.LM, "d_model": 16, "nhead": 2, "num_encoder_layers": 1, "d_ffn": 32}
    for name, value in {**small, "LM": lm}.items():
        monkeypatch.setattr(benchmark_decoding, name, value)
    file = tmp_path / "figures.json"
    monkeypatch.setattr(
        "sys.argv", ["", "--device", "cpu", "--pairs", "1", "--batch", "2", "--json", str(file)]
    )
    benchmark_decoding.main()
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["identical_fraction"] == 1.0
    assert figures["speedup_beam10"] > 0 and figures["speedup_beam10_lm"] > 0
    assert min(figures["searches"]["beam10_lm"]["seconds"].values()) > 0

    ours = benchmark_decoding.JointBeamSearcher.forward
    monkeypatch.setattr(
        benchmark_decoding.JointBeamSearcher,
        "forward",
        lambda self, *x: [*ours(self, *x)[:2], ours(self, *x)[2] + 0.01, None],
    )
    with pytest.raises(SystemExit, match="scores are off by .* not timed"):
        benchmark_decoding.main()


@pytest.mark.parametrize(("chunker", "ratio", "kept"), [("router", "2", 13), ("ctc", "2.5", 11)])
def test_chunking_benchmark_times_what_it_checked(monkeypatch, tmp_path, chunker, ratio, kept):
    import benchmark_chunking
    import benchmarking

    file = tmp_path / "figures.json"
    options = ["--device", "cpu", "--seconds", "1", "--splits", "8+4", "--forms", "chunks", "--pairs", "1"]
    options += ["--chunker", chunker, "--ratios", ratio]
    monkeypatch.setattr(benchmark_chunking, "SIZE", {"d_ffn": 32, "vocab_size": 20})
    monkeypatch.setattr("sys.argv", ["benchmark_chunking.py", *options, "--json", str(file)])
    benchmark_chunking.main()
    figures = json.loads(file.read_text(encoding="utf-8"))
    ((name, case),) = figures["cases"].items()
    assert f", N={ratio}, " in name and figures["chunker"] == chunker
    assert case["kept"] == pytest.approx(kept / 26) and all(
        case[part]["median"] > 0 for part in ("encoder", "greedy", "beam")
    )
    assert figures["speedup_n2_chunk_rate"] is None  # no 15 s utterances, no figure

    forced = benchmarking.forced_novelty

    def keeping_less(*inputs):
        novelty = forced(*inputs)
        return novelty * ((novelty > 0).cumsum(1) % 2)

    monkeypatch.setattr(benchmarking, "forced_novelty", keeping_less)
    with pytest.raises(SystemExit, match="kept fraction of 1 s, 8.4, N=.*, chunks is off by .* not timed"):
        benchmark_chunking.main()


def test_chunking_benchmark_moves_feed_forward_layers_to_the_chunks(monkeypatch, tmp_path):
    import benchmark_chunking

    monkeypatch.setattr(benchmark_chunking, "SIZE", {"d_ffn": 32, "vocab_size": 20})
    sizes = {"ratio": 2, "form": "chunks", "frames": 13, "tokens": 3}
    flat, moved = (
        benchmark_chunking.recogniser(
            str(tmp_path), torch.device("cpu"), split=split, d_ffn=(16, 64), **sizes
        )["model"].encoder
        for split in (None, (8, 4))
    )
    assert {block.ffn_in[1].out_features for block in flat.blocks} == {32}
    assert [
        {block.ffn_out[1].out_features for block in part.blocks} for part in (moved.outer, moved.inner)
    ] == [{16}, {64}]
    parameters = [
        sum(p.numel() for n, p in encoder.named_parameters() if "ffn" in n and "weight" in n)
        for encoder in (flat, moved)
    ]
    assert parameters[0] == parameters[1]


TINY_ENCODER = {"num_layers": 1}
TINY = {
    "d_model": 16,
    "d_ffn": 16,
    "vocab_size": 30,
    "frontend": {"channels": [4, 4]},
    "model": {"num_decoder_layers": 1, "nhead": 2},
}


def test_decoding_is_profiled_and_a_bad_split_named(monkeypatch, capsys):
    import profile_decoding

    build = profile_decoding.recogniser.__globals__["build"]
    monkeypatch.setitem(
        profile_decoding.recogniser.__globals__,
        "build",
        lambda yaml, overrides, folder, **options: build(yaml, {**overrides, **TINY}, folder, **options),
    )
    options = [
        "profile_decoding.py",
        "--device",
        "cpu",
        "--batch",
        "2",
        "--seconds",
        "2",
        "--top",
        "3",
        "--split",
    ]
    monkeypatch.setattr("sys.argv", [*options, "2+1"])
    profile_decoding.main()
    printed = capsys.readouterr().out
    assert "2 x 2 s, 6 steps, 26 states" in printed and "Kernels by time" in printed
    monkeypatch.setattr("sys.argv", [*options, "8-4"])
    with pytest.raises(SystemExit):
        profile_decoding.main()
    assert "give two numbers such as 8+4, not '8-4'" in capsys.readouterr().err


@pytest.mark.parametrize("masked", [False, True])
def test_attention_benchmarks_peers_are_alike_and_it_wants_a_gpu(monkeypatch, masked):
    import benchmark_attention

    inputs = benchmark_attention.draw(3, 4, 20, masked=masked, device=torch.device("cpu"), seed=0)
    expected = benchmark_attention.products(*inputs)
    for peer, _ in benchmark_attention.PEERS.values():
        torch.testing.assert_close(peer(*inputs), expected)
    monkeypatch.setattr("sys.argv", ["benchmark_attention.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="run it on a machine with a CUDA GPU"):
        benchmark_attention.main()


def test_boundaries_benchmark_checks_what_it_times_and_wants_a_gpu(monkeypatch):
    import benchmark_boundaries

    device = torch.device("cpu")
    if reason := unavailable_reason(device):
        pytest.skip(reason)
    x, lengths = torch.randn(3, 30, benchmark_boundaries.D_MODEL), torch.tensor([30, 21, 16])
    found = benchmark_boundaries.chunkers(20, device, chunks_per_label=1.1)
    benchmark_boundaries.check("three utterances", found, x, lengths)
    for chunker in found.values():
        shapes = [run().shape for run in benchmark_boundaries.runs_of(chunker, x, lengths).values()]
        assert shapes[0][0] == 3 and shapes[1] == x.shape
    right = {name: getattr(benchmark_boundaries, name) for name in ("on_budget", "pool_chunks")}

    def wrong_boundaries(*args, backend, **settings):
        found = right["on_budget"](*args, **settings, backend=backend)
        return found if backend == "reference" else dataclasses.replace(found, mask=~found.mask)

    def wrong_means(*args, backend, **settings):
        return right["pool_chunks"](*args, **settings, backend=backend) * (
            1.0 if backend == "reference" else 1.001
        )

    for name, wrong, what in (
        ("on_budget", wrong_boundaries, "boundaries"),
        ("pool_chunks", wrong_means, "chunks"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(benchmark_boundaries, name, wrong)
            with pytest.raises(SystemExit, match=f"the {what}, three utterances is off by .* not timed"):
                benchmark_boundaries.check("three utterances", found, x, lengths)
    other = benchmark_boundaries.chunkers(20, device, chunks_per_label=1.1)["triton"]
    torch.nn.init.normal_(other.ctc_head.w.weight)
    with pytest.raises(SystemExit, match="novelty, three utterances is off by .* not timed"):
        benchmark_boundaries.check("three utterances", found | {"triton": other}, x, lengths)
    monkeypatch.setattr("sys.argv", ["benchmark_boundaries.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="run it on a machine with a CUDA GPU"):
        benchmark_boundaries.main()


def test_efficiency_benchmark_times_what_it_checked(monkeypatch, tmp_path, capsys):
    import benchmark_efficiency

    build = benchmark_efficiency.build

    def tiny(yaml, overrides, folder, **options):
        parts = ("outer", "inner") if "hmamba" in yaml else ("encoder",)
        assert [overrides[part]["num_layers"] for part in parts if part in overrides] == (
            [7, 5] if "hmamba" in yaml else []
        )
        return build(yaml, {**overrides, **TINY, **dict.fromkeys(parts, TINY_ENCODER)}, folder, **options)

    file = tmp_path / "figures.json"
    options = [
        "--device",
        "cpu",
        "--seconds",
        "1",
        "2",
        "3",
        "--utterances",
        "2",
        "--batch",
        "2",
        "--rounds",
        "2",
    ]
    options += ["--split", "7+5"]
    monkeypatch.setattr(benchmark_efficiency, "build", tiny)
    monkeypatch.setattr(benchmark_efficiency, "LONGEST", 3.0)
    # The Conformer, third to ask, finds too little memory for 2 s, and is not asked again for 3.
    free = iter([1e9, 1e9, -1.0, 1e9, 1e9])
    monkeypatch.setattr(benchmark_efficiency, "available_memory_mib", lambda device: next(free))
    monkeypatch.setattr(benchmark_efficiency, "added_memory_mib", lambda run, device: 1.0)
    monkeypatch.setattr("sys.argv", ["benchmark_efficiency.py", *options, "--json", str(file)])
    benchmark_efficiency.main()
    figures = json.loads(file.read_text(encoding="utf-8"))
    encoders = figures["encoders"]
    assert figures["split"] == "7+5"
    assert [[entry["seconds"] for entry in part] for part in encoders.values()] == [[1, 2, 3]] * 3
    assert encoders["ConMamba"][0]["encoder_seconds"] > 0 and encoders["ConMamba"][0]["ratio"]["median"] > 0
    assert "may take" in encoders["Conformer"][1]["skipped"] and "ratio" not in encoders["ConMamba"][1]
    assert set(figures["recognisers"]) == {"greedy", "beam 10"}
    for found in figures["recognisers"].values():
        assert {name: part["same_hypotheses"] for name, part in found["subjects"].items()} == dict.fromkeys(
            encoders, 2
        )
        assert found["subjects"]["H-Mamba, N=2"]["batched"]["ratio"]["median"] > 0
    printed = capsys.readouterr().out
    assert "skipped: may take" in printed and "Recognisers, beam 10" in printed


def test_efficiency_benchmark_skips_what_may_not_fit(monkeypatch):
    import benchmark_efficiency
    import torch

    def obstacle(measured, seconds):
        return benchmark_efficiency.obstacle(measured, seconds, torch.device("cpu"), 10.0)

    monkeypatch.setattr(benchmark_efficiency, "available_memory_mib", lambda device: 1000.0)
    measured = [{"seconds": 10, "memory_mib": 100.0, "encoder_seconds": 1.0}]
    assert obstacle([], 1200) is None and obstacle(measured, 20) is None
    assert "may take 1 GiB, 1 GiB are available" in obstacle(measured, 30)
    assert "may take 16 s, more than the patience" in obstacle(measured, 40)
    assert "as a shorter one was" in obstacle([{"seconds": 20, "skipped": "skipped: x"}], 30)
    unknown = [{"seconds": 60, "memory_mib": None, "encoder_seconds": 0.1}]
    assert obstacle(unknown, 120) is None
    assert "does not tell" in obstacle(unknown, 300)


def test_efficiency_benchmark_refuses_an_encoder_that_batch_mates_reach(monkeypatch):
    import benchmarking
    import torch

    from hmamba_asr.models.outputs import EncoderOutput

    with pytest.raises(SystemExit, match="leaky with padding is off by .* not timed"):
        benchmarking.require_batch_invariance(
            "leaky",
            lambda x, lengths: EncoderOutput(x - x.mean(1, keepdim=True), lengths),
            torch.randn(2, 9, 4),
            5,
        )


def test_a_result_that_is_nan_is_never_timed():
    import benchmarking
    import torch

    error = benchmarking.relative_error(torch.tensor([float("nan")]), torch.tensor([1.0]))
    with pytest.raises(SystemExit, match="not timed"):
        benchmarking.require("something", error, 1.0)
