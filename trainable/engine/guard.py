"""The non-finite guard: a bad update leaves no trace.

GradScaler skips the optimizer when a gradient is not finite, but BatchNorm has by then taken the bad
activations into its running statistics, for good. The guard undoes that too, on every rank, without
waiting for the device: the verdict is a tensor, and everything that depends on it is masked by it.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]


class Guard:
    """Watches the updates of one student, whose buffers must keep their device and type from now on."""

    def __init__(self, module: nn.Module) -> None:
        self._live = [_pool(buffers) for buffers in _statistics(module)]
        self._saved = [pool.clone() for pool in self._live]

    def remember(self) -> None:
        """Keep the running statistics as they are before an update."""
        for saved, live in zip(self._saved, self._live, strict=True):
            saved.copy_(live)

    def largest(self, like: Tensor) -> Tensor:
        """The largest size of a running statistic, (), or NaN where one is; of the type and device of `like`.

        A variance can overflow while loss and gradient stay finite, and would then make its layer say
        nothing for good.
        """
        floating = [live for live in self._live if live.is_floating_point()]
        sizes = [torch.linalg.vector_norm(live, torch.inf).to(like) for live in floating]
        return reduce(torch.maximum, sizes) if sizes else like

    def restore(self, bad: Tensor) -> None:
        """Bring the running statistics back if `bad` is true."""
        for saved, live in zip(self._saved, self._live, strict=True):
            torch.where(bad, saved, live, out=live)


class _Buffer:
    """One running statistic: where it lives."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    @property
    def tensor(self) -> Tensor:
        return self.module.get_buffer(self.name)


def _statistics(module: nn.Module) -> list[list[_Buffer]]:
    """The running statistics of every BatchNorm, by data type."""
    by_type: dict[torch.dtype, list[_Buffer]] = {}
    for layer in module.modules():
        if isinstance(layer, _NormBase):
            for name, tensor in layer.named_buffers(recurse=False):
                by_type.setdefault(tensor.dtype, []).append(_Buffer(layer, name))
    return list(by_type.values())


def _pool(buffers: list[_Buffer]) -> Tensor:
    """Move the buffers into one tensor, so that all of them are saved or restored by one kernel.

    Each begins at a whole number of 16 bytes, with zeros before it: Inductor copies what does not lie so.
    """
    lanes = 16 // buffers[0].tensor.element_size()
    spaces = [-(-buffer.tensor.numel() // lanes) * lanes for buffer in buffers]
    pool = buffers[0].tensor.new_zeros(sum(spaces))
    for buffer, space in zip(buffers, pool.split(spaces), strict=True):
        old = buffer.tensor
        buffer.module.register_buffer(buffer.name, space[: old.numel()].view(old.shape).copy_(old))
    return pool
