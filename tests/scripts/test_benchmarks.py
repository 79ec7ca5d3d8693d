"""The benchmarks check what they time, and refuse what they cannot measure."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from speechbrain.nnet.linear import Linear

from hmamba_asr.ops.dispatch import unavailable_reason


def test_scan_benchmark_times_what_it_checked(monkeypatch, capsys):
    import torch
    from benchmarks import scan as benchmark_scan

    monkeypatch.setattr(benchmark_scan, "CPU_SHAPE", (2, 60, 6, 3))
    figures = benchmark_scan.on_cpu(torch.device("cpu"), pairs=2)
    assert figures["cpu_fwd_vs_loop"] > 0 and figures["cpu_fwd_bwd_vs_loop"] > 0
    assert "time loop" in capsys.readouterr().out

    right = benchmark_scan.loop_scan
    monkeypatch.setattr(benchmark_scan, "loop_scan", lambda *inputs: right(*inputs) * 1.001)
    with pytest.raises(SystemExit, match="time loop's output is off by .* not timed"):
        benchmark_scan.on_cpu(torch.device("cpu"), pairs=1)


def test_encoder_benchmark_runs_and_writes_its_figures(monkeypatch, tmp_path):
    from benchmarks import encoder as benchmark_encoder

    file = tmp_path / "figures.json"
    options = ["--device", "cpu", "--seconds", "2", "--pairs", "1", "--train", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["benchmark_encoder.py", *options])
    benchmark_encoder.main()
    (figure,) = json.loads(file.read_text(encoding="utf-8"))["lengths"].values()
    assert (
        figure["batch"] == 1 and figure["encoder_vs_conformer"] > 0 and figure["ours_frames_per_second"] > 0
    )


def test_frontend_benchmark_times_what_is_speechbrains(monkeypatch, tmp_path):
    from benchmarks import frontend as benchmark_frontend

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
    from benchmarks import decoding as benchmark_decoding

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


@pytest.mark.parametrize(("ratio", "kept"), [("2", 13), ("2.5", 11)])
def test_chunking_benchmark_times_what_it_checked(monkeypatch, tmp_path, ratio, kept):
    import benchmarking
    from benchmarks import chunking as benchmark_chunking

    file = tmp_path / "figures.json"
    options = ["--device", "cpu", "--seconds", "1", "--splits", "8+4", "--forms", "chunks", "--pairs", "1"]
    options += ["--ratios", ratio]
    monkeypatch.setattr(benchmark_chunking, "SIZE", {"d_ffn": 32, "vocab_size": 20})
    monkeypatch.setattr("sys.argv", ["benchmark_chunking.py", *options, "--json", str(file)])
    benchmark_chunking.main()
    figures = json.loads(file.read_text(encoding="utf-8"))
    ((name, case),) = figures["cases"].items()
    assert f", N={ratio}, " in name
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
    from benchmarks import chunking as benchmark_chunking

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
    from benchmarks import attention as benchmark_attention

    inputs = benchmark_attention.draw(3, 4, 20, masked=masked, device=torch.device("cpu"), seed=0)
    expected = benchmark_attention.products(*inputs)
    for peer, _ in benchmark_attention.PEERS.values():
        torch.testing.assert_close(peer(*inputs), expected)
    monkeypatch.setattr("sys.argv", ["benchmark_attention.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="run it on a machine with a CUDA GPU"):
        benchmark_attention.main()


def test_boundaries_benchmark_checks_what_it_times_and_wants_a_gpu(monkeypatch):
    from benchmarks import boundaries as benchmark_boundaries

    device = torch.device("cpu")
    if reason := unavailable_reason(device):
        pytest.skip(reason)
    x, lengths = torch.randn(3, 30, benchmark_boundaries.D_MODEL), torch.tensor([30, 21, 16])
    head, found = (
        Linear(n_neurons=20, input_size=x.shape[2]),
        benchmark_boundaries.chunkers(chunks_per_label=1.1),
    )
    benchmark_boundaries.check("three utterances", found, x, lengths, head)
    for chunker in found.values():
        shapes = [run().shape for run in benchmark_boundaries.runs_of(chunker, x, lengths, head).values()]
        assert shapes[0][0] == 3 and shapes[1] == x.shape
    right = {name: getattr(benchmark_boundaries, name) for name in ("select_boundaries", "pool_chunks")}

    def wrong_boundaries(*args, backend, **settings):
        found = right["select_boundaries"](*args, **settings, backend=backend)
        return found if backend == "reference" else dataclasses.replace(found, mask=~found.mask)

    def wrong_means(*args, backend, **settings):
        return right["pool_chunks"](*args, **settings, backend=backend) * (
            1.0 if backend == "reference" else 1.001
        )

    for name, wrong, what in (
        ("select_boundaries", wrong_boundaries, "boundaries"),
        ("pool_chunks", wrong_means, "chunks"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(benchmark_boundaries, name, wrong)
            with pytest.raises(SystemExit, match=f"the {what}, three utterances is off by .* not timed"):
                benchmark_boundaries.check("three utterances", found, x, lengths, head)
    other = benchmark_boundaries.chunkers(chunks_per_label=1.1)["triton"]
    other.blank_index = 1
    with pytest.raises(SystemExit, match="novelty, three utterances is off by .* not timed"):
        benchmark_boundaries.check("three utterances", found | {"triton": other}, x, lengths, head)
    monkeypatch.setattr("sys.argv", ["benchmark_boundaries.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="run it on a machine with a CUDA GPU"):
        benchmark_boundaries.main()


def test_efficiency_benchmark_times_what_it_checked(monkeypatch, tmp_path, capsys):
    from benchmarks import efficiency as benchmark_efficiency

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
    import torch
    from benchmarks import efficiency as benchmark_efficiency

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
