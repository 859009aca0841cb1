"""A GPU that fails under a trial takes none of the next ones along. The fault is made, on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from study.curves import read_curve
from study.ledger import find_results
from study.yaml import dump_yaml
from tests.integration.broken_gpu import MARK, SAID

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("max_failures", [0, 1])
def test_the_process_of_a_gpu_that_failed_is_not_used_again(
    max_failures: int, tmp_path: Path
) -> None:
    tree = {
        "study": {"name": "s", "trials": 3, "concurrency": 1, "max_failures": max_failures},
        "storage": {"path": str(tmp_path)},
        "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64},
        "student": {"model": "tests.integration.broken_gpu:network"},
        "distill": {"method": "none"},
        "train": {"epochs": 3},
        "search": {"optim.lr": {"loguniform": [0.01, 0.1]}},
    }
    path, mark = tmp_path / "study.yaml", tmp_path / "mark"
    path.write_text(dump_yaml(tree))
    mark.touch()
    ended = subprocess.run(
        [sys.executable, "-m", "study", "run", str(path)],
        cwd=Path(__file__).resolve().parents[2],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {MARK: str(mark)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr
    assert not mark.exists()
    results = find_results(tmp_path, "s")
    baseline, *trials = results.rows
    assert [row.state for row in trials] == ["complete"] * 3
    curve = [record.epoch for record in read_curve(Path(baseline.directory))]
    if max_failures:
        assert (baseline.state, curve) == ("complete", [1, 2, 3])
        again = "baseline goes on from its last checkpoint: failure 1 of 1 that it may have"
        assert again in ended.stdout
    else:
        assert (baseline.state, curve) == ("failed", [1])
        assert baseline.error is not None
        assert baseline.error.startswith("rank 0, epoch 2, update 13: cpu failed: forward and")
        assert SAID in baseline.error
