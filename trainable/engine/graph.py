"""Launching the kernels of an update at once, as a CUDA graph.

A function of device tensors that returns nothing, waits for nothing, decides nothing on the host, and keeps all that
outlives it where it lies in memory can be captured while it runs, and replayed: the host then launches one graph in
place of thousands of kernels.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from trainable import ranks
from trainable.engine.randomness import host_states

Function = Callable[[Sequence[Tensor]], None]
_log = logging.getLogger(__name__)

_EAGER = 2
"""Calls that run kernel by kernel first: in the first, cuDNN chooses its algorithms, and tensors that stay get their
place in memory; the second is watched."""
_IS_TIDY = torch.__version__ >= "2.13"  # by its numbers
"""torch itself undoes a capture that it cannot end."""
_END_ALLOCATING = torch._C._cuda_endAllocateToPool  # pyright: ignore[reportPrivateUsage]
_RELEASE = torch._C._cuda_releasePool  # pyright: ignore[reportPrivateUsage]
_WAITS, _PROTOTYPE = "called a synchronizing CUDA operation", "Synchronization debug mode is"
"""In torch's warnings: of a wait, and of the mode that finds it."""


class Graphs:
    """Calls a function, from the third call on by a graph for each kind of call.

    All calls have inputs of the same shapes and types. Calls of one kind do the same on the host: whatever a call
    depends on beside its inputs and what lies on the device, its kind must tell. A function that waits for the device
    or draws random numbers on the host is not captured: the reason is logged once, and it runs kernel by kernel.

    All ranks make the same calls, and the function may exchange something between them. It is captured on all of them
    or on none (NCCL asks for that), and replayed on all or none, since after the watched call and after each capture
    they ask one another how it went.
    """

    def __init__(self, abandon: Callable[[], None]) -> None:
        """`abandon` brings the host's side back to where it was before a call that broke off while captured."""
        self._abandon = abandon
        self._calls = 0
        self._refusal: str | None = None
        self._graphs: dict[Hashable, Any] = {}
        self._inputs: list[Tensor] = []
        """What the graphs read; filled before each replay."""
        self._pool: Any = None
        """Memory that the graphs share: they run one after the other."""

    def call(self, kind: Hashable, function: Function, inputs: Sequence[Tensor]) -> None:
        """The function on these inputs, on the current stream."""
        if kind not in self._graphs and self._calls >= _EAGER and self._refusal is None:
            self._capture(kind, function, inputs)
        self._calls += 1
        if kind in self._graphs:
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            self._graphs[kind].replay()
        elif self._calls == _EAGER and self._refusal is None:
            with _watched() as seen:
                function(inputs)
            self._refuse(seen, inputs[0].device)
        else:
            function(inputs)

    def forget(self) -> None:
        """Capture anew, after a change of what the function does; the graphs' memory is given back."""
        self._calls = 0
        self._graphs.clear()
        self._inputs.clear()
        self._pool = None

    def _capture(self, kind: Hashable, function: Function, inputs: Sequence[Tensor]) -> None:
        stream, broke = torch.cuda.current_stream(), list[str]()
        graph = torch.cuda.CUDAGraph()
        try:
            self._inputs = self._inputs or [tensor.clone() for tensor in inputs]
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            # Other threads may allocate meanwhile: pictures are pinned by one.
            with (
                _no_collection(),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                function(self._inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)
            _end(self._pool, inputs[0].device)
            broke = [str(error.__context__ or error)]
        if self._refuse(broke, inputs[0].device):
            self.forget()
            self._abandon()
        else:
            self._graphs[kind] = graph

    def _refuse(self, reasons: Sequence[str], device: torch.device) -> bool:
        """Whether a rank has a reason not to capture, which is logged: from now on none does."""
        if not ranks.on_any_rank(bool(reasons), device):
            return False
        self._refusal = [*reasons, "another rank cannot be captured"][0].partition("\n")[0]
        _log.warning("updates run kernel by kernel, not as CUDA graphs: %s", self._refusal)
        return True


def _end(pool: Any, device: torch.device) -> None:
    """What torch before 2.13 leaves undone where a capture that has begun cannot be ended.

    Its allocator would take it to go on for ever: it then refuses to give memory back, and so to look for some. The
    device's own generator would refuse to draw.
    """
    if pool is None or _IS_TIDY:
        return
    with suppress(RuntimeError):  # this one was ended
        _END_ALLOCATING(device.index, pool)
        _RELEASE(device.index, pool)
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def _no_collection() -> Generator[None]:
    """Python looks for no cycles: to free what an earlier trial left in one may wait for the device."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _watched() -> Generator[list[str]]:
    """Afterwards the list has what a call inside did that a graph cannot repeat."""
    seen: list[str] = []
    before = host_states()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if any(_WAITS in str(warning.message) for warning in caught):
        seen.append("a network or method waits for the device")
    for warning in caught:
        if not any(text in str(warning.message) for text in (_WAITS, _PROTOTYPE)):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if host_states() != before:
        seen.append("a network or method draws random numbers on the host")
