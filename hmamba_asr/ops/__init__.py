"""Tensor operations: tensors in, tensors out. Nothing here knows a module, a model or SpeechBrain.

Each folder holds one operation:

- ``__init__``: the contract. Its public functions check their arguments and pick a backend.
- ``reference``: the operation in plain PyTorch, short and close to the paper. The tests compare all backends
  with it. In :mod:`.norm` and :mod:`.depthwise_conv` only the tests use it, as PyTorch has fast operations.
- ``kernels``: Triton kernels, where there are any.

Every backend's function has the name of the public function that it computes, so ``ema`` is computed by
``reference.ema``, ``loop.ema`` or ``kernels.ema``. The ``__init__`` of an operation lists its further files.

Triton may be missing. So only these files import it at their top, and they are imported when a kernel is to
run: files with "kernels" in their name, ``tiles`` (parts of kernels), and :mod:`.launch`. In addition
:mod:`.dispatch` tries the import to see whether the kernels can run. tests/test_layers.py checks this rule.

Three files serve all operations:

- :mod:`.dispatch` picks backends.
- :mod:`.launch` compiles and launches kernels. A kernel is decorated with ``launch.kernel`` and has an entry
  in scripts/benchmarks/inspect_kernels.py, by which the tests compile it.
- :mod:`.register` makes kernels known to PyTorch's autograd and compiler by ``KernelOp``. PyTorch's FLOP
  counter sees matrix products, convolutions and attention only. Other work in plain PyTorch, such as the
  scan's recurrence, is in the reported numbers of operations only if ``register_counted`` registers it.
"""
