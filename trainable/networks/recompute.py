"""Activation checkpointing: a block keeps its input only, and is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainable.compiled import compilable_layers
from trainable.statistics.batchnorm import batchnorm_layers


def _as_written(block: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in block:
        x = layer(x)
    return x


@compilable_layers
def apply(block: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The layers of `block` on `x`, one after the other."""
    return _as_written(block, x)


def recomputed(block: Sequence[nn.Module], x: Tensor) -> Tensor:
    """`apply`, with all that backward needs computed again there (Chen et al. 2016).

    Always as it is written: what is compiled keeps other tensors for the backward pass. Dropout draws the same
    masks again, and autocast is as it was. Running statistics take in the batch once: in the forward.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _ScratchStatistics(block)

    output: Tensor = checkpoint(
        _as_written, block, x, use_reentrant=False, preserve_rng_state=True, context_fn=contexts
    )
    return output


class _ScratchStatistics(AbstractContextManager[None]):
    """Inside, training BatchNorm layers update copies of their running statistics.

    Turning `track_running_stats` off would be simpler, but then autograd saves fewer tensors than in the
    forward, which `checkpoint` refuses. The layers' own buffers, the very tensors, are back afterwards. A
    class, because a backward with `retain_graph` enters it again.
    """

    def __init__(self, block: Sequence[nn.Module]) -> None:
        self._layers = [layer for module in block for layer in batchnorm_layers(module).values()]
        self._own: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        self._own = [
            (layer, name, buffer)
            for layer in self._layers
            if layer.training
            for name, buffer in layer.named_buffers(recurse=False)
        ]
        for layer, name, buffer in self._own:
            setattr(layer, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for layer, name, buffer in self._own:
            setattr(layer, name, buffer)
