"""BatchNorm in training with what follows it, a shortcut's addition and ReLU, in two CUDA kernels each way.

Ioffe and Szegedy 2015: y = relu((x − μ)·γ/√(σ² + ε) + β + shortcut), with the mean μ and variance σ² of each channel
over the M = batch·height·width values of x. Pictures lie channels last: x is an (M, channels) matrix. Each way
one kernel sums over it, in parts, of which the program that ends last makes the channel's numbers, and another goes
over it once more. Sums are in fp32 and in one order, so that the same input always has the same output.

cuDNN's own kernels for this wait until a whole GPU is free, and know of no addition and no ReLU.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainable import ranks
from trainable.networks import norm_triton
from trainable.networks.peers import Inbox

_kernels: Any = norm_triton  # Triton's launches, kernel[grid](…), have no types


class _Tile(NamedTuple):
    """Of the programs that sum: its rows, and how many tiles they ask for at once."""

    rows: int
    at_once: int


_SUMS, _SUMS_AND_SHORTCUT = _Tile(64, 4), _Tile(128, 2)
"""The fastest on an H100: where one or two maps are read, and where a shortcut's gradient is written too."""
_CHANNELS = 64
"""Of a tile."""
_LEAST = 128
"""Rows for a program: with fewer it takes longer to add up what all have."""
_PASS_ROWS = 32
"""Of the tile that a program of the second kernel computes."""


def statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    tracked: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """(5, channels) in fp32: mean, 1/√(variance + ε), the factor and shift that normalise, and M.

    The running statistics move towards those of `x` by `momentum`, as always the variance does so unbiased; `tracked`
    goes up by one.
    """
    m, channels, shape = _tiles(x)
    parts = torch.empty(2, shape.parts, channels, dtype=torch.float32, device=x.device)
    found = torch.empty(5, channels, dtype=torch.float32, device=x.device)
    _kernels.norm_statistics[shape.grid](
        *(x, parts, arrivals(x.device), found, weight, bias, running_mean, running_var, tracked),
        *(m, shape.rows, shape.parts, eps, momentum),
        TRACKED=tracked is not None,
        **shape.constants(channels),
    )
    return found


def statistics_over_ranks(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    inbox: Inbox | None,
) -> Tensor:
    """`statistics` of the joined batch of all ranks, which exchange mean, variance and M of each channel.

    By the `inbox` of 3·channels words that each has for it; without one by NCCL, between two kernels.
    """
    m, channels, shape = _tiles(x)
    parts = torch.empty(2, shape.parts, channels, dtype=torch.float32, device=x.device)
    if inbox is not None:
        found = torch.empty(5, channels, dtype=torch.float32, device=x.device)
        _kernels.norm_statistics_over_peers[shape.grid](
            *(x, parts, arrivals(x.device), found, weight, bias, running_mean, running_var),
            *(inbox.addresses, inbox.numbers, inbox.tries, ranks.rank(), ranks.world_size()),
            *(m, shape.rows, shape.parts, eps, momentum),
            **shape.constants(channels),
        )
        return found
    rows = torch.empty(ranks.world_size(), 2 * channels + 1, device=x.device)
    _kernels.norm_moments[shape.grid](
        *(x, parts, arrivals(x.device), rows, ranks.rank(), len(rows), m, shape.rows, shape.parts),
        **shape.constants(channels),
    )
    # A sum with zeros, which changes nothing: gathering has another name in each torch and backend.
    ranks.sum_over_ranks(rows)
    found = torch.empty(5, channels, dtype=torch.float32, device=x.device)
    _kernels.norm_join[(shape.columns,)](
        *(rows, found, weight, bias, running_mean, running_var, len(rows), eps, momentum),
        *(channels, shape.width),
    )
    return found


def normalised(x: Tensor, shortcut: Tensor | None, found: Tensor, relu: bool) -> Tensor:
    """x·factor + shift + shortcut, and its ReLU, in the type of `x`."""
    m, channels, shape = _tiles(x)
    y = torch.empty_like(x)
    _kernels.norm_output[_pass_grid(m, channels, shape)](
        *(x, shortcut, y, found, m),
        *(channels, shortcut is not None, relu, _PASS_ROWS, shape.width),
        num_warps=4,
    )
    return y


def gradients(
    x: Tensor,
    y: Tensor,
    dy: Tensor,
    found: Tensor,
    added: bool,
    relu: bool,
    over_ranks: bool = False,
    inbox: Inbox | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of `x`, of the shortcut, and (2, channels) in fp32 of γ and β; the second is empty where none was `added`.

    Those of γ and β stay this rank's, and go into that of `x` summed where statistics were taken `over_ranks`: by the
    `inbox` of 2·channels words that each rank has for it, or without one by NCCL.
    """
    m, channels, shape = _tiles(x, _SUMS_AND_SHORTCUT if added else _SUMS)
    parts = torch.empty(2, shape.parts, channels, dtype=torch.float32, device=x.device)
    of_channels = torch.empty(2, channels, dtype=torch.float32, device=x.device)
    joined = torch.empty_like(of_channels) if over_ranks else None
    of_shortcut = torch.empty_like(x) if added else x.new_empty(0)
    passed = (norm_triton.BY_OUTPUT if added else norm_triton.BY_INPUT).value if relu else 0
    _kernels.norm_gradient_sums[shape.grid](
        *(x, y, dy, of_shortcut, parts, arrivals(x.device), found, of_channels, joined),
        *((inbox.addresses, inbox.numbers, inbox.tries) if inbox is not None else (None, None, 0)),
        *(ranks.rank(), ranks.world_size(), m, shape.rows, shape.parts),
        ADDED=added,
        PASSED=passed,
        **shape.constants(channels),
    )
    sums = of_channels if joined is None else joined
    if joined is not None and inbox is None:
        ranks.sum_over_ranks(joined)
    if added:
        dy, passed = of_shortcut, 0
    dx = torch.empty_like(x)
    _kernels.norm_gradients[_pass_grid(m, channels, shape)](
        *(x, dy, dx, sums, found, m),
        *(channels, passed, _PASS_ROWS, shape.width),
        num_warps=2,
    )
    return dx, of_shortcut, of_channels


class _Shape:
    """How a matrix is divided into parts for the programs that sum over it."""

    def __init__(self, m: int, channels: int, programs: int, tile: _Tile) -> None:
        self._tile = tile
        self.width = min(_CHANNELS, max(32, 1 << (channels - 1).bit_length()))
        self.columns = _parts_of(channels, self.width)
        tiles = _parts_of(m, tile.rows)
        each = max(_parts_of(tiles, max(1, programs // self.columns)), _LEAST // tile.rows)
        self.rows = each * tile.rows
        self.parts = _parts_of(m, self.rows)
        self.grid = (self.parts, self.columns)

    def constants(self, channels: int) -> dict[str, int]:
        rows, at_once = self._tile
        sizes = {"C": channels, "ROWS": rows, "AT_ONCE": at_once, "WIDTH": self.width}
        return {**sizes, "num_warps": 8}


def _parts_of(whole: int, size: int) -> int:
    """How many of a size cover the whole."""
    return -(-whole // size)


def _tiles(x: Tensor, tile: _Tile = _SUMS) -> tuple[int, int, _Shape]:
    channels = x.shape[1]
    m = x.numel() // channels
    return m, channels, _Shape(m, channels, 2 * multiprocessors(x.device), tile)


def _pass_grid(m: int, channels: int, shape: _Shape) -> tuple[int, int]:
    return _parts_of(m, _PASS_ROWS), shape.columns


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; as many programs as run at once are a few times these."""
    if device.type != "cuda":
        return 2  # Triton's interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


_SLOTS, _SLOT = 128, 256
"""Streams that may be at work at once, and for each a count for so many columns."""


@functools.cache
def _counts(device: torch.device) -> Tensor:
    return torch.zeros(_SLOTS, _SLOT, dtype=torch.int32, device=device)


@functools.cache
def _slot(device: torch.device, stream: int) -> int:
    del stream
    _given[device] = _given.get(device, -1) + 1
    return _given[device] % _SLOTS


_given: dict[torch.device, int] = {}


def arrivals(device: torch.device) -> Tensor:
    """How many programs of a column have ended: 0 between kernels, of which one at a time runs on a stream."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _counts(device)[_slot(device, stream)]
