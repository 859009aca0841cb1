"""Two processes with a GPU each, joined by NCCL, that end in time and say where they hang."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS, LIMIT_S = 2, 150
"""A process that is not through by then writes where its threads are, and exits; so the other one is ended."""


def on_two_ranks(act: Callable[[torch.device, Path], Any], folder: Path) -> list[Any]:
    """What a function of a module gives on each rank, after the process group was taken down."""
    mp.spawn(_rank, (act, folder), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _rank(rank: int, act: Callable[[torch.device, Path], Any], folder: Path) -> None:
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    device, store = torch.device("cuda", rank), f"file://{folder}/store"
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl",
        init_method=store,
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=LIMIT_S),
        device_id=device,
    )
    found = act(device, folder)
    dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")
    faulthandler.cancel_dump_traceback_later()
