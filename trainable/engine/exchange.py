"""What the ranks of a trial share: the first weights, and in every update the sum of their gradients."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainable import ranks
from trainable.engine.apart import take_away

# Not torch's DistributedDataParallel: a CUDA graph can hold its backward pass only after eleven that are eager,
# each of which waits for the device to tell of its times, and if it was made in the stream of the capture. Its
# buckets are filled in the order of the first gradients, which is another in a process that goes on in a later
# stage, and then three ranks sum in another order.

_BUCKET_BYTES = 25 * 2**20
"""A bucket is full with so many. cuDNN's BatchNorm needs the whole GPU and does not begin while something is sent, so
that there had better be few sends, at the links' full rate."""
_LAST_BYTES = 2**20
"""At most so many are sent when the backward pass is over: the first parameters', behind which nothing hides."""


class Exchange:
    """Sums gradients over the ranks, bucket by bucket while the backward pass goes on.

    Buckets go from the last parameter to the first, as most backward passes do, and are sent in that order,
    whichever is complete first: all ranks exchange the same in one order, in every process, stage and update. All
    work is queued on the device, so that a CUDA graph can hold it. One rank has no buckets.

    Where layers exchange something of their own in the backward pass (SyncBatchNorm), no rank may leave a parameter
    out that another uses: its buckets would be sent before, and the other's after.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """`parameters` keep their place and layout in memory from now on."""
        several = ranks.world_size() > 1
        self._buckets = [_Bucket(own) for own in _shared_out(parameters)] if several else []
        self._sent: list[dist.Work] = []

    @contextmanager
    def at_work(self) -> Generator[None]:
        """Around the backward pass of an update's last micro-batch: buckets are sent as they are complete."""
        missing = [{id(p) for p in bucket.parameters} for bucket in self._buckets]

        def arrived(number: int, parameter: Tensor) -> None:
            if id(parameter) not in missing[number]:
                raise RuntimeError("a backward pass must give each parameter one gradient, got two")
            missing[number].remove(id(parameter))
            self._buckets[number].note_stream()
            while (done := len(self._sent)) < len(missing) and not missing[done]:
                self._send()

        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(arrived, number))
            for number, bucket in enumerate(self._buckets)
            for parameter in bucket.parameters
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> None:
        """Send what is left, and have the current stream wait: every gradient is then the sum over the ranks.

        Each parameter has a gradient by now, one that took no part zeros.
        """
        while len(self._sent) < len(self._buckets):
            self._send()
        for work in self._sent:
            work.wait()
        self._sent = []

    def abandon(self) -> None:
        """Forget what was sent, none of which ran on the device."""
        self._sent = []
        for bucket in self._buckets:
            bucket.forget()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        self._sent.append(ranks.begin_sum_over_ranks(bucket.gradients()))


class _Bucket:
    """Parameters whose gradients are summed together, each where its backward pass left it, or in a copy."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._streams: set[torch.cuda.Stream] = set()
        """Other ones than that of the last gradient may have made the rest (`branches`)."""

    def note_stream(self) -> None:
        """A gradient has been made in the current stream."""
        if self.parameters[0].is_cuda:
            self._streams.add(torch.cuda.current_stream())

    def forget(self) -> None:
        """What gradients there are were not made after all."""
        self._streams.clear()

    def gradients(self) -> list[Tensor]:
        """One of each parameter, in memory that nothing else holds, for the current stream."""
        if self._streams:
            current = torch.cuda.current_stream()
            for stream in self._streams - {current}:
                current.wait_stream(stream)
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.record_stream(current)  # its own stream must not write there yet
        self._streams.clear()
        return take_away(self.parameters)


def _shared_out(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters of each bucket, in the order in which they are sent."""
    ends = accumulate(p.numel() * p.element_size() for p in parameters)
    first = sum(end <= _LAST_BYTES for end in ends)
    yield from _filled(reversed(parameters[first:]))
    yield from _filled(reversed(parameters[:first]))


def _filled(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        held = sum(p.numel() * p.element_size() for p in bucket)
        if bucket and (held >= _BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


@torch.no_grad()
def begin_alike(module: nn.Module) -> None:
    """Give every rank the first one's parameters and buffers: a person's own network may draw them as it likes."""
    if ranks.world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        first = tensor.contiguous()
        dist.broadcast(first, 0)
        tensor.copy_(first)
