"""Whole trials for the tests: run, stopped, compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainable import records
from trainable.config import TrialConfig
from trainable.engine.loop import TrialTask, run
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student, build_teacher_network
from trainable.networks.weights import save_weights
from trainable.records import EpochRecord

MakeConfig = Callable[..., TrialConfig]
CPU = torch.device("cpu")


class StoppedError(Exception):
    """As if the process died."""


def untrained_teacher(config: TrialConfig, folder: Path) -> Path:
    """A file with the weights of one, for the digits."""
    torch.manual_seed(1)
    network = build_teacher_network(config, Pictures(10, 3, (8, 8)))
    save_weights(network.network, folder / "teacher.safetensors")
    return folder / "teacher.safetensors"


def student_with_dropout(config: TrialConfig, pictures: Pictures) -> BlockNetwork:
    """In place of `build_student`: what it trains to depends on the state of the generators."""
    student = build_student(config, pictures)
    student.network.get_submodule("layer4").append(torch.nn.Dropout(0.5))
    return student


def train(
    config: TrialConfig, folder: Path, teacher: Path | None = None, device: torch.device = CPU
) -> list[EpochRecord]:
    found: list[EpochRecord] = []
    run(TrialTask(config, folder, teacher), found.append, device)
    return found


def train_and_stop(
    config: TrialConfig, folder: Path, teacher: Path | None = None, *, after: int
) -> None:
    """The trial ends as this epoch's record is told."""

    def report(record: EpochRecord) -> None:
        if record.epoch == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(TrialTask(config, folder, teacher), report, CPU)


OF_THE_MACHINE = (
    records.TRAIN_IMAGES_PER_SECOND,
    records.TRAIN_DATA_WAIT,
    records.TRAIN_SECONDS,
    records.TRAIN_PEAK_MEMORY,
    records.STUDENT_LATENCY,
)
"""Metrics that tell of the machine: all others follow from the config, to the bit."""


def numbers(found: list[EpochRecord]) -> list[dict[str, float]]:
    """All metrics but those of the machine."""
    return [{k: v for k, v in r.metrics.items() if k not in OF_THE_MACHINE} for r in found]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_equal(ours: Any, theirs: Any, path: str = "") -> None:
    """Bit for bit, and says where not."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, Tensor):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), path
        assert torch.equal(bits(ours), bits(theirs)), path
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for name in ours:
            assert_equal(ours[name], theirs[name], f"{path}.{name}")
    elif isinstance(ours, list) and path.count("python") + path.count("numpy") == 0:
        assert len(ours) == len(theirs), path
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{path}[{number}]")
    else:
        assert ours == theirs, path


def bits(tensor: Tensor) -> Tensor:
    """All of it, in bytes: NaN equals itself, and −0 is not 0."""
    return tensor.detach().reshape(-1).view(torch.uint8)
