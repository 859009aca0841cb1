"""What stops a trial, in words that reach whoever waits for it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from trainable import ranks
from trainable.config import TrialConfig
from trainable.errors import KdStudyError, OutOfMemoryError, Problem, TrainingError
from trainable.memory import is_out_of_memory

TRAINING = "forward and backward"
"""How the activity begins whose memory the settings of `train` govern."""

_GIB = 2**30
_MORE_MEMORY = "let fewer trials share the device (resources.gpus_per_worker), or use a larger one"

_OF_THE_DEVICE = ("CUDA error", "CUDA driver error", "cuDNN error")
"""How PyTorch tells of a kernel or a GPU that failed; what fails for another reason says something else."""


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
    waited: float = 0.0
    """Seconds of these in which the loop waited for pictures."""
    doing: str = "setting up networks and data"

    def __str__(self) -> str:
        return f"epoch {self.epoch}, update {self.update}" if self.epoch else "before epoch 1"


@contextmanager
def explained(progress: Progress, config: TrialConfig, device: torch.device) -> Generator[None]:
    """Any error in this block comes out as TrainingError with rank, epoch, update and what was tried.

    OutOfMemoryError where that was memory. Errors that the product raises on purpose come out as they are.
    """
    try:
        yield
    except KdStudyError:
        raise
    except Exception as error:
        place = f"rank {ranks.rank()}, {progress}"
        if is_out_of_memory(error):
            doing = progress.doing
            remedy = _remedies(config, device) if doing.startswith(TRAINING) else _MORE_MEMORY
            raise _memory_error(place, doing, remedy, device) from error
        if any(words in str(error) for words in _OF_THE_DEVICE):
            raise TrainingError(_device_problem(place, progress.doing, device, error)) from error
        text = f"{type(error).__name__}: {error} ({place}, {progress.doing})"
        raise TrainingError(text) from error


@contextmanager
def memory_explained(doing: str, device: torch.device) -> Generator[None]:
    """Want of memory in this block, which is no part of training, comes out as OutOfMemoryError; the rest as it is."""
    try:
        yield
    except KdStudyError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _memory_error(f"rank {ranks.rank()}", doing, _MORE_MEMORY, device) from error


def _memory_error(place: str, doing: str, remedy: str, device: torch.device) -> OutOfMemoryError:
    used = ""
    if device.type == "cuda":
        own = torch.cuda.max_memory_reserved(device) / _GIB
        used = f"; it held {own:.1f} GiB at most"
    rule = f"{doing} must fit into memory{used}"
    return OutOfMemoryError(str(Problem(f"{place}: out of memory on {device}", rule, remedy)))


def _device_problem(place: str, doing: str, device: torch.device, error: Exception) -> str:
    """What the device said is told where it was noticed, which may be later than it happened."""
    problem = Problem(
        f"{place}: {device} failed",
        f"{doing} must end without an error of the device, but: {str(error).splitlines()[0]}",
        "if other trials fail on it, too, the GPU or its driver is at fault (`dmesg` on its node has the Xid); if not, "
        "a kernel of this trial: CUDA_LAUNCH_BLOCKING=1 shows which",
    )
    return str(problem)


def _remedies(config: TrialConfig, device: torch.device) -> str:
    """The settings that trade time or precision for memory, without those that are on already."""
    train = config.train
    remedies = [
        f"raise train.accumulate (now {train.accumulate}: smaller micro-batches, the same update)"
    ]
    if not train.activation_checkpointing:
        remedies.append("set train.activation_checkpointing: true")
    if train.precision not in ("bf16", "fp16"):
        remedies.append(f"use train.precision: bf16 (now {train.precision})")
    if train.cuda_graph and device.type == "cuda":
        remedies.append("set train.cuda_graph: false")
    return ", or ".join(remedies)
