"""Memory in which each rank's GPU has the others' leave numbers, without NCCL: for exchanges as small as BatchNorm's.

NCCL's sum of a few thousand numbers is a kernel of its own, between two of the layer's; here the layer's kernel writes
each number into the others' memory, and waits for theirs.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainable import ranks

Made = TypeVar("Made")
_log = logging.getLogger(__name__)
_MOST_RANKS = 8
"""Of a host whose GPUs reach each other's memory."""
_ALIGNED = 16
"""Words."""


class Inbox(NamedTuple):
    """Of one kind of exchange, whose kernels come one after the other on every rank (`norm_triton._place_of`)."""

    addresses: Tensor
    """(ranks,) in int64: where the inbox of each is, (2, ranks, length) words of 8 bytes, as this rank sees it."""
    numbers: Tensor
    """In int32: of the last exchange that each column of programs has ended, of which there are fewer than words."""
    memory: object
    """That of the inboxes, held as long as somebody may write there."""
    tries: int = 2**31 - 1
    """How often a kernel looks for what another rank sends, before it takes NaN for it."""


def inboxes(lengths: Sequence[int], device: torch.device) -> list[Inbox] | None:
    """For exchanges of so many words a rank; None where GPUs do not reach each other. All ranks are to ask alike.

    Waits for the device, and for the other ranks.
    """
    world = ranks.world_size()
    if not 2 <= world <= _MOST_RANKS or not _reach_each_other(device):
        return None
    gc.collect()  # memory of an earlier trial must not be given back, which waits for the device, in a capture
    spaces = [-(-length * 2 * world // _ALIGNED) * _ALIGNED for length in lengths]
    found = _agreed(lambda: _allocated(sum(spaces), device), device)
    shared = None if found is None else _agreed(lambda: _shared(found), device)
    if shared is None:
        return None
    offset = ranks.of_first_rank(shared.offset, device)
    if ranks.on_any_rank(shared.offset != offset, device):
        return None
    made: list[Inbox] = []
    start = 0
    for length, space in zip(lengths, spaces, strict=True):
        places = [base + offset + 8 * start for base in shared.bases]
        addresses = torch.tensor(places, dtype=torch.int64, device=device)
        numbers = torch.zeros(length, dtype=torch.int32, device=device)
        made.append(Inbox(addresses, numbers, shared.memory))
        start += space
    ranks.barrier(device)  # everybody's is empty before anybody writes
    return made


def _reach_each_other(device: torch.device) -> bool:
    """Whether the ranks are on one host, whose GPUs do, as far as this process sees them."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    own = (socket.gethostname(), boot.read_text() if boot.exists() else "")
    others: list[Any] = [None] * ranks.world_size()
    dist.all_gather_object(others, (own, device.index))
    seen = range(torch.cuda.device_count())
    return not ranks.on_any_rank(
        any(host != own for host, _ in others)
        or any(
            index in seen and not torch.cuda.can_device_access_peer(device, index)
            for _, index in others
            if index != device.index
        ),
        device,
    )


def _agreed(make: Callable[[], Made], device: torch.device) -> Made | None:
    """None on every rank if one of them could not."""
    made, reason = None, ""
    try:
        made = make()
    except Exception as error:  # of a driver or a container: each has its own
        reason = f"{type(error).__name__}: {error}"
        _log.warning("SyncBatchNorm exchanges by NCCL: %s", reason)
    return None if ranks.on_any_rank(bool(reason), device) else made


class _Shared(NamedTuple):
    memory: object
    bases: list[int]
    """Where this rank sees the block of each."""
    offset: int
    """Of the memory in its block."""


def _allocated(words: int, device: torch.device) -> Tensor:
    """Empty memory of this rank, of a kind that others can reach."""
    import torch.distributed._symmetric_memory as symmetric

    memory = symmetric.empty(words, dtype=torch.int64, device=device)
    memory.zero_()
    torch.cuda.synchronize(device)
    return memory


def _shared(memory: Tensor) -> _Shared:
    """The same of all ranks, which are to ask together."""
    import torch.distributed._symmetric_memory as symmetric

    # Rendezvous would make an object for NVLink's multicast as well, which not every machine has.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    group = dist.group.WORLD
    assert group is not None
    handle = symmetric.rendezvous(memory, group)
    pointers: list[int] = handle.buffer_ptrs
    offset = memory.data_ptr() - pointers[ranks.rank()]
    if not all(pointers) or not 0 <= offset < handle.buffer_size:
        raise RuntimeError("symmetric memory is not where its handle says")
    return _Shared((memory, handle), pointers, offset)
