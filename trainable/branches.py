"""Parts of an update that do not depend on one another, beside each other: on CUDA streams of their own.

Only in an update that is captured as a CUDA graph. There a stream is nothing but a missing edge between kernels;
launched one by one, kernels come too slowly to fill a GPU from two sides, and going from stream to stream makes
the host slower still.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

Wait = Callable[[], None]
"""Has what the current stream is given from now on come after what a branch was given."""


@contextmanager
def branch(name: str) -> Generator[Wait]:
    """What is inside depends on nothing that the current stream is given from now on; it begins when this is reached.

    Branches of one name come one after the other. What is made in one may be read after its `Wait`, which has to be
    called once at least before the update ends; what is read in one must be kept until then. The backward pass of
    what is inside is a branch, too.
    """
    token = _inside.set(True)
    try:
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            yield nothing
            return
        own = _stream(name, torch.cuda.current_device())
        own.wait_stream(torch.cuda.current_stream())
        done = torch.cuda.Event()
        with torch.cuda.stream(own):
            yield lambda: torch.cuda.current_stream().wait_event(done)
            done.record()
    finally:
        _inside.reset(token)


_inside: ContextVar[bool] = ContextVar("inside a branch", default=False)


def is_inside() -> bool:
    """Whether what runs now is in a branch, or would be in an update that is captured."""
    return _inside.get()


@functools.cache
def _stream(name: str, device: int) -> torch.cuda.Stream:
    """One that stays: what is allocated in a stream is only given to the same stream again."""
    del name
    return torch.cuda.Stream(device)


def nothing() -> None:
    """There is nothing to wait for."""
