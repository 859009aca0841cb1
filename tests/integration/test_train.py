"""`kd-study train`: one trial at the base values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.config import without_search

pytestmark = pytest.mark.timeout(200)


def test_train_without_a_validation_split(tmp_path: Path, configure: Any, conduct: Any) -> None:
    config = without_search(configure(tmp_path, data={"val_fraction": 0.0}))
    left = conduct(config)
    assert left.results.name == left.parent.info.run_name == "tiny-train"
    (row,) = left.results.of("trial")
    assert (row.state, row.epochs, row.value, row.params) == ("complete", 2, None, {})
    assert left.results.of("baseline") == ()
    history = left.history("trial 0")
    assert [step for step, _ in history["train/loss"]] == [1, 2]
    assert not [name for name in history if name.startswith("val/")]
    assert len(history["test/accuracy"]) == 1
    assert left.results.winner == row
    assert row.test_accuracy == history["test/accuracy"][0][1]
    told = left.parent.data.metrics
    assert told["best/test_accuracy"] == row.test_accuracy
    assert "best/val_accuracy" not in told
    assert (told["study/complete"], told["study/running"]) == (1, 0)
    assert not (config.folder / "optuna.journal").exists()
