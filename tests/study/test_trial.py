"""When a trial leaves a node that is about to go, and a score that finds no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from study import trial
from study.config import StudyConfig, parse_config
from study.jobs import Job
from study.nodes import NodeLeavesError
from trainable import worker
from trainable.records import EpochRecord
from trainable.tasks import SharedGpu

EPOCHS = 3


def study_in(folder: Path) -> StudyConfig:
    return parse_config(
        {
            "study": {"name": "s"},
            "storage": {"path": str(folder)},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "train": {"epochs": EPOCHS},
            "resources": {"gpus_per_worker": 0},
        }
    )


def run_with_notice(after: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run a trial whose node is being drained from this epoch on; the epochs that it reports."""
    reported: list[int] = []

    def train(work: Any, report: Any, *place: Any) -> None:
        for epoch in range(1, EPOCHS + 1):
            report(EpochRecord(epoch, {"val/accuracy": 0.5}, 0))

    def must_stay() -> None:
        if len(reported) >= after:
            raise NodeLeavesError("the node is being drained")

    monkeypatch.setattr(trial.tasks, "train", train)
    monkeypatch.setattr(trial.tune, "report", lambda result: reported.append(result["epoch"]))
    monkeypatch.setattr(trial, "must_stay", must_stay)
    try:
        trial.run_job({"job": Job("trial").to_dict()}, study=study_in(folder), teacher_weights=None)
    except NodeLeavesError:
        assert len(reported) < EPOCHS
    else:
        assert len(reported) == EPOCHS
    return reported


@pytest.mark.parametrize(("after", "reported"), [(0, []), (1, [1]), (2, [1, 2])])
def test_a_trial_leaves_before_it_begins_or_when_its_epoch_is_told(
    after: int, reported: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_with_notice(after, tmp_path, monkeypatch) == reported


@pytest.mark.parametrize("after", [EPOCHS, EPOCHS + 1])
def test_a_trial_that_has_told_its_last_epoch_has_ended(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_with_notice(after, tmp_path, monkeypatch) == [1, 2, 3]


def test_a_score_that_finds_no_memory_beside_others_is_made_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []
    told: list[dict[str, Any]] = []

    class Gpu(SharedGpu):
        def alone(self) -> Any:
            places.append("alone")
            return super().alone()

    def score(config: Any, network: str, weights: Path, split: str, device: Any) -> Any:
        places.append(f"{network} on {split}")
        if len(places) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return {"test/accuracy": 0.9}

    for module in (trial, worker):
        monkeypatch.setattr(module, "shared_gpu", lambda config: Gpu("gpu-0", tmp_path))
    monkeypatch.setattr(trial.tasks, "score_weights", score)
    monkeypatch.setattr(trial.tune, "report", told.append)
    monkeypatch.setattr(trial, "must_stay", lambda: None)
    job = Job("trial", split="test")
    trial.run_job({"job": job.to_dict()}, study=study_in(tmp_path), teacher_weights=None)
    assert places == ["student on test", "alone", "student on test"]
    assert told == [{"scores": {"test/accuracy": 0.9}, "value": 0.0}]
