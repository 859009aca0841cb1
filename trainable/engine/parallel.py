"""The objective on several ranks."""

from __future__ import annotations

import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from trainable import ranks
from trainable.distill.objective import Objective


def wrap_for_ranks(objective: Objective) -> Objective | DistributedDataParallel:
    """The objective in DDP where there are several ranks, itself where there is one."""
    if ranks.world_size() == 1:
        return objective
    # Buffers are not broadcast: they are averaged before they are used (see the loop). torch 2.14 calls
    # the same setting by another name.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    buffers: dict[str, Any] = {name: False}
    # DDP rebuilds its buckets after a process's first backward, and its first backward rounds otherwise
    # where gradients are views of the buckets: with three ranks a resumed trial would end in other bits.
    # Looking for unused parameters (there are none) keeps the buckets as they are.
    return DistributedDataParallel(objective, find_unused_parameters=True, **buffers)
