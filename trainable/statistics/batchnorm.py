"""The state of BatchNorm: running against batch statistics."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

DEAD_VARIANCE = 1e-12
"""A channel whose running variance is at most this says nothing any more."""

_RUNNING = ("running_mean", "running_var")


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


class _Averaging:
    """BatchNorm that normalises by each batch, its running statistics the mean of the batches'."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = batchnorm_layers(network)

    def __bool__(self) -> bool:
        return bool(self._layers)

    def next_batch(self, number: int) -> None:
        """Announce batch `number`, from 1, so that the mean over batches weighs each alike."""
        for layer in self._layers:
            if number == 1:
                layer.reset_running_stats()
            layer.momentum = 1.0 / number

    @contextmanager
    def _averaging(self) -> Generator[list[dict[str, Tensor]]]:
        """Gives the buffers as they were.

        In the end all but the running statistics is as before, and after an error they are too.
        """
        modes = [(layer.training, layer.momentum) for layer in self._layers]
        saved = [
            {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}
            for layer in self._layers
        ]
        for layer in self._layers:
            layer.train()
        try:
            yield saved
        except BaseException:
            self._restore(saved, _RUNNING)
            raise
        finally:
            self._restore(saved, ("num_batches_tracked",))
            for layer, (training, momentum) in zip(self._layers, modes, strict=True):
                layer.train(training)
                layer.momentum = momentum

    def _restore(self, saved: list[dict[str, Tensor]], names: Sequence[str]) -> None:
        """In place: the guard's buffers are views of one tensor."""
        for layer, buffers in zip(self._layers, saved, strict=True):
            for name in names:
                layer.get_buffer(name).copy_(buffers[name])


class Recalibration(_Averaging):
    """Running statistics measured anew, on the weights as they are (Wu and Johnson 2021, PreciseBN).

    They become the mean over batches of the batches' means and (unbiased) variances, those of this rank.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._network = network

    @contextmanager
    def measure(self) -> Generator[None]:
        """Announce and run training batches inside: without gradient, and with dropout off.

        Modes, momentum and `num_batches_tracked` are as before when it ends; without a batch, or after an
        error, so are the running statistics.
        """
        modes = [(module, module.training) for module in self._network.modules()]
        self._network.eval()
        try:
            with torch.no_grad(), self._averaging():
                yield
        finally:
            for module, training in modes:
                module.training = training


class BatchStatistics(_Averaging):
    """BatchNorm that normalises by each batch, and averages the batches' statistics beside.

    Inside `measure` the layers use the statistics of the batch that they see; the running statistics,
    and all else, are as before when it ends.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._drift = 0.0

    @property
    def drift(self) -> float:
        """Mean over layers and channels of |running mean − mean of the batches| / √(running variance + eps)."""
        return self._drift

    @contextmanager
    def measure(self) -> Generator[None]:
        with self._averaging() as saved:
            yield
            self._drift = self._measure_drift(saved)
            self._restore(saved, _RUNNING)

    def _measure_drift(self, running: list[dict[str, Tensor]]) -> float:
        distances = [
            (old["running_mean"] - layer.get_buffer("running_mean")).abs()
            / (old["running_var"] + layer.eps).sqrt()
            for layer, old in zip(self._layers, running, strict=True)
        ]
        return float(torch.cat(distances).mean())


def _var(layer: _BatchNorm) -> Tensor:
    return layer.get_buffer("running_var")
