"""How many trials fit, and what each reserves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from study.cluster import (
    Capacity,
    actor_resources,
    concurrency,
    uses_torch_trainer,
    with_resources,
    worker_resources,
)
from study.config import StudyConfig, dump_config, parse_config
from trainable.errors import ConfigError


def config(
    gpus: float | str | None = None,
    cpus: int = 1,
    workers: int = 1,
    launcher: str = "auto",
    **study: Any,
) -> StudyConfig:
    resources = {"cpus_per_worker": cpus} | ({} if gpus is None else {"gpus_per_worker": gpus})
    return parse_config(
        {
            "study": {"name": "s", "trials": 100, **study},
            "storage": {"path": str(Path.cwd())},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "train": {"workers": workers, "launcher": launcher},
            "resources": resources,
            "search": {"optim.lr": {"loguniform": [1e-4, 1.0]}},
        }
    )


@pytest.mark.parametrize(
    ("settings", "capacity", "trials"),
    [
        ({"gpus": 0}, Capacity(2, 0), 2),
        ({"gpus": 0, "cpus": 2}, Capacity(5, 0), 2),
        ({"gpus": 0, "workers": 2}, Capacity(2, 0), 1),
        ({"gpus": 0, "workers": 2, "cpus": 2}, Capacity(11, 0), 2),
        ({"gpus": 1}, Capacity(64, 4), 4),
        ({"gpus": 1, "workers": 2}, Capacity(64, 4), 2),
        ({"gpus": 0.5}, Capacity(64, 1), 2),
        ({"gpus": 0.3}, Capacity(64, 2), 6),  # three on each GPU, though 2 / 0.3 > 6
        ({"gpus": 0.1}, Capacity(64, 1), 10),  # 1 / 0.1 must not be taken for 9.99…
        ({"gpus": 0.1}, Capacity(4, 1), 4),
        ({"gpus": 1, "concurrency": 3}, Capacity(64, 4), 3),
        ({"gpus": 1, "concurrency": 9}, Capacity(64, 4), 4),
        ({"gpus": 1, "trials": 2}, Capacity(64, 4), 2),
        ({"gpus": 1, "trials": 1, "baselines": {"none": 3}}, Capacity(64, 4), 3),
        ({"gpus": 1, "trials": 1, "replicates": {"seeds": 2}}, Capacity(64, 8), 4),
        (
            {"gpus": 0, "cpus": 2},
            Capacity(6, 0, ((3, 0), (3, 0))),
            2,
        ),  # one CPU of each is left over
        ({"gpus": 1}, Capacity(64, 4, ((32, 0), (32, 4))), 4),
        ({"gpus": 1, "cpus": 8}, Capacity(36, 4, ((32, 0), (4, 4), (8, 4))), 1),
        ({"gpus": 0, "workers": 2}, Capacity(2, 0, ((1, 0), (1, 0))), 1),
    ],
)
def test_trials_at_a_time(settings: Any, capacity: Capacity, trials: int) -> None:
    assert concurrency(config(**settings), capacity) == trials


@pytest.mark.parametrize(
    ("settings", "capacity"),
    [
        ({"gpus": 0, "cpus": 3}, Capacity(2, 0)),
        ({"gpus": 0, "workers": 3}, Capacity(2, 0)),
        ({"gpus": 1}, Capacity(2, 0)),
        ({"gpus": 1, "workers": 4}, Capacity(64, 3)),
        ({"gpus": 0, "cpus": 3}, Capacity(4, 0, ((2, 0), (2, 0)))),
        ({"gpus": 2}, Capacity(64, 4, ((16, 1),) * 4)),
        ({"gpus": 1}, Capacity(64, 1, ((64, 0), (0, 1)))),
    ],
)
def test_a_trial_that_cannot_fit_is_refused(settings: Any, capacity: Capacity) -> None:
    with pytest.raises(ConfigError, match="one trial must fit on the cluster") as error:
        concurrency(config(**settings), capacity)
    assert f"{settings.get('workers', 1)} worker(s)" in str(error.value)


def test_gpus_are_taken_where_there_are_any_unless_told_otherwise() -> None:
    assert with_resources(config(), Capacity(2, 0)).resources.gpus_per_worker == 0
    assert with_resources(config(), Capacity(2, 4)).resources.gpus_per_worker == 1
    assert with_resources(config(gpus=0), Capacity(2, 4)).resources.gpus_per_worker == 0
    assert with_resources(config(gpus=0.25), Capacity(2, 4)).resources.gpus_per_worker == 0.25


def test_auto_is_a_whole_gpu_until_it_is_measured_and_nothing_without_gpus() -> None:
    assert with_resources(config(gpus="auto"), Capacity(2, 4)).resources.gpus_per_worker == 1
    assert with_resources(config(gpus="auto"), Capacity(2, 0)).resources.gpus_per_worker == 0


@pytest.mark.parametrize(
    ("workers", "launcher", "trainer"),
    [(1, "auto", False), (2, "auto", True), (1, "torch_trainer", True), (1, "inline", False)],
)
def test_what_tunes_own_actor_reserves(workers: int, launcher: str, trainer: bool) -> None:
    settings = config(gpus=1, cpus=2, workers=workers, launcher=launcher)
    assert uses_torch_trainer(settings) == trainer
    assert worker_resources(settings) == {"CPU": 2.0, "GPU": 1.0}
    # The workers reserve their own: an actor that took a CPU beside them could starve them.
    assert actor_resources(settings) == ({"memory": 1} if trainer else {"CPU": 2.0, "GPU": 1.0})


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config(gpus=0)))
    ended = subprocess.run(
        [sys.executable, "-m", "study", "run", str(path)],
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("RAY_ADDRESS: must be a running cluster of this Python and Ray, but: ")
    assert "Connection refused, got '127.0.0.1:1'; " in line


_STARTED = """
import time
import psutil
import ray
from study.cluster import connected

class Trial:
    def reached(self):
        return True

with connected():
    trial = ray.remote(num_cpus=1)(Trial).remote()
    assert ray.get(trial.reached.remote())
    time.sleep(2)
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    print(names.count("ray::Trial"), names.count("ray::IDLE"))
"""


@pytest.mark.slow
def test_a_cluster_of_our_own_starts_no_process_that_nothing_asked_for() -> None:
    """Ray by itself would start one for every core."""
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-c", _STARTED], env=environ, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "1 0\n", ended.stderr
