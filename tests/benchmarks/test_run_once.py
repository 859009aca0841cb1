"""One run by the product's own command, and the record of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_student_is_trained_and_its_record_names_no_folder(
    script: Callable[[str], Any],
    ray_cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_once, output = script("run_once"), tmp_path / "records"
    output.mkdir()
    settings = [
        "study.name=once",
        f"storage.path={tmp_path / 'runs'}",
        "student.model=mini_resnet_10_4",
        "teacher.model=mini_resnet_10_4",
        "teacher.train.epochs=1",
        "distill.decomposition=1/0",
        "train.epochs=2",
    ]
    arguments = [value for setting in settings for value in ("--set", setting)]
    command = ["run_once.py", "train", str(CONFIG), *arguments, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    run_once.main()
    (path,) = output.iterdir()
    assert str(tmp_path) not in path.read_text()
    record = json.loads(path.read_text())
    assert record["settings"] == [settings[0], *settings[2:]]
    assert record["config"]["train"]["epochs"] == 2
    (run,) = (run for run in record["runs"] if run["role"] == "trial")
    assert (run["state"], run["epochs"], run["error"]) == ("complete", 2, None)
    assert 0.0 <= run["test_accuracy"] <= 1.0
    assert len(run["curves"]["train/loss"]) == 2


def test_only_what_lies_somewhere_is_a_place(script: Callable[[str], Any]) -> None:
    is_place = script("run_once")._is_place
    places = ["data.root=/a", "storage.path=b", "teacher.checkpoint=/c=d"]
    others = ["data.source=parquet", "teacher.model=resnet18", "train.epochs=3", "seed=1"]
    assert all(map(is_place, places))
    assert not any(map(is_place, others))
