"""Convolutions whose weight's gradient is computed beside the rest of the backward pass, in an update that is captured.

Nothing of the backward pass depends on it, and BatchNorm's, which comes next, is bound by memory. Each branch of an
update has such a branch of its own.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from trainable.branches import Wait, branch

_AT_ONCE = 2
"""In a branch so many convolutions' gradients are on their way: what they are made of is kept meanwhile."""

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
Numbers = int | Sequence[int]
_kept: defaultdict[str, deque[tuple[Wait, Tensor, Tensor, Tensor]]] = defaultdict(deque)
"""What the gradients on their way are made of, by branch: a process has one backward pass at a time."""


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """torch.conv2d, with its names."""
    x = input
    if isinstance(padding, str) or bias is not None or not _is_beside(x, weight):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    with branch(_branch()) as wait:  # where its gradient arrives, too
        weight = weight.view_as(weight)
    wait()
    shape = (_two(stride), _two(padding), _two(dilation), groups)
    output: Tensor = _Convolution.apply(x, weight, shape)  # pyright: ignore[reportUnknownMemberType]
    return output


class Beside(TorchFunctionMode):
    """Inside, convolutions of layers that run as they are written are `conv2d`s, as far as those go."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        return (conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))


@contextmanager
def awaited() -> Generator[None]:
    """Around a backward pass: when it is over all gradients are there, and nothing is kept for them."""
    try:
        yield
        for kept in _kept.values():
            for wait, *_ in kept:
                wait()
    finally:
        _kept.clear()


class _Convolution(torch.autograd.Function):
    """`conv2d` without a bias, in the type of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> Tensor:
        ctx.shape, ctx.dtype = shape, weight.dtype
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        stride, padding, dilation, groups = shape
        return torch.conv2d(x, weight, None, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_y, of_x = gradients[0], None
        if ctx.needs_input_grad[0]:
            of_x, _ = _gradients(of_y, x, weight, ctx.shape, (True, False))
        # Autograd takes it to be made in the current stream. What it does with it comes in the branch all the same,
        # since `conv2d` has the weight there; and it has the weight's type, to which autograd would cast it here.
        name = _branch()
        with branch(name) as wait:
            _, of_weight = _gradients(of_y, x, weight, ctx.shape, (False, True))
            assert of_weight is not None
            of_weight = of_weight.to(ctx.dtype)
        kept = _kept[name]
        kept.append((wait, x, weight, of_y))
        if len(kept) > _AT_ONCE:
            wait, *_ = kept.popleft()
            wait()
        return of_x, of_weight, None


def _branch() -> str:
    """Beside the current stream."""
    stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0
    return f"weights of {stream}"


def _gradients(
    of_y: Tensor, x: Tensor, weight: Tensor, shape: tuple[Any, ...], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of `x` and `weight`, those that are wanted."""
    stride, padding, dilation, groups = shape
    of_x, of_weight, _ = torch.ops.aten.convolution_backward.default(
        *(of_y, x, weight, None, stride, padding, dilation, False, [0, 0], groups),
        [*wanted, False],
    )
    return of_x, of_weight


def _is_beside(x: Tensor, weight: Tensor) -> bool:
    is_usual = x.dim() == 4 and {x.dtype, weight.dtype} <= {*_TYPES}
    is_trained = weight.requires_grad and torch.is_grad_enabled()
    return is_usual and is_trained and _is_captured(x)


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _two(numbers: Numbers) -> list[int]:
    return [numbers, numbers] if isinstance(numbers, int) else list(numbers)
