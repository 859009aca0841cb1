"""Whether an error was for want of memory."""

from __future__ import annotations

import torch

_NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # for want of memory: there is a device, and it has worked
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN 9, CUDNN_STATUS_INTERNAL_ERROR_…
)


def is_out_of_memory(error: BaseException) -> bool:
    """Also of the CPU's allocator, of CUDA's own calls and of cuBLAS, which raise a plain RuntimeError.

    And where it was raised from such an error, as torch.fx does.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if any(words in str(error) for words in _NO_MEMORY):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)
