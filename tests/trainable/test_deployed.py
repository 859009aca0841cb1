"""What a student costs where it is used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.trainable.trials import CPU, MakeConfig, train
from trainable import records
from trainable.engine import deployed
from trainable.engine.checkpoint import best_student
from trainable.engine.deployed import REPETITIONS, WARM_UP, latency_ms, parameters_in_use
from trainable.engine.loop import TrialTask, run
from trainable.networks.build import Pictures, build_student

PICTURES = Pictures(10, 3, (8, 8))
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("projectors", ["none", "keep", "fold"])
def test_the_parameters_are_those_of_the_weights_that_a_trial_keeps(
    projectors: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    student = {"model": "mini_resnet_10_2", "projectors": projectors}
    config = make_config(student=student, distill={"method": "none"}, train={"epochs": 2})
    found = train(config, tmp_path)
    kept = safetensors.torch.load_file(best_student(tmp_path))
    count = sum(w.numel() for name, w in kept.items() if not name.endswith(STATISTICS))
    assert parameters_in_use(config, PICTURES) == count
    assert records.STUDENT_PARAMETERS not in found[0].metrics
    assert found[1].metrics[records.STUDENT_PARAMETERS] == count
    assert records.STUDENT_LATENCY not in found[1].metrics  # nobody asked


def test_a_folded_student_has_fewer_parameters_than_one_that_trains(
    make_config: MakeConfig,
) -> None:
    config = make_config(student={"model": "mini_resnet_10_2", "projectors": "fold"})
    training = sum(p.numel() for p in build_student(config, PICTURES).parameters())
    assert parameters_in_use(config, PICTURES) < training


def test_the_latency_is_told_with_the_last_epoch_and_changes_nothing(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(distill={"method": "none"}, train={"epochs": 2})
    plain = train(config, tmp_path / "plain")
    found: list[Any] = []
    run(TrialTask(config, tmp_path / "timed", None, times_student=True), found.append, CPU)
    (first, last) = found
    assert records.STUDENT_LATENCY not in first.metrics
    assert last.metrics[records.STUDENT_LATENCY] > 0
    assert last.metrics[records.TRAIN_LOSS] == plain[1].metrics[records.TRAIN_LOSS]
    one, other = (best_student(tmp_path / name).read_bytes() for name in ("plain", "timed"))
    assert one == other


def test_it_is_the_median_of_one_picture_in_eval_mode_after_a_warm_up(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    class Student(torch.nn.Linear):
        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            seen.append((tuple(picture.shape), self.training, torch.is_grad_enabled()))
            slow = len(seen) <= WARM_UP or len(seen) % 3 == 0
            clock[0] += 7.0 if slow else 0.002
            return picture

    clock = [0.0]
    monkeypatch.setattr(deployed, "build_student", lambda *_, **__: Student(2, 2))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    before = torch.get_rng_state()
    assert latency_ms(make_config(), PICTURES, CPU) == pytest.approx(2.0)
    assert seen == [((1, 3, 8, 8), False, False)] * (WARM_UP + REPETITIONS)
    assert torch.equal(torch.get_rng_state(), before)
