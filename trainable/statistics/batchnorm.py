"""The state of BatchNorm: running against batch statistics."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

DEAD_VARIANCE = 1e-12
"""A channel whose running variance is at most this says nothing any more."""


@dataclass(frozen=True)
class BatchNormState:
    """Health of the running statistics of a network."""

    min_var: float
    dead_channels: int


def batchnorm_layers(network: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm layer that keeps running statistics."""
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, _BatchNorm) and layer.running_var is not None
    ]


def batchnorm_state(network: nn.Module) -> BatchNormState | None:
    """Smallest running variance and number of dead channels; None for a network without BatchNorm."""
    variances = [_var(layer) for layer in batchnorm_layers(network)]
    if not variances:
        return None
    joined = torch.cat(variances)
    return BatchNormState(float(joined.min()), int((joined <= DEAD_VARIANCE).sum()))


class BatchStatistics:
    """BatchNorm that normalises by each batch, and averages the batches' statistics beside.

    Inside `measure` the layers use the statistics of the batch that they see; the running statistics,
    and all else, are as before when it ends.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = batchnorm_layers(network)
        self._drift = 0.0

    def __bool__(self) -> bool:
        return bool(self._layers)

    @property
    def drift(self) -> float:
        """Mean over layers and channels of |running mean − mean of the batches| / √(running variance + eps)."""
        return self._drift

    def next_batch(self, number: int) -> None:
        """Announce batch `number`, from 1, so that the mean over batches weighs each alike."""
        for layer in self._layers:
            layer.momentum = 1.0 / number

    @contextmanager
    def measure(self) -> Generator[None]:
        saved = [
            (layer.momentum, [(n, b.clone()) for n, b in layer.named_buffers(recurse=False)])
            for layer in self._layers
        ]
        for layer in self._layers:
            layer.train()
        try:
            yield
            self._drift = self._measure_drift([dict(buffers) for _, buffers in saved])
        finally:
            for layer, (momentum, buffers) in zip(self._layers, saved, strict=True):
                layer.eval()
                layer.momentum = momentum
                for name, value in buffers:
                    layer.get_buffer(name).copy_(value)

    def _measure_drift(self, running: list[dict[str, Tensor]]) -> float:
        distances = [
            (old["running_mean"] - layer.get_buffer("running_mean")).abs()
            / (old["running_var"] + layer.eps).sqrt()
            for layer, old in zip(self._layers, running, strict=True)
        ]
        return float(torch.cat(distances).mean())


def _var(layer: _BatchNorm) -> Tensor:
    return layer.get_buffer("running_var")
