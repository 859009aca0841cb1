"""The student's normalisation layers: SyncBatchNorm, other settings, GroupNorm, frozen BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from trainable.config import BatchNormConfig
from trainable.errors import ConfigError, input_error
from trainable.networks.sync_batchnorm import SyncBatchNorm
from trainable.statistics.batchnorm import batchnorm_layers


def with_norms(network: nn.Module, config: BatchNormConfig, *, workers: int) -> nn.Module:
    """A freshly built network with its BatchNorm as the config has it; no random number is drawn.

    SyncBatchNorm is for several workers; one has nothing to exchange.
    """
    if config.group_norm is not None or (config.sync and workers > 1):
        key = "sync" if config.group_norm is None else "group_norm"
        _check_are_plain(network, f"train.batchnorm.{key}")
    if config.group_norm is not None:
        _replace(network, partial(_by_group_norm, groups=config.group_norm))
    elif config.sync and workers > 1:
        _replace(network, SyncBatchNorm.in_place_of)
    for layer in batchnorm_layers(network).values():
        layer.momentum = layer.momentum if config.momentum is None else config.momentum
        layer.eps = layer.eps if config.eps is None else config.eps
    return network


def _check_are_plain(network: nn.Module, path: str) -> None:
    """A layer that does more than BatchNorm, an activation say, would lose the rest."""
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in plain:
            rule = f"replaces BatchNorm layers, and {name} is a {type(module).__name__}, which does more"
            raise input_error(ConfigError, path, rule, "remove it, or choose another student.model")


def freeze_batchnorm(network: nn.Module) -> None:
    """Let training normalise by the running statistics, which stay; γ and β still learn.

    `train()` undoes this, so call it after.
    """
    for layer in batchnorm_layers(network).values():
        layer.eval()


def group_count(channels: int, groups: int) -> int:
    """The largest number of at most `groups` that divides `channels` and leaves two of them to a group.

    A group of one channel would be a constant where a picture has shrunk to one pixel.
    """
    most = max(1, min(groups, channels // 2))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def _by_group_norm(old: _BatchNorm, groups: int) -> nn.GroupNorm:
    """Wu and He 2018; γ and β go on as the network's own initialisation left them."""
    count = group_count(old.num_features, groups)
    new = nn.GroupNorm(count, old.num_features, affine=old.affine)
    new.weight, new.bias = old.weight, old.bias
    return new


def _replace(network: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> None:
    """Put what `make` makes of each BatchNorm in its place; a layer that stands in two places stays one."""
    made: dict[nn.Module, nn.Module] = {}
    for name, old in list(network.named_modules(remove_duplicate=False)):
        if isinstance(old, _BatchNorm):
            network.set_submodule(name, made.setdefault(old, make(old)))
