"""The difference of attention maps in one CUDA kernel each way, which reads each feature once in its own type.

torch alone makes fp32 copies of them, and many small kernels of the maps. Computed in fp32, and summed in one order,
so that the same features always have the same error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainable.distill import attention_triton

_kernels: Any = attention_triton  # Triton's launches, kernel[grid](…), have no types
_TYPES = (torch.float16, torch.bfloat16, torch.float32)
_FLOOR = 1e-12
"""As in torch.nn.functional.normalize."""
_FORWARD = {"ROWS": 256, "WIDTH": 64, "BLOCK": 1024, "num_warps": 16}
_BACKWARD = {"ROWS": 64, "WIDTH": 64, "num_warps": 8}
"""Of the tiles of a map that programs read at once."""


def takes(student: Tensor, teacher: Tensor) -> bool:
    """Whether there are kernels for these: pictures of one height and width, both lying channels last."""
    is_alike = len(student) == len(teacher) and student.shape[2:] == teacher.shape[2:]
    return is_alike and all(map(_is_fit, (student, teacher))) and not teacher.requires_grad


def attention_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over samples of the mean squared difference of attention maps, in fp32; (batch, …) → ()."""
    error: Tensor = _AttentionError.apply(student, teacher)  # pyright: ignore[reportUnknownMemberType]
    return error


def _is_fit(x: Tensor) -> bool:
    is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return is_last and x.dtype in _TYPES and x.numel() > 0


class _AttentionError(torch.autograd.Function):
    """`attention_error`."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        samples, channels, height, width = student.shape
        positions = height * width
        energies = student.new_empty(2, samples, positions, dtype=torch.float32)
        numbers = student.new_empty(3, samples, dtype=torch.float32)
        errors = student.new_empty(samples, dtype=torch.float32)
        _kernels.attention_error[(samples,)](
            *(student, teacher, energies, numbers, errors),
            *(positions, channels, teacher.shape[1], _FLOOR),
            **_FORWARD,
        )
        ctx.save_for_backward(student, energies, numbers)
        return errors.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        student, energies, numbers = ctx.saved_tensors
        samples, channels, height, width = student.shape
        positions, of_student = height * width, torch.empty_like(student)
        _kernels.attention_gradient[(samples, -(-positions // _BACKWARD["ROWS"]))](
            *(student, energies, numbers, gradients[0].float().contiguous(), of_student),
            *(positions, channels),
            **_BACKWARD,
        )
        return of_student, None
