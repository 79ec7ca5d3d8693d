"""Tensor operations: tensors in, tensors out. Nothing here knows a module, a model or SpeechBrain.

Each folder holds one operation:

- ``__init__``: the contract. One or more public functions, which check their arguments and pick a backend.
- ``reference``: the operation in plain PyTorch, short and close to the paper. It is the oracle of the tests.
- ``kernels``: Triton kernels. Only these files, and :mod:`.launch`, import Triton; they are imported when a
  kernel is to run.

An operation may have further files, which its ``__init__`` lists. Three files serve all operations:
:mod:`.dispatch` picks backends, :mod:`.register` makes kernels known to PyTorch's autograd and compiler, and
:mod:`.launch` compiles and launches kernels.
"""
