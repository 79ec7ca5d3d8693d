"""How the C library deals with the memory of large tensors."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> None:
    """On a CPU under glibc, keep freed tensors' pages in the process.

    By default every large tensor is mapped anew and its pages are cleared by the kernel at first touch, which costs a fifth of
    the training time of a small model.
    """
    m_trim_threshold, m_mmap_threshold, unlimited = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc: nothing to do
        return
    mallopt(m_mmap_threshold, unlimited)
    mallopt(m_trim_threshold, unlimited)
