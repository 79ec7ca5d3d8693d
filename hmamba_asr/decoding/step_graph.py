"""A step of a search as a CUDA graph: hundreds of small kernels, launched by the host at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from hmamba_asr.decoding.hypotheses import Step

Carried = list[tuple[object, str]]
QUARTER = (
    0.25  # of a GPU's memory: where less is free, a capture is preceded by emptying the allocator's cache
)


class StepGraph:
    """Runs ``step``, which must ask nothing of the host but launches, again and again.

    ``carried`` names what a step leaves to the next one: owners and attributes that ``step`` binds to new
    tensors. The very first step runs as it stands, which also warms up what a capture may not do; after it,
    the first of all steps with tensors of the same shapes is captured, and they are replays. Whatever else
    ``step`` reads must stay where it is as long as the shapes of what is carried do. Where a capture finds no
    memory, steps run as they stand from then on.

    ``record`` is for tests where there is no GPU.
    """

    def __init__(self, step: Callable[[], Step], carried: Callable[[], Carried], record=None):
        self.step, self.carried, self.record = step, carried, record or record_cuda_graph
        self.plain = True  # until the first step has run
        self.shapes: list[torch.Size] = []

    def __call__(self) -> Step:
        if self.plain:
            self.plain = self.record is None
            return self.step()
        tensors = self._tensors()
        shapes = [tensor.shape for tensor in tensors]
        if shapes != self.shapes:
            # Copies: the steps in the trellis share these tensors, which every replay overwrites.
            self.shapes, self.inputs = shapes, [tensor.clone() for tensor in tensors]
            self.replay = self.output = None  # the graph before this one makes room for it
            self._bind(self.inputs)
            try:
                self.replay, self.output = self.record(self._step_in_place, self.inputs[0].device)
            except torch.OutOfMemoryError:
                self.plain, self.record = True, None
            if self.plain:  # where the error no longer holds on to what the capture made
                self._bind(self.inputs)
                return self.step()
        else:
            for ours, given in zip(self.inputs, tensors, strict=True):
                if ours is not given:  # changed between steps
                    ours.copy_(given)
            self._bind(self.inputs)
        self.replay()
        return Step(**{name: tensor.clone() for name, tensor in vars(self.output).items()})

    def _step_in_place(self) -> Step:
        """A step whose results end in the tensors that it began with."""
        output = self.step()
        for ours, result in zip(self.inputs, self._tensors(), strict=True):
            if ours is not result:
                ours.copy_(result)
        self._bind(self.inputs)
        return output

    def _tensors(self) -> list[Tensor]:
        found = [getattr(owner, name) for owner, name in self.carried()]
        return [tensor for tensor in found if tensor is not None]  # None: made by the first step

    def _bind(self, tensors: list[Tensor]) -> None:
        for (owner, name), tensor in zip(self.carried(), tensors, strict=True):
            setattr(owner, name, tensor)


class _Captures(threading.local):
    """Of a thread, by device: the stream that it captures on, for cuBLAS keeps a workspace for every stream
    that it has seen, and the last graph, whose memory the next one takes over."""

    def __init__(self):
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.graphs: dict[torch.device, torch.cuda.CUDAGraph] = {}


_captures = _Captures()
_one_at_a_time = threading.Lock()  # PyTorch allows one capture in a process


def record_cuda_graph(run: Callable[[], Step], device: torch.device) -> tuple[Callable[[], None], Step]:
    """What replays the kernels of ``run``, which have not run yet, and the tensors that hold the result after
    each replay."""
    with _one_at_a_time, torch.cuda.device(device):
        free, total = torch.cuda.mem_get_info()
        if free < QUARTER * total:
            # What lies idle there a capture cannot take, and a plain step not what the last graph keeps.
            _captures.graphs.pop(device, None)
            torch.cuda.empty_cache()
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if device not in _captures.streams:
            _captures.streams[device] = torch.cuda.Stream(device)
        side, before = _captures.streams[device], _captures.graphs.get(device)
        # Graphs may share memory: what a replay leaves there is read before any other one begins. A pool of
        # its own would lie idle when its graph is gone.
        pool = () if before is None else (before.pool(),)
        side.wait_stream(current)
        # torch.cuda.graph would empty the allocator's cache for each capture. Other threads, as of data
        # loaders, may go on.
        try:
            with torch.cuda.stream(side):
                graph.capture_begin(*pool, capture_error_mode="thread_local")
                try:
                    output = run()
                finally:
                    graph.capture_end()
        except BaseException:
            _captures.graphs.pop(device, None)  # its pool may be left as if a capture were still under way
            raise
        current.wait_stream(side)
        _captures.graphs[device] = graph

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, output
