"""Taking batches from a loader, and telling how long the device had nothing to do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from trainable.data.loaders import Batch
from trainable.engine.failures import Progress


class Reading:
    """Keeps `Progress.waited`.

    A CPU waits from the moment that a batch is asked for until it is there. A CUDA device has been given its work
    by then and may have plenty left: it waits from the end of that work until the batch, as its own clock tells.
    """

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self._progress, self._is_cuda = progress, device.type == "cuda"
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, each read when it is asked for."""
        while True:
            self._progress.doing = "reading pictures"
            asked = _now() if self._is_cuda else time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if isinstance(asked, torch.cuda.Event):
                self._waits.append((asked, _now()))
            else:
                self._progress.waited += time.perf_counter() - asked
            yield batch

    def settle(self) -> None:
        """Bring `Progress.waited` up to date; waits for a CUDA device."""
        if self._waits:
            self._waits[-1][1].synchronize()
        self._progress.waited += sum(a.elapsed_time(b) for a, b in self._waits) / 1000
        self._waits.clear()


def _now() -> torch.cuda.Event:
    """A point in the order of the device's work."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
