"""Triton kernels, compiled once and launched with little work on the host.

Triton specialises a kernel for arguments that are 1 or multiples of 16, and looks all arguments up at every
launch. Batches of speech have a new length each, so that would compile again and again in the middle of
training, and a small model would wait for the launches and not for the GPU. Here a kernel is compiled once
for each set of dtypes and constants.

Triton keeps what it compiled on disk, in the folder that TRITON_CACHE_DIR names (~/.triton/cache by default).
Processes share that folder: each compiles only what none has compiled before.

This module imports Triton. Only modules that hold kernels may import it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from operator import attrgetter, methodcaller
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

_compiled: dict[tuple, Any] = {}
_dtype, _address = attrgetter("dtype"), methodcaller("data_ptr")


def kernel(function: Callable) -> Any:
    """Decorate a kernel: ``triton.jit`` without specialisation.

    The parameters must come in this order: tensors, integers, ``tl.constexpr``.
    """
    runtime = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if "constexpr" not in str(parameter.annotation)
    ]
    return triton.jit(do_not_specialize=runtime, do_not_specialize_on_alignment=runtime)(function)


def launch(
    function: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    constants: tuple,
    *,
    num_warps: int,
    max_registers: int | None = None,
) -> None:
    """Run ``function(*tensors, *numbers, *constants)`` on a grid of programs.

    Parameters
    ----------
    function : kernel
        Made by :func:`kernel`.
    grid : tuple of int
        Number of programs along each axis; nothing runs if one is 0.
    tensors, numbers, constants : tuple
        The arguments. A kernel is compiled once for each set of dtypes and constants.
    num_warps : int
        Warps of a program.
    max_registers : int, optional
        Registers of a thread at most, so that more programs fit a processor.
    """
    if not all(grid):
        return
    if isinstance(function, InterpretedFunction):
        function[grid](*tensors, *numbers, *constants, num_warps=num_warps)
        return
    device = tensors[0].device
    # Integers are passed in 32 bits, but for those that need 64.
    wide = tuple(i for i, n in enumerate(numbers) if n >= 2**31) if max(numbers, default=0) >= 2**31 else ()
    key = (function, device.index, constants, wide, num_warps, *map(_dtype, tensors))
    with torch.cuda.device(device) if device.index != torch.cuda.current_device() else nullcontext():
        if compiled := _compiled.get(key):
            # Addresses and not tensors: for a tensor the launcher asks the driver whether it lies on the GPU,
            # each time.
            stream = torch._C._cuda_getCurrentRawStream(device.index)
            compiled.run(
                *grid,
                stream,
                compiled.function,
                compiled.packed_metadata,
                None,
                None,
                None,
                *map(_address, tensors),
                *numbers,
                *constants,
            )
        else:
            options = {"num_warps": num_warps, "num_stages": 1, "maxnreg": max_registers}
            _compiled[key] = function[grid](*tensors, *numbers, *constants, **options)
