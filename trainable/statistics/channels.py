"""What BatchNorm's channels are like: variances, scales, and which say nothing any more."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode

from trainable import ranks, records
from trainable.statistics.batchnorm import batchnorm_layers

DEAD_VARIANCE = 1e-12
"""A channel whose running variance is at most this says nothing any more."""

_SILENT_UP_TO: dict[Any, float] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), 0.0),
    F.relu6: 0.0,
    F.hardtanh: 0.0,  # which nn.ReLU6 calls
    F.hardswish: -3.0,
}
"""Activations that give 0 for every input up to a bound."""


class Silence:
    """Which channels of a network's BatchNorm layers have a ReLU (or ReLU6, Hardswish) that lets nothing through.

    Looked at are layers whose output such an activation takes directly. One that adds something first can
    revive a channel, and smooth activations are never quite silent.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = batchnorm_layers(network)
        self._last: tuple[str, Tensor, int] | None = None
        """The layer that ran last, its output, and the version that this was: `+=` makes another one."""
        self._largest: dict[str, Tensor] = {}

    @contextmanager
    def watch(self) -> Generator[None]:
        """Run pictures through the network inside, in eval mode and without gradient."""
        if not self._layers:
            yield
            return
        hooks = [layer.register_forward_hook(self._hook(n)) for n, layer in self._layers.items()]
        try:
            with _Activations(self._see):
                yield
        finally:
            self._last = None
            for hook in hooks:
                hook.remove()

    def channels(self) -> dict[str, Tensor]:
        """By layer: (channels,), true where no picture of any rank got through; called by every rank."""
        if not self._largest:
            return {}
        joined = ranks.max_over_ranks(torch.cat(list(self._largest.values()))) <= 0
        parts = joined.split([len(largest) for largest in self._largest.values()])
        return dict(zip(self._largest, parts, strict=True))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def remember(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._last = (name, output, output._version)

        return remember

    def _see(self, taken: Tensor, bound: float) -> None:
        if self._last is None:
            return
        name, output, version = self._last
        if taken is not output or taken._version != version:
            return
        others = [dimension for dimension in range(output.dim()) if dimension != 1]
        # A rank without pictures still takes part in every exchange.
        nothing = output.new_full((output.shape[1],), -torch.inf)
        now = (output.amax(others) if len(output) else nothing).float() - bound
        before = self._largest.get(name)
        self._largest[name] = now if before is None else before.maximum(now)
        self._last = None


class _Activations(TorchFunctionMode):
    """Tells of the input of every activation that can be silent, and the bound up to which it is."""

    def __init__(self, see: Callable[[Tensor, float], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func in _SILENT_UP_TO and (func is not F.hardtanh or named.get("min_val") == 0):
            self._see(args[0] if args else named["input"], _SILENT_UP_TO[func])
        return func(*args, **named)


def channel_state(
    network: nn.Module, silent: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """`bn/min_var`, `bn/dead_channels`, … of the whole network and by layer; empty without BatchNorm.

    `silent` are the channels that `Silence` found.
    """
    found = batchnorm_layers(network)
    if not found:
        return {}, {}
    table = torch.stack([_state(layer, silent.get(name)) for name, layer in found.items()]).tolist()
    layers = {
        name: dict(zip(_STATE, row, strict=True)) for name, row in zip(found, table, strict=True)
    }
    dead = sum(state[records.BN_DEAD_CHANNELS] for state in layers.values())
    channels = sum(layer.num_features for layer in found.values())
    whole = {
        records.BN_MIN_VAR: min(state[records.BN_MIN_VAR] for state in layers.values()),
        records.BN_DEAD_CHANNELS: dead,
        records.BN_DEAD_SHARE: dead / channels,
        records.BN_MIN_SCALE: min(state[records.BN_MIN_SCALE] for state in layers.values()),
        records.BN_MAX_SCALE: max(state[records.BN_MAX_SCALE] for state in layers.values()),
    }
    return whole, layers


_STATE: tuple[str, ...] = (
    records.BN_MIN_VAR,
    records.BN_DEAD_CHANNELS,
    records.BN_DEAD_SHARE,
    records.BN_MIN_SCALE,
    records.BN_MAX_SCALE,
)


def _state(layer: _BatchNorm, silent: Tensor | None) -> Tensor:
    """What `_STATE` names, of one layer."""
    variance = layer.get_buffer("running_var")
    scale = (variance + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight.detach().abs()
    dead = variance <= DEAD_VARIANCE
    dead = dead if silent is None else dead | silent
    parts = (variance.min(), dead.sum(), dead.float().mean(), scale.min(), scale.max())
    return torch.stack([part.float() for part in parts])
