"""The objective on several ranks."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainable import ranks
from trainable.distill.objective import Objective


def wrap_for_ranks(
    objective: Objective, *, may_skip: bool = False
) -> Objective | DistributedDataParallel:
    """The objective in DDP where there are several ranks, itself where there is one.

    Gradients are the sum over ranks, exchanged bucket by bucket while the backward pass goes on. Every method
    uses every parameter in each of its stages; a student that `may_skip` some in an update has DDP search the
    graph of each for them, and ask the other ranks.
    """
    if ranks.world_size() == 1:
        return objective
    # Buffers are not broadcast: they are averaged before they are used (see the loop). torch 2.14 calls
    # the same setting by another name.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {name: False, "find_unused_parameters": may_skip}
    # Not static_graph: it aborts under no_sync, and StableKD's stages change the graph.
    parallel = DistributedDataParallel(objective, gradient_as_bucket_view=True, **settings)
    parallel.register_comm_hook(None, _sum)
    _settle_buckets(parallel, objective)
    return parallel


# DDP's own exchange gives the mean, which it rounds in two ways: a gradient that is no view of its bucket yet, as
# in a process's first update, is multiplied by 1/ranks, and later ones are divided by the ranks. With three
# ranks a resumed trial would end in other bits. Without annotations, since DDP refuses those that are strings.
def _sum(state, bucket):  # type: ignore[no-untyped-def]
    """DDP's hook: the future sum of a bucket of gradients over the ranks."""
    del state
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(_first)


def _first(future: torch.futures.Future[list[Tensor]]) -> Tensor:
    return future.value()[0]


def _settle_buckets(parallel: DistributedDataParallel, objective: Objective) -> None:
    """Have DDP order its buckets now, and not by the first update's gradients.

    It fills them anew, once, in the order in which its first backward pass made gradients. That would be
    another in a process that goes on in a later stage, and what stands elsewhere in a bucket is summed over
    three ranks in another order. So the first backward pass is one of nothing, from the last parameter to the
    first, as most passes go.
    """
    parameters = [p for p in objective.parameters() if p.requires_grad]
    objective.forward = lambda: torch.stack([p.sum() for p in parameters]).sum()  # type: ignore[method-assign]
    parallel().backward()
    del objective.forward  # the class's own is back
    for parameter in parameters:
        parameter.grad = None
