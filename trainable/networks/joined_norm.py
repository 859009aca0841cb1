"""BatchNorm in training, the shortcut's addition and ReLU as one function, on the kernels of `norm_kernels`.

Gradients and running statistics are those of torch's own operations, to the rounding: what is between BatchNorm and
ReLU stays in fp32. It cannot be differentiated twice.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, library
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd.function import once_differentiable

from trainable.networks.peers import Inbox

_OPERATIONS = "kd_study_2"
"""The namespace of the operations. Inductor keeps on disk what it made of them, under their names alone: it is to be
changed with what they take or return."""

_DEVICES = "cuda"
"""That the kernels run on. (Interpreted by Triton, for tests, it is the CPU.)"""
_LANES, _MOST_CHANNELS = 8, 16_384
"""Channels come in multiples of these where a row of a picture is read in whole words; for so many there are counts
of the programs that have ended."""
_log = logging.getLogger(__name__)


class Exchanges(NamedTuple):
    """How ranks exchange a layer's numbers in its forward and backward pass: None is NCCL."""

    forward: Inbox | None = None
    backward: Inbox | None = None


def takes(x: Tensor, *of_layer: Tensor | None) -> bool:
    """Whether there are kernels for it and all that is `of_layer`: for pictures that lie channels last.

    The same on every rank.
    """
    if x.dim() != 4 or x.device.type != _DEVICES:
        return False
    is_dense = x.is_contiguous(memory_format=torch.channels_last)
    is_fit = is_dense and not x.shape[1] % _LANES and x.shape[1] <= _MOST_CHANNELS
    return is_fit and all(t is not None and t.dtype == torch.float32 for t in of_layer)


def run_on(device: torch.device) -> bool:
    """Whether the kernels do, which is tried; where they do not, the log says why once.

    They need Triton, what it makes its launchers with (a C compiler, Python's headers), and a GPU of compute
    capability 7.0 or newer.
    """
    return device.type == _DEVICES and _is_tried(device)


@functools.cache
def _is_tried(device: torch.device) -> bool:
    try:
        from trainable.networks import norm_kernels

        x = torch.ones(1, _LANES, 1, 2, device=device).to(memory_format=torch.channels_last)
        weight, bias, mean, variance = torch.ones(4, _LANES, device=device)
        norm_kernels.statistics(x, weight, bias, mean, variance, None, 0.1, 1e-5)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a driver, or an import: each has its own
        reason = " ".join(str(error).split("\n")[:2])
        _log.warning("BatchNorm runs in torch's own kernels: %s: %s", type(error).__name__, reason)
        return False
    return True


def joined(
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    tracked: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
    over: Exchanges | None = None,
) -> Tensor:
    """relu(BatchNorm(x) + shortcut) in training, as far as there are any, in the type of `x`; channels last.

    The running statistics move towards the batch's by `momentum`, and `tracked` goes up by one. The batch is that of
    all ranks if there is something to exchange it `over`. It must be one of those that the kernels take (`takes`).
    """
    tensors = (x, shortcut, weight, bias, running_mean, running_var, tracked)
    output: Tensor = _JoinedNorm.apply(*tensors, momentum, eps, relu, over)  # pyright: ignore[reportUnknownMemberType]
    return output


class _JoinedNorm(torch.autograd.Function):
    """`joined`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shortcut: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        tracked: Tensor | None,
        momentum: float,
        eps: float,
        relu: bool,
        over: Exchanges | None,
    ) -> Tensor:
        kernels, x = _kernels(x), _last(x)
        running, numbers = (running_mean, running_var), (momentum, eps)
        if over is None:
            found = kernels.statistics(x, weight, bias, *running, tracked, *numbers)
        else:
            found = kernels.statistics_over_ranks(x, weight, bias, *running, *numbers, over.forward)
        added = None if shortcut is None else _last(shortcut)
        y: Tensor = kernels.normalised(x, added, found, relu)
        ctx.settings = (added is not None, relu)
        if over is not None:
            ctx.settings += (True, over.backward)
        ctx.save_for_backward(x, y if added is not None and relu else x, found)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, found = ctx.saved_tensors
        dy = _last(gradients[0])
        found = _kernels(x).gradients(x, y, dy, found, *ctx.settings)
        of_x, of_shortcut, of_channels = found
        of_weight, of_bias = of_channels.unbind()
        added = ctx.settings[0]
        return of_x, of_shortcut if added else None, of_weight, of_bias, *[None] * 7


def _kernels(x: Tensor) -> Any:
    """The launchers; for Inductor, which records what they are called with, the same as operations of torch."""
    from trainable.networks import norm_kernels

    is_recorded = isinstance(x, FunctionalTensor | FakeTensor)
    return getattr(torch.ops, _OPERATIONS) if is_recorded else norm_kernels


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# It moves the running statistics, and does not say so: they are views of one tensor (`engine.guard`), of which the
# Inductor of torch 2.11 computes the second from the wrong place in memory once it knows (it clones it, with an offset
# too many). Nothing else in a block reads them; as its result is used, the operation is neither left out nor run
# twice; and as they lie at multiples of 16 bytes, it is given themselves, never copies.
@library.custom_op(f"{_OPERATIONS}::statistics", mutates_args=())
def _statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    tracked: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    running = (running_mean, running_var, tracked)
    return _kernels(x).statistics(_last(x), weight, bias, *running, momentum, eps)


@library.custom_op(f"{_OPERATIONS}::normalised", mutates_args=())
def _normalised(x: Tensor, shortcut: Tensor | None, found: Tensor, relu: bool) -> Tensor:
    added = None if shortcut is None else _last(shortcut)
    return _kernels(x).normalised(_last(x), added, found, relu)


@library.custom_op(f"{_OPERATIONS}::gradients", mutates_args=())
def _gradients(
    x: Tensor, y: Tensor, dy: Tensor, found: Tensor, added: bool, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels(x).gradients(_last(x), _last(y), _last(dy), found, added, relu)


@_statistics.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty((5, x.shape[1]), dtype=torch.float32)


@_normalised.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@_gradients.register_fake
def _(
    x: Tensor, y: Tensor, dy: Tensor, found: Tensor, added: bool, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    of_x = torch.empty_like(x, memory_format=torch.channels_last)
    of_shortcut = torch.empty_like(of_x) if added else x.new_empty(0)
    return of_x, of_shortcut, x.new_empty((2, x.shape[1]), dtype=torch.float32)
