"""A block rewritten: each BatchNorm in training, with the addition and ReLU that follow it, is one `joined_norm`.

Backends of torch.compile: what dynamo has recorded of a block is rewritten, and then runs operation by operation, or
goes on to Inductor. Gradients and running statistics are those of torch's own operations, to the rounding: what is
between BatchNorm and ReLU stays in fp32.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.nn.functional import batch_norm, relu
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from trainable import ranks
from trainable.networks import joined_norm, weight_gradients

Backend = Callable[[fx.GraphModule, Sequence[Tensor]], Callable[..., Any]]

_GRAD_MODE = torch._C._set_grad_enabled  # pyright: ignore[reportPrivateUsage]
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (relu, torch.relu)


def has_kernels(network: nn.Module, device: torch.device) -> bool:
    """Whether there are kernels for BatchNorm of the network on the devices of all ranks; each asks."""
    if not any(isinstance(layer, _BatchNorm) for layer in network.modules()):
        return False
    return not ranks.on_any_rank(not joined_norm.run_on(device), device)


def backend_of(network: nn.Module, *, compiles: bool, own: bool) -> Backend | str | None:
    """Of torch.compile, for a network's blocks; None: they run as they are written.

    With `own` kernels for BatchNorm; SyncBatchNorm takes those by itself.
    """
    if own and any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        return own_kernels_and_inductor if compiles else own_kernels
    return "inductor" if compiles else None


def own_kernels(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend: what is rewritten in own kernels, all else as it was recorded."""
    del inputs
    for node in module.graph.nodes:
        if isinstance(node.target, HigherOrderOperator):
            # Such as torch.utils.checkpoint.
            raise TypeError(f"{node.target.name()} is for compilers, and does not run as recorded")
        if node.target is torch.conv2d:
            node.target = weight_gradients.conv2d
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
    norms = [node for node in module.graph.nodes if node.target is batch_norm]
    # Inductor would take two calls with the same arguments for one, and the statistics move once.
    layers = Counter(node.args[1:] for node in norms)
    for node in norms:
        if layers[node.args[1:]] == 1 and (norm := _read(node)) is not None:
            _replace(module.graph, norm)
            count += 1
    module.recompile()
    return count


def _read(node: fx.Node) -> _Norm | None:
    """None of a BatchNorm that is not in training, or that torch's own kernels take."""
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
    of_x = _value(x)
    if not joined_norm.takes(*map(_value, tensors)) or of_x.numel() == of_x.shape[1]:
        return None  # of one value in each channel torch says that it has no variance
    joined, shortcut = [node], None
    found = _addition(node)
    if found is not None and _may_move(node, tensors, found[0]):
        addition, shortcut = found
        joined.append(addition)
    has_relu = (user := _sole_user(joined[-1])) is not None and _is_relu(user)
    if user is not None and has_relu:
        joined.append(user)
    numbers = (given["momentum"], given["eps"])
    running, affine = (mean, variance), (weight, bias)
    return _Norm(tuple(joined), x, affine, running, *numbers, _tracked(node), shortcut, has_relu)


def _addition(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The addition that alone takes a BatchNorm's output, and what it adds: of the same shape and type."""
    user = _sole_user(node)
    if user is None or user.target not in _ADDITIONS or user.kwargs or len(user.args) != 2:
        return None
    if user.target is operator.iadd and user.args[0] is not node:
        return None  # it changes the other, which something else may read
    others = [source for source in user.args if source is not node]
    if len(others) != 1 or not isinstance(other := others[0], fx.Node):
        return None
    one, two = _value(node), _value(other)
    is_like = isinstance(two, Tensor) and (one.shape, one.dtype) == (two.shape, two.dtype)
    return (user, other) if is_like else None


def _may_move(node: fx.Node, tensors: Sequence[fx.Node], place: fx.Node) -> bool:
    """Whether BatchNorm computes the same at a later place: nothing on the way touches what it reads or moves."""
    users = {user for tensor in tensors for user in tensor.users}
    if (tracked := _tracked(node)) is not None:
        users |= set(tracked.all_input_nodes[0].users)
    while (node := node.next) is not place:
        if node in users or node.target is _GRAD_MODE:
            return False
    return True


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
    # Where all that it reads is, and before anything after it changes that in place.
    with graph.inserting_before(norm.joined[0] if norm.shortcut is None else norm.joined[1]):
        tensors = (norm.x, norm.shortcut, *norm.affine, *norm.running, tracked)
        output = graph.call_function(
            joined_norm.joined, (*tensors, norm.momentum, norm.eps, norm.relu)
        )
    output.meta = dict(last.meta)
    last.replace_all_uses_with(output)
    for node in reversed(norm.joined):
        graph.erase_node(node)
