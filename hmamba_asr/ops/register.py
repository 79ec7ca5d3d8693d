"""The one way in which kernels become an operation of PyTorch.

A :class:`KernelOp` joins a forward function that launches kernels with a backward function that does so. It
runs in one of three ways:

- Eager code runs an autograd function, which costs the host less than a custom op does.
- ``torch.compile`` sees the custom op ``hmamba_asr::<name>`` and keeps it whole, if the op says with ``fake``
  which shapes it returns.
- Without ``fake``, ``torch.compile`` breaks the graph at the op and runs it as eager code does. That is right
  where the caller waits for the GPU next to the op anyway.

Backends in plain PyTorch need no such op, even where they bring their own backward pass: PyTorch's compiler
reads them. :func:`register_counted` is for those whose operations are to be counted as a whole.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

Forward = Callable[..., "Tensor | tuple[Tensor, ...]"]
Backward = Callable[..., "Sequence[Tensor | None]"]
Save = Callable[[tuple, tuple[Tensor, ...]], "tuple[Tensor | None, ...]"]

_SCHEMA_TYPES = {int: "SymInt", float: "float", bool: "bool"}


class KernelOp:
    """An operation that kernels run, with its gradient.

    Parameters
    ----------
    name : str
        The custom op is ``hmamba_asr::<name>``.
    forward : callable
        ``forward(*tensors, *numbers)`` returns a tensor or a tuple of tensors. Its parameters are annotated:
        tensors (``Tensor`` or ``Tensor | None``) come first, then numbers (``int``, ``float`` or ``bool``).
        The outputs after the first ``results`` are kept for the backward pass only.
    backward : callable, optional
        ``backward(grads, saved, wanted, *numbers)`` returns a gradient, or None, for each of the inputs
        ``differentiable``; none may be a tensor that came in. ``grads`` has the gradient of each result,
        ``saved`` is a list of the saved tensors, from which the function may remove what it is done with, and
        ``wanted`` says which gradients are used. Autocast is off. Without ``backward`` the operation has no
        gradient.
    differentiable : sequence of int
        Positions of the inputs that have gradients.
    results : int
        How many outputs the caller gets.
    save : callable, optional
        ``save(inputs, outputs)`` returns the tensors to save; by default all tensor inputs, then the outputs
        after the results. With ``fake``, the inputs must come first.
    fake : callable, optional
        Takes what ``forward`` takes and returns empty tensors like its outputs. Without it,
        ``torch.compile`` breaks the graph at this operation.
    """

    def __init__(
        self,
        name: str,
        forward: Forward,
        *,
        backward: Backward | None = None,
        differentiable: Sequence[int] = (),
        results: int = 1,
        save: Save | None = None,
        fake: Forward | None = None,
    ):
        self.name, self.forward, self.backward = name, forward, backward
        self.differentiable, self.results, self._save = tuple(differentiable), results, save
        hints = typing.get_type_hints(forward)
        self._parameters = {name: hints[name] for name in inspect.signature(forward).parameters}
        self._tensors = sum(hint not in _SCHEMA_TYPES for hint in self._parameters.values())
        self._custom_op = None if fake is None else self._register(fake)

    def __call__(self, *inputs: Any) -> Any:
        """Run the operation; returns a tensor, or a tuple if there are several results."""
        if not torch.compiler.is_compiling():
            return self._eager(*inputs)
        if self._custom_op is None:
            return _outside_the_graph(self, *inputs)
        outputs = _as_tuple(self._custom_op(*inputs))
        return outputs[0] if self.results == 1 else outputs[: self.results]

    def _eager(self, *inputs: Any) -> Any:
        if self.backward is None:
            return self.forward(*inputs)
        return _Eager.apply(self, *inputs)

    def _remember(self, ctx: Any, inputs: tuple, outputs: tuple[Tensor, ...]) -> None:
        """Store on ``ctx`` what the backward pass needs."""
        ctx.numbers = inputs[self._tensors :]
        saved = (*inputs[: self._tensors], *outputs[self.results :])
        ctx.save_for_backward(*(self._save(inputs, outputs) if self._save else saved))

    def _wanted(self, needs_input_grad: Sequence[bool]) -> list[bool]:
        return [needs_input_grad[place] for place in self.differentiable]

    def _gradients(
        self, grads: Sequence[Tensor], saved: list[Tensor | None], wanted: list[bool], numbers: tuple
    ) -> Sequence[Tensor | None]:
        # A backward pass may be called under the autocast of the forward pass.
        with torch.autocast(grads[0].device.type, enabled=False):
            return self.backward(grads, saved, wanted, *numbers)  # type: ignore[misc]

    def _for_inputs(self, found: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
        """Put the gradients in the order of all inputs; None where there is none."""
        ordered: list[Tensor | None] = [None] * len(self._parameters)
        for place, gradient, use in zip(self.differentiable, found, wanted, strict=True):
            ordered[place] = gradient if use else None
        return ordered

    def _register(self, fake: Forward) -> Any:
        """Register the custom op and, for its backward pass, another one."""
        name = f"hmamba_asr::{self.name}"

        def whole(*inputs: Any) -> Any:
            outputs = self.forward(*inputs)
            return _owned(outputs) if isinstance(outputs, Tensor) else tuple(map(_owned, outputs))

        schema = torch.library.infer_schema(self.forward, mutates_args=())
        custom_op = torch.library.custom_op(name, whole, mutates_args=(), schema=schema)
        custom_op.register_fake(fake)
        if self.backward is None:
            return custom_op

        def gradients(grads: list, saved: list, wanted: list[bool], *numbers: Any) -> list[Tensor]:
            found = self._gradients(grads, list(saved), wanted, numbers)
            none = grads[0].new_empty(0)
            return [
                _owned(gradient) if use and gradient is not None else none.clone()
                for gradient, use in zip(found, wanted, strict=True)
            ]

        def fake_gradients(grads: list, saved: list, wanted: list[bool], *numbers: Any) -> list[Tensor]:
            places = zip(self.differentiable, wanted, strict=True)
            return [
                saved[place].new_empty(saved[place].shape) if use else grads[0].new_empty(0)
                for place, use in places
            ]

        numbers = list(self._parameters.items())[self._tensors :]
        arguments = ["Tensor[] grads", "Tensor?[] saved", "bool[] wanted"]
        arguments += [f"{_SCHEMA_TYPES[hint]} {parameter}" for parameter, hint in numbers]
        backward_op = torch.library.custom_op(
            f"{name}_backward",
            gradients,
            mutates_args=(),
            schema=f"({', '.join(arguments)}) -> Tensor[]",
        )
        backward_op.register_fake(fake_gradients)

        def setup(ctx: Any, inputs: tuple, output: Any) -> None:
            self._remember(ctx, inputs, _as_tuple(output))

        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            wanted = self._wanted(ctx.needs_input_grad)
            found = backward_op(list(grads[: self.results]), list(ctx.saved_tensors), wanted, *ctx.numbers)
            return tuple(self._for_inputs(found, wanted))

        custom_op.register_autograd(backward, setup_context=setup)
        return custom_op


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: KernelOp, *inputs: Any) -> Any:
        outputs = _as_tuple(op.forward(*inputs))
        ctx.op = op
        op._remember(ctx, inputs, outputs)
        return outputs[0] if op.results == 1 else outputs[: op.results]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        op, saved = ctx.op, list(ctx.saved_tensors)
        ctx.maybe_clear_saved_tensors()  # unless the graph is kept, ``saved`` now holds them alone
        wanted = op._wanted(ctx.needs_input_grad[1:])
        return None, *op._for_inputs(op._gradients(grads, saved, wanted, ctx.numbers), wanted)


@torch.compiler.disable
def _outside_the_graph(op: KernelOp, *inputs: Any) -> Any:
    return op._eager(*inputs)


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _owned(x: Tensor) -> Tensor:
    """Return ``x`` in memory of its own, as the compiler expects of a custom op."""
    whole = x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes
    return x if whole else x.clone(memory_format=torch.contiguous_format)


def register_counted(name: str, function: Callable, *, fake: Callable, flops: Callable[..., int]) -> Any:
    """Make a function without gradients one operation, which the flop counter and the profiler see whole.

    This is for plain PyTorch whose single steps say nothing about the work. It is no :class:`KernelOp`: the
    first call of a custom op imports PyTorch's compiler, which takes a second.

    Parameters
    ----------
    name : str
        The operation is ``torch.ops.hmamba_asr.<name>``.
    function : callable
        Annotated, from tensors and numbers to tensors.
    fake : callable
        Takes what ``function`` takes and returns empty tensors like its outputs.
    flops : callable
        Takes what ``function`` takes, with shapes for tensors, and returns the floating-point operations.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    torch.library.define(f"hmamba_asr::{name}", schema)
    torch.library.impl(f"hmamba_asr::{name}", "CompositeExplicitAutograd", function)
    torch.library.register_fake(f"hmamba_asr::{name}", fake)
    op = getattr(torch.ops.hmamba_asr, name)
    register_flop_formula(op)(flops)
    return op
