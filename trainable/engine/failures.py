"""What stops a trial, in words that reach whoever waits for it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from trainable import ranks
from trainable.config import TrialConfig
from trainable.errors import KdStudyError, Problem, TrainingError

_GIB = 2**30


@dataclass
class Progress:
    """Where a trial is: what an error is told with, and where a checkpoint goes on."""

    epoch: int = 0
    """Counted from 1; 0 before the first."""
    update: int = 0
    """Of the epoch, counted from 1: the one that it is in, or was in last."""
    done: int = 0
    """Updates of the epoch that are done."""
    seconds: float = 0.0
    """That they took, in all processes."""
    doing: str = "setting up networks and data"

    def __str__(self) -> str:
        return f"epoch {self.epoch}, update {self.update}" if self.epoch else "before epoch 1"


@contextmanager
def explained(progress: Progress, config: TrialConfig, device: torch.device) -> Generator[None]:
    """Any error in this block comes out as TrainingError with rank, epoch, update and what was tried.

    Errors that the product raises on purpose come out as they are.
    """
    try:
        yield
    except KdStudyError:
        raise
    except Exception as error:
        place = f"rank {ranks.rank()}, {progress}"
        if _is_out_of_memory(error):
            raise TrainingError(_memory_problem(place, progress.doing, config, device)) from error
        text = f"{type(error).__name__}: {error} ({place}, {progress.doing})"
        raise TrainingError(text) from error


def _memory_problem(place: str, doing: str, config: TrialConfig, device: torch.device) -> str:
    used = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.max_memory_allocated(device) / _GIB
        used = (
            f"; at most {own:.1f} GiB of its own, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        )
    problem = Problem(
        f"{place}: out of memory on {device}",
        f"{doing} must fit into memory{used}",
        _remedies(config),
    )
    return str(problem)


def _remedies(config: TrialConfig) -> str:
    """The settings that trade time or precision for memory, without those that are on already."""
    train = config.train
    remedies = [
        f"raise train.accumulate (now {train.accumulate}: smaller micro-batches, the same update)"
    ]
    if not train.activation_checkpointing:
        remedies.append("set train.activation_checkpointing: true")
    if train.precision not in ("bf16", "fp16"):
        remedies.append(f"use train.precision: bf16 (now {train.precision})")
    return ", or ".join(remedies)


def _is_out_of_memory(error: Exception) -> bool:
    """Also of the CPU, whose allocator raises a plain RuntimeError."""
    known = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, known) or "can't allocate memory" in str(error)
