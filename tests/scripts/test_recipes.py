"""Launch scripts: what they start, with stand-ins for what this machine does not have."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from hmamba_asr.config.compose import compose
from hmamba_asr.config.hparams import top_level_nodes

ROOT = Path(__file__).resolve().parents[2]


RECIPES = ROOT / "recipes" / "librispeech"


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
    assert table.split() == ["python", "scripts/summarize.py", "results"]


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
          SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" || { c=$?; [ $c -gt $worst ] && worst=$c; }
        done
        exit $worst""",
    )
    _stand_in(
        bin_folder,
        "python",
        'echo "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $*"\n[ "$RANK" != 1 ] || exit '
        f"{exit_code}",
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
