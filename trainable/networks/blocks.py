"""Cutting a network into consecutive blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.errors import ConfigError, input_error
from trainable.networks.heads import AMSoftmax
from trainable.networks.recompute import apply, recomputed


@dataclass(frozen=True)
class Layers:
    """A network as a chain: `network(x)` equals its layers applied one after the other."""

    network: nn.Module
    chain: tuple[tuple[str, nn.Module], ...]
    """Name and module of each layer, in order; modules without parameters may be outside `network`."""
    cuts: tuple[str, ...]
    """Layers after which the network is cut unless the config says otherwise."""


class BlockNetwork(nn.Module):
    """A network that can be run block by block.

    The undivided network is the only registered submodule, so that the state dict of `network` is the
    one that other code knows; the blocks are views of it.
    """

    def __init__(self, layers: Layers, cuts: Sequence[str] | None = None) -> None:
        super().__init__()
        cuts = tuple(layers.cuts if cuts is None else cuts)
        _check_cuts(layers, cuts)
        self.network = layers.network
        self.names: tuple[str, ...] = (*cuts, "head")
        """A block is called after the cut that ends it; the last one is `head`."""
        self._blocks = _split(layers.chain, cuts)
        self.recompute = False
        """Activation checkpointing: keep only the blocks' inputs for the backward pass of training."""

    def __len__(self) -> int:
        return len(self.names)

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Apply blocks start … stop − 1 to `x`."""
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        for block in self._blocks[start:stop]:
            x = recomputed(block, x) if recompute else apply(block, x)
        return x

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The output of every block, the logits last."""
        outputs: list[Tensor] = []
        for index in range(len(self)):
            x = self.run(x, index, index + 1)
            outputs.append(x)
        return tuple(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures: (batch, channels, height, width) → (batch, classes)."""
        return self.run(x, 0, len(self))

    def embed(self, x: Tensor) -> Tensor:
        """What the last layer takes: (batch, channels, height, width) → (batch, width)."""
        return apply(self._blocks[-1][:-1], self.run(x, 0, len(self) - 1))

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits for the cross-entropy of training: with the head's margin at the label, if it has one.

        (batch, classes), (batch,) → (batch, classes); the same tensor for a linear head.
        """
        head = self._blocks[-1][-1]
        return head.with_margin(logits, labels) if isinstance(head, AMSoftmax) else logits

    def block_modules(self) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
        """Name and layers of each block."""
        yield from zip(self.names, self._blocks, strict=True)

    def block_parameters(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Name and parameters of each block, in the network's order."""
        for name, modules in self.block_modules():
            yield name, [p for module in modules for p in module.parameters()]


def _split(
    chain: Sequence[tuple[str, nn.Module]], cuts: Sequence[str]
) -> tuple[tuple[nn.Module, ...], ...]:
    blocks: list[tuple[nn.Module, ...]] = []
    current: list[nn.Module] = []
    for name, module in chain:
        current.append(module)
        if name in cuts:
            blocks.append(tuple(current))
            current = []
    return (*blocks, tuple(current))


def _check_cuts(layers: Layers, cuts: tuple[str, ...]) -> None:
    names = [name for name, _ in layers.chain]
    unknown = [cut for cut in cuts if cut not in names[:-1]]
    if unknown:
        raise input_error(
            ConfigError,
            "student.cuts",
            "must name layers of both networks before the last one",
            f"choose from {', '.join(names[:-1])}",
            ", ".join(unknown),
        )
    if list(cuts) != [name for name in names if name in cuts]:
        raise input_error(
            ConfigError,
            "student.cuts",
            "must be in the network's order, each once",
            f"the order is {', '.join(name for name in names if name in cuts)}",
            ", ".join(cuts),
        )
