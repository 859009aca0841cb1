"""Trials that share a GPU end as those that had it for themselves, also where one finds no memory.

The GPU is one that Ray is told of (`fake_gpu`); a real one is in tests/gpu.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from study.ledger import find_results
from study.leftovers import KEPT_TRIALS
from study.packing import packing_of
from study.results import StudyResults
from study.yaml import dump_yaml
from tests.integration.fake_gpu import FULL
from tests.trainable.trials import OF_THE_MACHINE
from trainable.engine.checkpoint import BEST

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MEASURED = "one takes 9.00 of 80.0 GiB and runs kernels for 25% of its time, in 4.00 ms an update"


def conduct(
    folder: Path, name: str, *arguments: str, trials: int = 4, **study: Any
) -> tuple[StudyResults, dict[str, Any]]:
    """Run a study; its results, and what the process prints in its end."""
    tree = {
        "study": {"name": name, "trials": trials, "sampler": "random", **study},
        "storage": {"path": str(folder / "runs")},
        "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64},
        "student": {"model": "tests.integration.fake_gpu:network"},
        "distill": {"method": "none"},
        "train": {"epochs": 3},
        "resources": {"gpus_per_worker": "auto"},
        "search": {"optim.lr": {"loguniform": [0.01, 0.1]}},
    }
    (folder / "marks").mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml(tree))
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.fake_gpu", str(path), *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env={
            **os.environ,
            FULL: str(folder / "marks"),
            "TMPDIR": str(folder),
            "RAY_TMPDIR": "/tmp",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return find_results(folder / "runs", name), json.loads(done.stdout)


def outcomes(folder: Path, results: StudyResults) -> dict[int, Any]:
    """What became of each trial, but for what tells of the machine."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    found: dict[int, Any] = {}
    for row in results.of("trial"):
        assert (row.state, row.error) == ("complete", None)
        names = client.get_run(row.run_id or "").data.metrics.keys() - {*OF_THE_MACHINE}
        curves = {
            name: [(p.step, p.value) for p in client.get_metric_history(row.run_id, name)]
            for name in sorted(names)
            if not name.startswith("test/")  # of the winner alone
        }
        best = Path(row.directory) / BEST  # of the study's best trials alone
        found[row.number] = (row.params, curves, best.read_bytes() if best.exists() else None)
    return found


def test_four_at_a_time_end_in_the_bits_of_one_after_another(tmp_path: Path) -> None:
    alone, told = conduct(tmp_path, "alone", concurrency=1)
    assert told == {"slots": 1, "said": []}
    for number in range(3):
        (tmp_path / "marks" / str(number)).touch()
    packed, told = conduct(tmp_path, "packed")
    assert told["slots"] == 4
    first, *others = told["said"]
    assert first == (
        f"up to 4 trials share a GPU; NVIDIA's MPS is off: their kernels take turns ({MEASURED})"
    )
    retried = [row for row in packed.rows if row.out_of_memory]
    goes_on = "ran out of memory beside others and goes on once it is alone on its GPU"
    assert sorted(others) == sorted(f"{row.label} {goes_on}" for row in retried)
    assert len(retried) == 3  # one for each mark: the student without a teacher, and two trials
    assert all("epoch 2" in row.out_of_memory[0] for row in retried)
    log = (tmp_path / "runs" / "packed" / "study.log").read_text()
    assert log.count(goes_on) == 3
    ours = outcomes(tmp_path, packed)
    assert len(ours) == 4
    assert sum(weights is not None for *_, weights in ours.values()) == KEPT_TRIALS
    assert ours == outcomes(tmp_path, alone)

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = [packed.parent_run_id, *(row.run_id for row in packed.of("trial"))]
    told_to_mlflow = [client.get_run(run).data for run in runs]
    assert {data.params["resources.gpus_per_worker"] for data in told_to_mlflow} == {"0.25"}


def test_what_cannot_be_measured_has_its_gpu_for_itself(tmp_path: Path) -> None:
    results, told = conduct(tmp_path, "unmeasurable", "--unmeasurable", trials=2)
    assert told["slots"] == 1
    (said,) = told["said"]
    assert said.startswith("each trial has a GPU: none could be measured (")
    assert [row.state for row in results.of("trial")] == ["complete", "complete"]
    log = (tmp_path / "runs" / "unmeasurable" / "study.log").read_text()
    assert "a trial could not be measured" in log
    assert packing_of(tmp_path / "runs" / "unmeasurable") is None  # the next driver tries again
