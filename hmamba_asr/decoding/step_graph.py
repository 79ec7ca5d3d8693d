"""A step of a search as a CUDA graph: the host launches its hundreds of small kernels at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from hmamba_asr.decoding.hypotheses import Step

Carried = list[tuple[object, str]]
# Below this fraction of free GPU memory, a capture first empties the allocator's cache.
MIN_FREE_FRACTION = 0.25


class StepGraph:
    """Run a step again and again, as replays of a CUDA graph.

    The very first step runs eagerly. It does the first-time work that a capture may not do. The next step
    with tensors of new shapes is captured, and all steps with these shapes are replays. If a capture finds no
    memory, all further steps run eagerly.

    Parameters
    ----------
    step
        The work of a step. It may launch kernels, but may not wait for the host. The tensors that it reads
        besides the carried ones must stay at their addresses while the carried ones keep their shapes.
    carried
        Names the tensors that a step replaces and the next one reads, each as owner and attribute.
    capture
        Stands in for :func:`capture_cuda_graph` in tests without a GPU.
    """

    def __init__(
        self,
        step: Callable[[], Step],
        carried: Callable[[], Carried],
        capture: Callable[[Callable[[], Step], torch.device], tuple[Callable[[], None], Step]] | None = None,
    ):
        self.step, self.carried = step, carried
        self.capture = capture or capture_cuda_graph
        self.eager = True  # until the first step has run, and after a capture that failed
        self.failed = False
        self.shapes: list[torch.Size] = []
        self.inputs: list[Tensor] = []
        self.replay: Callable[[], None] | None = None
        self.output: Step | None = None

    def __call__(self) -> Step:
        """Run one step and return its result."""
        if self.eager:
            self.eager = self.failed
            return self.step()
        tensors = self._tensors()
        shapes = [tensor.shape for tensor in tensors]
        if shapes != self.shapes:
            # Copies, since every replay overwrites its inputs and the steps in the trellis share the tensors.
            self.shapes, self.inputs = shapes, [tensor.clone() for tensor in tensors]
            self.replay = self.output = None  # frees the graph before this one
            self._bind(self.inputs)
            try:
                self.replay, self.output = self.capture(self._step_in_place, self.inputs[0].device)
            except torch.OutOfMemoryError:
                self.eager = self.failed = True
            if self.failed:  # after the except block, because the error holds the memory of the capture
                self._bind(self.inputs)
                return self.step()
        else:
            for ours, given in zip(self.inputs, tensors, strict=True):
                if ours is not given:  # changed between steps
                    ours.copy_(given)
            self._bind(self.inputs)
        assert self.replay is not None and self.output is not None
        self.replay()
        return Step(**{name: tensor.clone() for name, tensor in vars(self.output).items()})

    def _step_in_place(self) -> Step:
        """Run a step and copy what it carries to the tensors that it began with."""
        output = self.step()
        for ours, result in zip(self.inputs, self._tensors(), strict=True):
            if ours is not result:
                ours.copy_(result)
        self._bind(self.inputs)
        return output

    def _tensors(self) -> list[Tensor]:
        found = [getattr(owner, name) for owner, name in self.carried()]
        return [tensor for tensor in found if tensor is not None]  # a tensor is None before the first step

    def _bind(self, tensors: list[Tensor]) -> None:
        for (owner, name), tensor in zip(self.carried(), tensors, strict=True):
            setattr(owner, name, tensor)


class _Captures(threading.local):
    """A thread's capture stream and last graph on each device.

    The stream is reused because cuBLAS keeps a workspace for every stream that it has seen. The graph stays
    because the next one takes its memory over.
    """

    def __init__(self):
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.graphs: dict[torch.device, torch.cuda.CUDAGraph] = {}


_captures = _Captures()
_one_at_a_time = threading.Lock()  # PyTorch allows one capture at a time in a process


def capture_cuda_graph(run: Callable[[], Step], device: torch.device) -> tuple[Callable[[], None], Step]:
    """Capture the kernels of ``run`` without executing them.

    Parameters
    ----------
    run
        The work to capture.
    device
        The GPU.

    Returns
    -------
    replay
        Executes the kernels.
    result
        The result of ``run``; its tensors hold the values of the last replay.
    """
    with _one_at_a_time, torch.cuda.device(device):
        free, total = torch.cuda.mem_get_info()
        if free < MIN_FREE_FRACTION * total:
            # A capture cannot use idle memory in the cache. An eager step cannot use the memory that the last
            # graph keeps.
            _captures.graphs.pop(device, None)
            torch.cuda.empty_cache()
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if device not in _captures.streams:
            _captures.streams[device] = torch.cuda.Stream(device)
        side, before = _captures.streams[device], _captures.graphs.get(device)
        # Graphs may share memory, because the result of a replay is read before another replay begins. A
        # separate pool would lie idle once its graph is gone.
        pool = () if before is None else (before.pool(),)
        side.wait_stream(current)
        # Not torch.cuda.graph, which empties the allocator's cache for each capture. "thread_local" lets
        # other threads, such as those of data loaders, go on.
        try:
            with torch.cuda.stream(side):
                graph.capture_begin(*pool, capture_error_mode="thread_local")  # type: ignore[misc]
                try:
                    output = run()
                finally:
                    graph.capture_end()
        except BaseException:
            _captures.graphs.pop(device, None)  # its pool may look as if a capture were still under way
            raise
        current.wait_stream(side)
        _captures.graphs[device] = graph

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, output
