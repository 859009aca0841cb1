"""The ranks of a trial. Without a process group there is one, and nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of workers of this trial."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """In place."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def begin_sum_over_ranks(tensors: Sequence[Tensor]) -> dist.Work:
    """In place, in one exchange beside what the device does next, until it is to wait for the sums.

    The tensors are of one type, and each is dense in memory, in the same order on every rank.
    """
    group = dist.group.WORLD
    assert group is not None
    return group.allreduce_coalesced([t.as_strided((t.numel(),), (1,)) for t in tensors])


def max_over_ranks(tensor: Tensor) -> Tensor:
    """In place."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Give every rank the mean of each floating-point tensor, in place; others are left alone."""
    if world_size() == 1:
        return
    for tensor in tensors:
        if tensor.is_floating_point():
            sum_over_ranks(tensor).div_(world_size())


def barrier(device: torch.device) -> None:
    """Wait for every rank; the host too, which NCCL alone would not make wait."""
    sum_over_ranks(torch.zeros(1, device=device)).item()


def of_first_rank(number: int, device: torch.device) -> int:
    """Rank 0's number, on every rank."""
    own = torch.tensor(number if rank() == 0 else 0, dtype=torch.int64, device=device)
    return int(sum_over_ranks(own))


def on_any_rank(is_so: bool, device: torch.device) -> bool:
    """Whether something is so on one of the ranks, on every rank."""
    return bool(max_number_over_ranks(int(is_so), device)) if world_size() > 1 else is_so


def max_number_over_ranks(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers."""
    return int(max_over_ranks(torch.tensor(number, dtype=torch.int64, device=device)))
