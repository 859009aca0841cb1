"""BatchNorm in the weights of the convolution before it.

In eval mode BatchNorm is y·s + β − μ·s with s = γ/√(σ² + eps), from its running mean μ and variance σ². After a
convolution w∗x + b that is a convolution again: (s·w)∗x + (b − μ)·s + β.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from trainable.networks.blocks import BlockNetwork
from trainable.networks.record import Record
from trainable.statistics.batchnorm import batchnorm_layers

aten = torch.ops.aten

_TRAINED = (aten.cudnn_batch_norm.default, aten.native_batch_norm.default)
_NORMS = (
    *_TRAINED,
    aten._native_batch_norm_legit_no_training.default,
    aten._batch_norm_no_update.default,
)
"""BatchNorm's operators take its input, γ, β, μ, σ², in the first two whether it trains, momentum and eps."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Convolution(NamedTuple):
    """An ordinary convolution of constant weights in a record."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: Any
    padding: Any
    dilation: Any
    groups: int

    @property
    def is_taken_once(self) -> bool:
        """Whether one operation alone takes its output."""
        return len(self.node.users) == 1


class Pair(NamedTuple):
    """A convolution, and the BatchNorm in eval mode that alone takes its output."""

    convolution: Convolution
    norm: fx.Node
    gamma: fx.Node | None
    beta: fx.Node | None
    mean: fx.Node
    variance: fx.Node
    eps: float


def convolution_of(node: Any) -> Convolution | None:
    """The convolution that a node is, if it is one."""
    if not isinstance(node, fx.Node) or node.target is not aten.convolution.default:
        return None
    args: tuple[Any, ...] = node.args
    x, weight, bias, stride, padding, dilation, is_transposed, _, groups = args
    if is_transposed or any(n is not None and n.op != "get_attr" for n in (weight, bias)):
        return None
    return Convolution(node, x, weight, bias, stride, padding, dilation, groups)


def pairs(record: Record) -> Iterator[Pair]:
    """All that a forward has, in their order."""
    for norm in record.nodes():
        args: tuple[Any, ...] = norm.args
        if norm.target not in _NORMS or (norm.target in _TRAINED and args[5]):
            continue
        before, (gamma, beta, mean, variance) = convolution_of(args[0]), args[1:5]
        if before is None or not before.is_taken_once or mean is None or variance is None:
            continue
        yield Pair(before, norm, gamma, beta, mean, variance, args[-1])


class Statistics(NamedTuple):
    """What a BatchNorm computes with in eval mode, all in fp64."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float


def merged(weight: Tensor, bias: Tensor | None, norm: Statistics) -> tuple[Tensor, Tensor]:
    """Weight and bias, in fp64 as they are given, of the convolution that it is together with the BatchNorm."""
    scale = (norm.variance + norm.eps).rsqrt()
    if norm.gamma is not None:
        scale = scale * norm.gamma
    shift = -norm.mean if bias is None else bias - norm.mean
    shift = shift * scale
    if norm.beta is not None:
        shift = shift + norm.beta
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift


Named = tuple[str, str]
"""Names of a convolution and of the BatchNorm after it, as submodules of a network."""


def foldable(student: BlockNetwork, pictures: Tensor) -> tuple[Named, ...]:
    """The layers of a network in eval mode that `fold_layers` can join, in their order.

    Each must be called once, and be torch's own layer: another's forward may do more than its kind does.
    """
    with torch.no_grad():
        record = Record(lambda x: (student(x),), pictures)
    layers = {
        id(layer.weight): name
        for name, layer in student.network.named_modules()
        if type(layer) in _CONVOLUTIONS
    }
    norms = {
        id(layer.running_mean): name
        for name, layer in batchnorm_layers(student.network).items()
        if type(layer) in _BATCHNORMS
    }
    constants = [node for node in record.nodes() if node.op == "get_attr"]
    uses = Counter(id(record.value(node)) for node in constants for _ in node.users)
    found: list[Named] = []
    for pair in pairs(record):
        weight, mean = (id(record.value(node)) for node in (pair.convolution.weight, pair.mean))
        if weight in layers and mean in norms and uses[weight] == uses[mean] == 1:
            found.append((layers[weight], norms[mean]))
    return tuple(found)


def without_norms(network: nn.Module, folded: Sequence[Named]) -> nn.Module:
    """A freshly built network in the form that has the folded weights: biases, and nothing for BatchNorm."""
    for convolution, norm in folded:
        layer = network.get_submodule(convolution)
        assert isinstance(layer, _CONVOLUTIONS)
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels))
        network.set_submodule(norm, nn.Identity())
    return network


@torch.no_grad()
def fold_layers(network: nn.Module, folded: Sequence[Named]) -> dict[str, Tensor]:
    """The weights of `network` for the form without these BatchNorms, computed in fp64."""
    weights: dict[str, Tensor] = dict(network.state_dict())
    norms = batchnorm_layers(network)
    for convolution, norm in folded:
        layer = norms[norm]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        weight, bias = (_double(weights, f"{convolution}.{part}") for part in ("weight", "bias"))
        gamma, beta = (_double(weights, f"{norm}.{part}") for part in ("weight", "bias"))
        mean, variance = layer.running_mean.double(), layer.running_var.double()
        assert weight is not None
        new = merged(weight, bias, Statistics(gamma, beta, mean, variance, layer.eps))
        dtype = weights[f"{convolution}.weight"].dtype
        for part, value in zip(("weight", "bias"), new, strict=True):
            weights[f"{convolution}.{part}"] = value.to(dtype)
        weights = {n: t for n, t in weights.items() if n.rpartition(".")[0] != norm}
    return weights


def _double(weights: Mapping[str, Tensor], name: str) -> Tensor | None:
    return weights[name].double() if name in weights else None
