"""Waiting for a CUDA device, as an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Inside, an operation that waits for the CUDA device raises."""
    with warnings.catch_warnings():
        # torch calls the mode a prototype, once; as an error that would leave the mode on.
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
