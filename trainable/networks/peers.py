"""Memory in which each rank's GPU has the others' leave numbers, without NCCL: for exchanges as small as BatchNorm's.

NCCL's sum of a few thousand numbers takes some 20 µs, most of it to begin and to agree on; a word that one GPU writes
into another's memory is there in a few.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from trainable import ranks

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


def inboxes(lengths: Sequence[int], device: torch.device) -> list[Inbox] | None:
    """For exchanges of so many words a rank; None where GPUs do not reach each other. All ranks are to ask alike.

    Waits for the device, and for the other ranks.
    """
    world = ranks.world_size()
    if not 2 <= world <= _MOST_RANKS or not _are_on_one_host():
        return None
    spaces = [-(-length * 2 * world // _ALIGNED) * _ALIGNED for length in lengths]
    memory, bases, reason = None, [0] * world, ""
    try:
        memory, bases = _allocated(sum(spaces), device)
    except Exception as error:  # of a driver or a container: each has its own
        reason = f"{type(error).__name__}: {error}"
    if ranks.on_any_rank(bool(reason), device):
        if reason:
            _log.warning("SyncBatchNorm exchanges by NCCL: %s", reason)
        return None
    found: list[Inbox] = []
    start = 0
    for length, space in zip(lengths, spaces, strict=True):
        places = [base + 8 * start for base in bases]
        addresses = torch.tensor(places, dtype=torch.int64, device=device)
        numbers = torch.zeros(length, dtype=torch.int32, device=device)
        found.append(Inbox(addresses, numbers, memory))
        start += space
    ranks.barrier(device)  # everybody's is empty before anybody writes
    return found


def _are_on_one_host() -> bool:
    boot = Path("/proc/sys/kernel/random/boot_id")
    own = (socket.gethostname(), boot.read_text() if boot.exists() else "")
    others: list[Any] = [None] * ranks.world_size()
    dist.all_gather_object(others, own)
    return all(other == own for other in others)


def _allocated(words: int, device: torch.device) -> tuple[object, list[int]]:
    """Empty memory of this rank that the others reach, and where this rank sees that of each."""
    import torch.distributed._symmetric_memory as symmetric

    # Rendezvous would make an object for NVLink's multicast as well, which not every machine has.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    memory = symmetric.empty(words, dtype=torch.int64, device=device)
    memory.zero_()
    torch.cuda.synchronize(device)
    group = dist.group.WORLD
    assert group is not None
    handle = symmetric.rendezvous(memory, group)
    bases = [base + handle.offset for base in handle.buffer_ptrs]
    if bases[ranks.rank()] != memory.data_ptr():
        raise RuntimeError("symmetric memory is not where its handle says")
    return (memory, handle), bases
