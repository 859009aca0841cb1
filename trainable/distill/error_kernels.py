"""The squared error of features in one CUDA kernel each way, which read both maps once in their own types.

torch alone makes fp32 copies of both first, and of the gradient. Computed in fp32, and summed in one order, so that
the same maps always have the same error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainable.distill import error_triton
from trainable.networks.norm_kernels import arrivals, multiprocessors

_kernels: Any = error_triton  # Triton's launches, kernel[grid](…), have no types
_BLOCK = 2048
_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def takes(student: Tensor, teacher: Tensor) -> bool:
    """Whether there are kernels for these: of one shape, and lying alike in memory without gaps."""
    is_alike = student.shape == teacher.shape and student.stride() == teacher.stride()
    is_dense = student.is_contiguous() or (
        student.dim() == 4 and student.is_contiguous(memory_format=torch.channels_last)
    )
    is_fit = {student.dtype, teacher.dtype} <= {*_TYPES} and student.numel() > 0
    return is_alike and is_dense and is_fit and not teacher.requires_grad


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over samples of the mean of (student − teacher)² over a sample's numbers, in fp32; (batch, …) → ()."""
    error: Tensor = _SquaredError.apply(student, teacher)  # pyright: ignore[reportUnknownMemberType]
    return error


class _SquaredError(torch.autograd.Function):
    """`squared_error`."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        n = student.numel()
        ctx.factor = len(student) / n
        blocks = -(-n // _BLOCK)
        of_part = -(-blocks // min(blocks, 4 * multiprocessors(student.device))) * _BLOCK
        count = -(-n // of_part)
        parts = torch.empty(count, dtype=torch.float32, device=student.device)
        total = torch.empty((), dtype=torch.float32, device=student.device)
        _kernels.squared_error_sum[(count,)](
            *(student, teacher, parts, arrivals(student.device), total),
            *(n, of_part, count, ctx.factor),
            BLOCK=_BLOCK,
            num_warps=8,
        )
        ctx.save_for_backward(student, teacher)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        student, teacher = ctx.saved_tensors
        of_student, n = torch.empty_like(student), student.numel()
        _kernels.squared_error_gradient[(-(-n // _BLOCK),)](
            *(student, teacher, gradients[0].float().contiguous(), of_student),
            *(n, ctx.factor),
            BLOCK=_BLOCK,
            num_warps=8,
        )
        return of_student, None
