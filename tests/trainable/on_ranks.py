"""Functions on several ranks: processes forked from one that has imported what a trial needs."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from typing import Any

from torch.multiprocessing import start_processes


def run_on_ranks(function: Callable[..., None], *arguments: Any, ranks: int) -> None:
    """`function(rank, *arguments)` on each, to its end; an error on any is raised."""
    # They start in milliseconds; where another test began the server, they import for themselves.
    set_forkserver_preload(["trainable.engine.loop", "sklearn.datasets"])
    start_processes(function, arguments, nprocs=ranks, start_method="forkserver")
