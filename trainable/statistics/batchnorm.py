"""Running against batch statistics of BatchNorm."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

_RUNNING = ("running_mean", "running_var")


def batchnorm_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """Every BatchNorm layer that keeps running statistics, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_var is not None
    }


class _Averaging:
    """BatchNorm that normalises by each batch, its running statistics the mean of the batches'."""

    def __init__(self, network: nn.Module) -> None:
        layers = batchnorm_layers(network)
        self.names = tuple(layers)
        self._layers = list(layers.values())

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
        self.drifts = torch.zeros(0)
        """Of the mean over all layers' channels, then of each layer, in order: |running mean − mean of the
        batches| / √(running variance + eps)."""

    @contextmanager
    def measure(self) -> Generator[None]:
        with self._averaging() as saved:
            yield
            self.drifts = self._measure_drifts(saved)
            self._restore(saved, _RUNNING)

    def _measure_drifts(self, running: list[dict[str, Tensor]]) -> Tensor:
        distances = [
            (old["running_mean"] - layer.get_buffer("running_mean")).abs()
            / (old["running_var"] + layer.eps).sqrt()
            for layer, old in zip(self._layers, running, strict=True)
        ]
        return torch.stack([torch.cat(distances).mean(), *(each.mean() for each in distances)])
