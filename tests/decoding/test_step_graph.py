"""A search whose steps are replays of a recorded step finds what eager steps find."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from speechbrain.decoders.scorer import CTCScorer, LengthScorer, ScorerBuilder, TransformerLMScorer
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hmamba_asr.decoding import beam as beam_module
from hmamba_asr.decoding import stepper as incremental
from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.decoding.step_graph import StepGraph, _captures, capture_cuda_graph

BLANK, BOS, EOS, VOCAB, D = 0, 1, 2, 40, 16
LENGTHS = [25, 19, 13, 25, 7, 2, 1]


class Recording(TorchDispatchMode):
    """Record operations with the tensors that they read and made."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
            raise RuntimeError(f"{function} asks the device for a value, which a capture does not allow.")
        made = function(*args, **(kwargs or {}))
        taken, outputs = tensors_in((args, kwargs)), tensors_in(made)
        storages = {tensor.untyped_storage().data_ptr() for tensor in taken}
        new = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in storages]
        self.operations.append((function, args, kwargs or {}, outputs, new))
        return made

    def replay(self):
        """Run all operations again on the same memory, which is filled with NaN before."""
        for *_, new in self.operations:
            for tensor in new:
                tensor.fill_(math.nan if tensor.is_floating_point() else 1)
        for function, args, kwargs, outputs, new in self.operations:
            if function._schema.is_mutable:
                function(*args, **kwargs)
            elif new:  # else a view of what is there
                for tensor, value in zip(outputs, tensors_in(function(*args, **kwargs)), strict=True):
                    tensor.copy_(value)


def tensors_in(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def captured(run, recording):
    """Record a step and restore its inputs, as a capture runs nothing."""
    inputs = run.__self__.inputs
    before = [tensor.clone() for tensor in inputs]
    with recording:
        output = run()
    for tensor, value in zip(inputs, before, strict=True):
        tensor.copy_(value)
    return output


class Recorder:
    """Stand-in for a CUDA graph: recording has no effect, and a replay uses the recorded tensors only."""

    def __init__(self, counts):
        self.counts = counts

    def __call__(self, run, device):
        recording = Recording()
        output = captured(run, recording)
        self.counts["recordings"] += 1

        def replay():
            self.counts["replays"] += 1
            recording.replay()

        return replay, output


def make_searcher(model, *, ctc=0.4, with_lm=True, window=0, device="cpu", **options):
    scorers, weights = [], {}
    if ctc:
        scorers.append(
            CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS, ctc_window_size=window)
        )
        weights["ctc"] = ctc
    if with_lm:
        torch.manual_seed(3)
        lm = (
            TransformerLM(VOCAB, d_model=D, nhead=2, num_encoder_layers=2, d_ffn=32, max_length=60)
            .eval()
            .to(device)
        )
        scorers.append(TransformerLMScorer(language_model=lm, temperature=1.15))
        weights["transformerlm"] = 0.5
    if not options.get("length_normalization", True):
        scorers.append(LengthScorer(vocab_size=VOCAB))
        weights["length"] = 0.3
    settings = {
        "beam_size": 4,
        "min_decode_ratio": 0.0,
        "max_decode_ratio": 1.0,
        "using_eos_threshold": False,
        "topk": 3,
    }
    scorer = ScorerBuilder(full_scorers=scorers, weights=weights) if scorers else None
    return JointBeamSearcher([model, model.output_head], BOS, EOS, scorer=scorer, **(settings | options))


SETTINGS = {
    "all": {},
    "decoder": {"ctc": 0.0, "with_lm": False},
    "CTC": {"ctc": 1.0, "with_lm": False},
    "wide": {"beam_size": 40},  # the pool of keys and values grows, is full, and makes room
    "window": {"window": 5, "using_max_attn_shift": True, "max_attn_shift": 12},
    "unnormalised": {"length_normalization": False, "using_eos_threshold": True},
}


def data(seed, device="cpu"):
    states = torch.randn(len(LENGTHS), max(LENGTHS), D, generator=torch.Generator().manual_seed(seed))
    return states.to(device), torch.tensor(LENGTHS, device=device)


def check_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
        for a, b in zip(ours, theirs, strict=True):
            assert a.parts == pytest.approx(b.parts, abs=1e-3) and a.log_probs == pytest.approx(
                b.log_probs, abs=1e-3
            )


@pytest.mark.parametrize("name", SETTINGS)
def test_replays_are_the_steps(name, recogniser, monkeypatch):
    """Replays stay right while the pool is reordered, compacted and grows, and while utterances leave."""
    counts = {"recordings": 0, "replays": 0}
    monkeypatch.setattr(beam_module, "STEPS_BETWEEN_CHECKS", {"cpu": 4})
    for seed in range(3):
        search = make_searcher(recogniser(seed=seed, vocab=VOCAB, eos_bias=1.0), **SETTINGS[name])
        expected = search.search(*data(seed))
        with monkeypatch.context() as patch:
            patch.setattr(beam_module, "StepGraph", partial(StepGraph, capture=Recorder(counts)))
            patch.setattr(JointBeamSearcher, "_use_cuda_graph", lambda self, device: True)
            patch.setattr(incremental, "KeyValuePool", partial(incremental.KeyValuePool, whole=True))
            found = search.search(*data(seed))
        check_same(found, expected)
    assert counts["recordings"] > 3 and counts["replays"] > 3 * counts["recordings"]


def test_a_capture_without_memory_is_given_up_for_plain_steps(recogniser, monkeypatch):
    """The step continues although it was bound to the tensors of the capture."""

    def record(run, device):
        captured(run, nullcontext())
        tried.append(device)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    tried = []
    search = make_searcher(recogniser(vocab=VOCAB, eos_bias=1.0))
    expected = search.search(*data(0))
    monkeypatch.setattr(beam_module, "StepGraph", partial(StepGraph, capture=record))
    monkeypatch.setattr(JointBeamSearcher, "_use_cuda_graph", lambda self, device: True)
    check_same(search.search(*data(0)), expected)
    assert tried == [torch.device("cpu")]


@pytest.mark.parametrize(("free", "emptied"), [(0.5, 0), (0.1, 1)])
def test_idle_memory_is_given_back_before_a_capture_misses_it(free, emptied, monkeypatch):
    """The memory of the last graph is released too."""

    class Reached(Exception):
        pass

    def graph():
        raise Reached

    calls = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * 2**30, 2**30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    device, before = torch.device("cuda", 0), object()
    monkeypatch.setattr(_captures, "graphs", {device: before})
    with pytest.raises(Reached):
        capture_cuda_graph(lambda: None, device)
    assert len(calls) == emptied and _captures.graphs == ({} if emptied else {device: before})


def test_a_capture_that_failed_leaves_its_pool_to_nobody(monkeypatch):
    class Stream:
        def __init__(self, *device):
            pass

        def wait_stream(self, other):
            pass

    class Graph:
        def pool(self):
            return (0, 1)

        def capture_begin(self, *pool, capture_error_mode):
            pass

        def capture_end(self):
            pass

    def fail():
        raise RuntimeError("operation not permitted when stream is capturing")

    device = torch.device("cuda", 0)
    for name, stand_in in (
        ("mem_get_info", lambda: (2**30, 2**30)),
        ("CUDAGraph", Graph),
        ("Stream", Stream),
        ("current_stream", Stream),
        ("device", lambda device: nullcontext()),
        ("stream", lambda stream: nullcontext()),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(_captures, "graphs", {})
    monkeypatch.setattr(_captures, "streams", {})
    capture_cuda_graph(lambda: None, device)
    assert device in _captures.graphs
    with pytest.raises(RuntimeError, match="not permitted"):
        capture_cuda_graph(fail, device)
    assert not _captures.graphs


def test_what_works_on_the_host_is_not_recorded(recogniser):
    search = make_searcher(recogniser(vocab=VOCAB))
    gpu = torch.device("cuda")
    assert search._use_cuda_graph(gpu) and not search._use_cuda_graph(torch.device("cpu"))
    search.scorers[0].capturable = False  # as KenLM's
    assert not search._use_cuda_graph(gpu)
    assert not make_searcher(recogniser(vocab=VOCAB), cuda_graph=False)._use_cuda_graph(gpu)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])  # a second GPU need not be the current one
@pytest.mark.parametrize("name", SETTINGS)
def test_graphs_on_the_gpu_find_what_steps_find(name, device, recogniser, monkeypatch):
    if int(device[-1]) >= torch.cuda.device_count():
        pytest.skip("needs a second GPU")
    from hmamba_asr.ops.attention import limits

    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)  # which SpeechBrain allows on import
    for seed in range(3):
        model = recogniser(seed=seed, vocab=VOCAB, eos_bias=1.0).to(device)
        found = []
        for graph, least in ((True, 1), (False, 10**6)):  # attention by the kernel, and as products
            monkeypatch.setattr(limits, "MIN_PROGRAMS", least)
            search = make_searcher(model, device=device, cuda_graph=graph, **SETTINGS[name])
            found.append(search.search(*data(seed, device)))
        check_same(*found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captures_share_their_memory(recogniser):
    """Twenty searches with changing shapes take no more memory than four; two threads may search at once."""
    model = recogniser(vocab=VOCAB, eos_bias=1.0).to("cuda")
    graphs, steps = (make_searcher(model, device="cuda", cuda_graph=graph) for graph in (True, False))
    held = []
    for i in range(20):
        states, lengths = data(0, "cuda")
        graphs.search(states[: 2 + i % 2 * 3], lengths[: 2 + i % 2 * 3])
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_reserved())
    assert held[-1] == held[3]
    expected = [steps.search(*data(seed, "cuda")) for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        both = [
            threads.submit(make_searcher(model, device="cuda").search, *data(seed, "cuda"))
            for seed in range(2)
        ]
        for one, other in zip(both, expected, strict=True):
            check_same(one.result(), other)
