"""A block's BatchNorm in training, with the addition and ReLU that follow it, in the kernels of `norm_kernels`.

Backends of torch.compile: what dynamo has recorded of a block is rewritten, and then runs operation by operation, or
goes on to Inductor. Gradients and running statistics are those of torch's own operations, to the rounding: what is
between BatchNorm and ReLU stays in fp32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm, relu

Backend = Callable[[fx.GraphModule, Sequence[Tensor]], Callable[..., Any]]

_LANES = 8
"""Channels come in multiples of these where a row of a picture is read in whole words."""
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (relu, torch.relu)


def backend_of(network: nn.Module, *, compiles: bool) -> Backend | str | None:
    """Of torch.compile, for a network's blocks; None: they run as they are written."""
    layers = (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    if any(parameter.is_cuda for layer in layers for parameter in layer.parameters()):
        return own_kernels_and_inductor if compiles else own_kernels
    return "inductor" if compiles else None


def own_kernels(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend: what is rewritten in own kernels, all else as it was recorded."""
    del inputs
    rewrite(module)
    return module.forward


def own_kernels_and_inductor(
    module: fx.GraphModule, inputs: Sequence[Tensor]
) -> Callable[..., Any]:
    """A backend: what is rewritten in own kernels, all else in Inductor's."""
    from torch._inductor import compile_fx

    rewrite(module)
    compiled: Callable[..., Any] = compile_fx.compile_fx(module, list(inputs))  # pyright: ignore[reportAssignmentType]
    return compiled


class _Norm(NamedTuple):
    """BatchNorm, as dynamo records it, and what can be computed with it."""

    joined: tuple[fx.Node, ...]
    """BatchNorm, and the addition and ReLU that take its output, as far as there are any."""
    x: fx.Node
    affine: tuple[fx.Node, fx.Node]
    running: tuple[fx.Node, fx.Node]
    momentum: float
    eps: float
    tracked: fx.Node | None
    """The layer's addition to its count of batches."""
    shortcut: fx.Node | None
    relu: bool


def rewrite(module: fx.GraphModule) -> int:
    """Have every BatchNorm that the kernels can take be theirs; how many those are."""
    count = 0
    for node in list(module.graph.nodes):
        if (norm := _read(node)) is not None:
            _replace(module.graph, norm)
            count += 1
    module.recompile()
    return count


def _read(node: fx.Node) -> _Norm | None:
    """None of what is no BatchNorm in training, or one that torch's own kernels take."""
    if node.target is not batch_norm:
        return None
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    given: dict[str, Any] = {"training": False, "momentum": 0.1, "eps": 1e-5}
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    tensors = [tensor for name in names[:5] if isinstance(tensor := given.get(name), fx.Node)]
    if not given["training"] or len(tensors) != 5:
        return None
    x, mean, variance, weight, bias = tensors
    if not _fits(_value(x)) or any(_value(t).dtype != torch.float32 for t in tensors[1:]):
        return None
    joined, shortcut = [node], None
    if (found := _addition(node)) is not None:
        addition, shortcut = found
        joined.append(addition)
    has_relu = (user := _sole_user(joined[-1])) is not None and _is_relu(user)
    if user is not None and has_relu:
        joined.append(user)
    numbers = (given["momentum"], given["eps"])
    running, affine = (mean, variance), (weight, bias)
    return _Norm(tuple(joined), x, affine, running, *numbers, _tracked(node), shortcut, has_relu)


def _fits(x: Tensor) -> bool:
    """Pictures that lie channels last, more than one value of each channel."""
    from trainable.networks import norm_kernels

    if x.dim() != 4 or not norm_kernels.run_on(x.device):
        return False
    is_dense = x.is_contiguous(memory_format=torch.channels_last)
    return is_dense and not x.shape[1] % _LANES and x.numel() > x.shape[1]


def _addition(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The addition that alone takes a BatchNorm's output, and what it adds: of the same shape and type."""
    user = _sole_user(node)
    if user is None or user.target not in _ADDITIONS or user.kwargs or len(user.args) != 2:
        return None
    others = [source for source in user.args if source is not node]
    if len(others) != 1 or not isinstance(other := others[0], fx.Node):
        return None
    one, two = _value(node), _value(other)
    is_like = isinstance(two, Tensor) and (one.shape, one.dtype) == (two.shape, two.dtype)
    return (user, other) if is_like else None


def _is_relu(node: fx.Node) -> bool:
    is_method = node.op == "call_method" and node.target in ("relu", "relu_")
    return node.target in _RELUS or is_method


def _tracked(node: fx.Node) -> fx.Node | None:
    """The layer's `num_batches_tracked.add_(1)`, which comes right before it."""
    for before in _before(node):
        if before.target is batch_norm:
            return None
        if before.op == "call_method" and before.target == "add_" and before.args[1:] == (1,):
            count = _value(before)
            is_count = not before.users and count.dtype == torch.int64 and not count.dim()
            return before if is_count else None
    return None


def _before(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.prev).op not in ("root", "placeholder"):
        yield node


def _sole_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _value(node: Any) -> Any:
    return node.meta["example_value"]


def _replace(graph: fx.Graph, norm: _Norm) -> None:
    tracked = None
    if norm.tracked is not None:
        tracked = norm.tracked.args[0]
        graph.erase_node(norm.tracked)
    last = norm.joined[-1]
    with graph.inserting_before(last):
        tensors = (norm.x, norm.shortcut, *norm.affine, *norm.running, tracked)
        output = graph.call_function(_joined, (*tensors, norm.momentum, norm.eps, norm.relu))
    output.meta = dict(last.meta)
    last.replace_all_uses_with(output)
    for node in reversed(norm.joined):
        graph.erase_node(node)


def _joined(*arguments: Any) -> Tensor:
    output: Tensor = _JoinedNorm.apply(*arguments)  # pyright: ignore[reportUnknownMemberType]
    return output


class _JoinedNorm(torch.autograd.Function):
    """BatchNorm in training, the shortcut's addition and ReLU, as far as they are there."""

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
    ) -> Tensor:
        kernels, x = _kernels(x), _last(x)
        running = (running_mean, running_var, tracked)
        found = kernels.statistics(x, weight, bias, *running, momentum, eps)
        added = None if shortcut is None else _last(shortcut)
        y: Tensor = kernels.normalised(x, added, found, relu)
        ctx.added, ctx.relu = added is not None, relu
        ctx.save_for_backward(x, y if ctx.added and relu else x, found)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, found = ctx.saved_tensors
        dy = _last(gradients[0])
        found = _kernels(x).gradients(x, y, dy, found, ctx.added, ctx.relu)
        of_x, of_shortcut, of_channels = found
        of_weight, of_bias = of_channels.unbind()
        return of_x, of_shortcut if ctx.added else None, of_weight, of_bias, *[None] * 6


def _kernels(x: Tensor) -> Any:
    """The launchers; for Inductor, which records what they are called with, the same as operations of torch."""
    from trainable.networks import norm_kernels

    return torch.ops.kd_study if isinstance(x, FunctionalTensor | FakeTensor) else norm_kernels


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op(
    "kd_study::statistics", mutates_args=("running_mean", "running_var", "tracked")
)
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


@torch.library.custom_op("kd_study::normalised", mutates_args=())
def _normalised(x: Tensor, shortcut: Tensor | None, found: Tensor, relu: bool) -> Tensor:
    added = None if shortcut is None else _last(shortcut)
    return _kernels(x).normalised(_last(x), added, found, relu)


@torch.library.custom_op("kd_study::gradients", mutates_args=())
def _gradients(
    x: Tensor, y: Tensor, dy: Tensor, found: Tensor, added: bool, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels(x).gradients(_last(x), _last(y), _last(dy), found, added, relu)


@_statistics.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty((4, x.shape[1]), dtype=torch.float32)


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
