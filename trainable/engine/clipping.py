"""Bounding the gradient of an update, after unscaling and on what the ranks have reduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainable.config import TrainConfig
from trainable.statistics import foreach

Clip = Callable[[Sequence[Tensor], Tensor], Tensor]
"""(gradients, their 2-norms) → 1.0 if any was bounded, which is done in place, else 0.0: () on the device."""

_TINY = 1e-6
"""As in torch.nn.utils.clip_grad_norm_: keeps a gradient of zeros from a division by zero."""


def clip_of(
    config: TrainConfig, network: nn.Module, parameters: Sequence[nn.Parameter]
) -> Clip | None:
    """What `train.clip` and `train.clip_by` ask for; None where nothing is clipped.

    The gradients will be those of these parameters of the network, in this order.
    """
    if config.clip is None:
        return None
    match config.clip_by:
        case "norm":
            return _ByNorm(config.clip)
        case "value":
            return _ByValue(config.clip)
        case "layer":
            return _ByLayer(config.clip, network, parameters)


class _ByNorm:
    """g ← g · min(1, c / ‖g‖₂) over the whole gradient (Pascanu et al. 2013)."""

    def __init__(self, bound: float) -> None:
        self._bound = bound

    def __call__(self, gradients: Sequence[Tensor], norms: Tensor) -> Tensor:
        factor = (self._bound / (norms.norm() + _TINY)).clamp(max=1.0)
        foreach.multiply_(gradients, factor)
        return (factor < 1).to(torch.float32)


class _ByValue:
    """g_i ← min(c, max(−c, g_i)) for each element."""

    def __init__(self, bound: float) -> None:
        self._bound = bound

    def __call__(self, gradients: Sequence[Tensor], norms: Tensor) -> Tensor:
        del norms
        largest = torch.stack(foreach.norms(gradients, torch.inf)).amax()
        foreach.clamp_(gradients, self._bound)
        return (largest > self._bound).to(torch.float32)


class _ByLayer:
    """g_l ← g_l · min(1, c / ‖g_l‖₂) for each layer l: the parameters that one module holds itself."""

    def __init__(
        self, bound: float, network: nn.Module, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._bound = bound
        layer_of = {
            id(parameter): number
            for number, module in enumerate(network.modules())
            for parameter in module.parameters(recurse=False)
        }
        layers = [layer_of[id(parameter)] for parameter in parameters]
        same = [[float(one == other) for other in layers] for one in layers]
        self._same_layer = torch.tensor(same, device=parameters[0].device)
        """(parameters, parameters): 1 where two belong to one layer."""

    def __call__(self, gradients: Sequence[Tensor], norms: Tensor) -> Tensor:
        layers = (self._same_layer @ norms.square()).sqrt()
        factors = (self._bound / (layers + _TINY)).clamp(max=1.0)
        foreach.multiply_each_(gradients, factors.unbind())
        return (factors < 1).any().to(torch.float32)
