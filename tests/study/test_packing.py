"""How many trials share a GPU, from the figures of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from study.cluster import Capacity
from study.config import parse_config
from study.measuring import hungriest, mps_is_on, packed, trials_per_gpu
from study.packing import Packing, as_packed, keep_packing
from study.preflight import StudyPlan, preflight
from study.tree import with_settings
from trainable.tasks import Footprint

ONE = Footprint(gib=4.0, gpu_gib=80.0, busy=0.5, filled=0.2, update_ms=4.0)
TREE: dict[str, Any] = {
    "study": {"name": "s", "trials": 20},
    "data": {"source": "digits", "val_fraction": 0.25},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "none"},
    "resources": {"gpus_per_worker": "auto"},
    "search": {"optim.lr": {"loguniform": [0.01, 0.1]}},
}


def plan_of(tmp_path: Path, *settings: str, cpus: float = 16, gpus: float = 1) -> StudyPlan:
    tree = with_settings({**TREE, "storage": {"path": str(tmp_path)}}, settings)
    return preflight(parse_config(tree), Capacity(cpus, gpus))


@pytest.mark.parametrize(
    ("changes", "mps", "trials"),
    [
        # Kernels that take turns: no more trials than there is time for.
        ({"busy": 1.0}, False, 1),
        ({"busy": 0.95}, False, 1),
        ({"busy": 0.89}, False, 2),
        ({"busy": 0.5}, False, 2),
        ({"busy": 0.3}, False, 3),
        ({"busy": 0.2}, False, 5),
        # Side by side: no more than there are multiprocessors for.
        ({"busy": 1.0, "filled": 0.3}, True, 3),
        ({"busy": 0.5, "filled": 0.2}, True, 5),
        ({"busy": 1.0, "filled": 1.0}, True, 1),
        # Memory: nine tenths of the GPU's.
        ({"busy": 0.1, "gib": 12.0}, False, 6),
        ({"busy": 0.1, "gib": 11.9}, False, 6),
        ({"busy": 0.1, "gib": 36.1}, False, 1),
        ({"busy": 0.1, "gib": 79.0}, False, 1),
        # CPUs and the study's length.
        ({"busy": 0.01}, False, 12),
        # No kernel was seen.
        ({"busy": 0.0, "filled": 0.0}, False, 1),
        ({"busy": 0.0, "filled": 0.0}, True, 1),
    ],
)
def test_as_many_as_fit_and_are_of_use(changes: dict[str, float], mps: bool, trials: int) -> None:
    assert trials_per_gpu(replace(ONE, **changes), mps=mps, most=12) == trials


@pytest.mark.parametrize(("trials", "gpus"), [(1, 1.0), (2, 0.5), (3, 0.3333), (7, 0.1428)])
def test_the_shares_of_all_fit_on_the_gpu(trials: int, gpus: float) -> None:
    assert Packing(trials=trials, told="").gpus == gpus
    assert gpus * trials <= 1


def test_auto_stays_as_it_was_settled(tmp_path: Path) -> None:
    config = parse_config({**TREE, "storage": {"path": str(tmp_path)}})
    assert as_packed(config, tmp_path).resources.gpus_per_worker == "auto"
    keep_packing(Packing(trials=4, told="so"), tmp_path)
    assert as_packed(config, tmp_path).resources.gpus_per_worker == 0.25
    tree = with_settings(
        {**TREE, "storage": {"path": str(tmp_path)}}, ["resources.gpus_per_worker=1"]
    )
    assert as_packed(parse_config(tree), tmp_path).resources.gpus_per_worker == 1


def test_the_trial_that_takes_most_memory_is_measured(tmp_path: Path) -> None:
    searched = (
        "search={data.batch_size: {choice: [32, 128, 64]}, train.accumulate: {choice: [2, 1]}, "
        "train.precision: {choice: [bf16, fp32]}, train.activation_checkpointing: {choice: [true, false]}, "
        "student.model: {choice: [mini_resnet_10_2, mini_resnet_18_8, mini_resnet_10_4]}, "
        "distill.method: {choice: [none, kd]}, optim.lr: {choice: [0.3, 0.1]}}"
    )
    teacher = "teacher={model: mini_resnet_10_4, train: {epochs: 1}}"
    trial = hungriest(plan_of(tmp_path, searched, teacher, "distill.alpha=0.5"))
    assert (trial.data.batch_size, trial.train.accumulate) == (128, 1)
    assert (trial.train.precision, trial.train.activation_checkpointing) == ("fp32", False)
    assert (trial.student.model, trial.distill.method) == ("mini_resnet_18_8", "kd")
    assert trial.optim.lr == 0.3  # of what does not matter, the first


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus"),
    [
        ([], 16, 0),
        (["train.workers=2"], 16, 2),
        (["study.concurrency=1"], 16, 1),
        (["study.concurrency=2"], 16, 2),  # each has a GPU
        ([], 1, 1),
        (["resources.cpus_per_worker=16"], 16, 1),
    ],
)
def test_nothing_is_measured_where_no_trial_could_share(
    settings: list[str],
    cpus: float,
    gpus: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("study.measuring.ray", None)
    plan = plan_of(tmp_path, *settings, cpus=cpus, gpus=gpus)
    assert packed(plan, None) == (plan, "")


@pytest.mark.parametrize(("code", "is_on"), [(0, True), (1, False)])
def test_mps_is_on_where_its_daemon_answers(
    code: int, is_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(
        f'#!/bin/sh\nread line\n[ "$line" = get_server_list ] && exit {code}\nexit 3\n'
    )
    control.chmod(0o755)
    assert mps_is_on() == is_on


def test_mps_is_off_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not mps_is_on()
