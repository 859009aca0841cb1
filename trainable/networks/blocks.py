"""A network that is run block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trainable.networks.by_hand import is_by_hand
from trainable.networks.heads import AMSoftmax
from trainable.networks.recompute import apply, recomputed
from trainable.networks.tracing import split


class BlockNetwork(nn.Module):
    """A network that can be run block by block.

    The undivided network is the only registered submodule, so that the state dict of `network` is the
    one that other code knows; the blocks are views of it. Its layers no more work in place, where they would
    overwrite what a cut has handed out.
    """

    def __init__(
        self,
        network: nn.Module,
        cuts: Sequence[str],
        path: str = "student.cuts",
        model_path: str = "student.model",
    ) -> None:
        """Cut after the submodules `cuts`.

        ConfigError in the name of `path` where that cannot be, and of `model_path` where nothing of it can be cut.
        """
        super().__init__()
        for module in network.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        self.network = network
        self.path, self.model_path = path, model_path
        """The config keys that name its cuts and itself."""
        self.names: tuple[str, ...] = (*cuts, "head")
        """A block is called after the cut that ends it; the last one is `head`."""
        self._blocks = split(network, cuts, path, model_path)
        self._has_head = len(self._blocks[-1]) > 1
        self.projectors = nn.ModuleDict()
        self.is_to_be_folded = False
        """Whether the weights that are kept for inference hold each pair of projectors as one layer."""
        self.recompute = False
        """Activation checkpointing: keep only the blocks' inputs for the backward pass of training."""

    def project(self, projectors: nn.ModuleDict) -> None:
        """Insert those of `networks.projectors` at their cuts: the first layer ends a block, `back` begins the next."""
        self.projectors = projectors
        blocks = list(self._blocks)
        for index, layers in projectors.items():
            first, *back = layers.children()
            after = int(index) + 1
            blocks[after - 1] = (*blocks[after - 1], first)
            blocks[after] = (*back, *blocks[after])
        self._blocks = tuple(blocks)

    def projected(self, index: int) -> tuple[int, int] | None:
        """Channels of the features at a cut before and after the projector that stands there, if one does."""
        if str(index) not in self.projectors:
            return None
        weight = next(self.projectors[str(index)].parameters())
        return weight.shape[1], weight.shape[0]

    @property
    def whole(self) -> nn.Module:
        """What has all weights: the network, or with projectors this module."""
        return self if len(self.projectors) else self.network

    def train(self, mode: bool = True) -> BlockNetwork:
        """Hand-made blocks can be modules that the network does not hold."""
        for modules in self._blocks if is_by_hand(self.network) else ():
            for module in modules:
                module.train(mode)
        return super().train(mode)

    def unread_parameters(self) -> list[str]:
        """Names of the network's parameters that no block reads."""
        read = {
            id(p) for modules in self._blocks for module in modules for p in module.parameters()
        }
        trained = ((n, p) for n, p in self.network.named_parameters() if p.requires_grad)
        return [name for name, parameter in trained if id(parameter) not in read]

    def __len__(self) -> int:
        return len(self.names)

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Apply blocks start … stop − 1 to `x`."""
        for block in self._blocks[start:stop]:
            x = self._through(block, x)
        return x

    def _through(self, block: Sequence[nn.Module], x: Tensor) -> Tensor:
        is_recomputed = self.recompute and self.training and torch.is_grad_enabled()
        return recomputed(block, x) if is_recomputed else apply(block, x)

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

    @property
    def head(self) -> nn.Module | None:
        """The last layer; None for a network whose logits are no layer's output."""
        return self._blocks[-1][-1] if self._has_head else None

    def embed(self, x: Tensor) -> Tensor:
        """What the head takes: (batch, channels, height, width) → (batch, width), of most networks."""
        if self.head is None:
            raise ValueError("a network whose logits are no layer's output has no embedding")
        return self._through(self._blocks[-1][:-1], self.run(x, 0, len(self) - 1))

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits for the cross-entropy of training: with the head's margin at the label, if it has one.

        (batch, classes), (batch,) → (batch, classes); the same tensor for another head.
        """
        head = self.head
        return head.with_margin(logits, labels) if isinstance(head, AMSoftmax) else logits

    def block_modules(self) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
        """Name of each block, and the modules that it applies one after the other."""
        yield from zip(self.names, self._blocks, strict=True)

    def block_parameters(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Name and parameters of each block, in the network's order.

        One that two blocks share is the first one's, and one that no block reads the last one's.
        """
        owner: dict[int, str] = {}
        for name, modules in self.block_modules():
            for module in modules:
                for parameter in module.parameters():
                    owner.setdefault(id(parameter), name)
        for name in self.names:
            own = (p for p in self.parameters() if owner.get(id(p), "head") == name)
            yield name, list(own)
