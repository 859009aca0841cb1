"""A trial whose process is killed again and again ends in the bits of one that nobody disturbed."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.trials import CPU, OF_THE_MACHINE, assert_equal, untrained_teacher
from trainable.config import TrialConfig
from trainable.engine.checkpoint import BEST, CHECKPOINTS
from trainable.engine.loop import TrialTask, run

EVERY = 3
CONFIG = TrialConfig.model_validate(
    {
        "data": {
            "source": "digits",
            "val_fraction": 0.25,
            "batch_size": 64,
            "augment": {"crop": 1},
        },
        "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
        "student": {"model": "mini_resnet_10_4"},
        "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"},
        "train": {
            "epochs": 5,
            "gradient_noise": 1e-3,
            "clip": 5.0,
            "checkpoint": {"every": EVERY},
        },
        "resources": {"gpus_per_worker": 0},
    }
)
PER_EPOCH = 17


class Trial:
    """A trial in processes of its own, which have imported torch before they begin."""

    def __init__(self, config: TrialConfig, folder: Path, teacher: Path) -> None:
        self.folder = folder
        listener = id  # a function that a new process knows, too
        self._arguments = (TrialTask(config, folder, teacher), listener, CPU)
        self._context = mp.get_context("forkserver")
        self.checkpoints = folder / CHECKPOINTS

    def start(self) -> ForkServerProcess:
        process = self._context.Process(target=run, args=self._arguments)
        process.start()
        return process

    @property
    def updates(self) -> int:
        """Of the newest checkpoint."""
        return max((int(path.name) for path in self.checkpoints.glob("[0-9]*")), default=0)

    @property
    def is_writing(self) -> bool:
        return any(self.checkpoints.glob(".*.tmp"))

    def result(self) -> dict[str, Any]:
        """All that the trial leaves behind, times and rates aside."""
        last = max(self.checkpoints.iterdir())
        shared = torch.load(last / "state.pt", weights_only=True)
        del shared["seconds"], shared["waited"]
        for record in shared["records"]:
            del record["timestamp_ms"]
            for name in OF_THE_MACHINE:
                record["metrics"].pop(name, None)
        return {
            "shared": shared,
            "own": torch.load(last / "rank-0.pt", weights_only=True),
            "student": (last / "student.safetensors").read_bytes(),
            "best": (self.folder / BEST).read_bytes(),
        }


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> None:
    """Its children start in milliseconds; where another test began it, they import for themselves."""
    mp.set_forkserver_preload(["trainable.engine.loop", "sklearn.datasets"])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_teacher(CONFIG, tmp_path_factory.mktemp("teacher"))


def config(epochs: int) -> TrialConfig:
    train = CONFIG.train.model_copy(update={"epochs": epochs})
    return CONFIG.model_copy(update={"train": train})


def wait(trial: Trial, process: ForkServerProcess, *, until: Any) -> bool:
    """Look until something is so; False if the process ended first."""
    limit = time.monotonic() + 60
    while not until():
        if not process.is_alive():
            return False
        assert time.monotonic() < limit, f"no progress after update {trial.updates}"
        time.sleep(0.0002)
    return True


def kill(process: ForkServerProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def moments(seed: int) -> Iterator[tuple[int, float | None]]:
    """How many updates further to kill, and how much later still; None is while the next checkpoint is written."""
    draw = random.Random(seed)
    while True:
        yield 1, None
        yield draw.randint(1, 12), draw.uniform(0, 0.02)
        yield draw.randint(1, 12), draw.uniform(0, 0.02)


def kill_again_and_again(trial: Trial, times: int, seed: int) -> tuple[list[int], int]:
    """Updates of the newest checkpoint at each kill, and how many kills left half a checkpoint."""
    kills: list[int] = []
    halves = 0
    for updates, later in moments(seed):
        if len(kills) >= times and halves:
            break
        process, goal = trial.start(), trial.updates + updates
        assert wait(trial, process, until=lambda goal=goal: trial.updates >= goal), kills
        if later is None:
            assert wait(trial, process, until=lambda: trial.is_writing), kills
        else:
            process.join(later)
            assert process.is_alive(), kills
        kill(process)
        kills.append(trial.updates)
        halves += trial.is_writing
    return kills, halves


def disturb(folder: Path, teacher: Path, *, epochs: int, kills: int) -> list[int]:
    """Train twice, killing the one process and leaving the other alone; the end must be the same."""
    calm = Trial(config(epochs), folder / "calm", teacher)
    process = calm.start()
    process.join()
    assert process.exitcode == 0
    killed = Trial(config(epochs), folder / "killed", teacher)
    found, halves = kill_again_and_again(killed, kills, seed=7)
    assert halves
    process = killed.start()
    process.join()
    assert process.exitcode == 0
    ours, theirs = killed.result(), calm.result()
    assert_equal(ours, theirs)
    assert len(ours["shared"]["records"]) == epochs
    assert {"generators", "step", "buffers"} <= set(ours["own"])
    left = [path.name for path in killed.checkpoints.iterdir()]
    assert left == [f"{epochs * PER_EPOCH:09d}"]
    return found


def test_a_trial_killed_three_times(tmp_path: Path, teacher: Path) -> None:
    kills = disturb(tmp_path, teacher, epochs=5, kills=3)
    assert any(update % PER_EPOCH for update in kills)  # in the middle of an epoch


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_trial_killed_twenty_times(tmp_path: Path, teacher: Path) -> None:
    kills = disturb(tmp_path, teacher, epochs=25, kills=20)
    assert any(update % PER_EPOCH for update in kills)
    assert len({update // PER_EPOCH for update in kills}) > 5
