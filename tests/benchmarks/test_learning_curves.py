from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from study.curves import add_epoch
from study.results import StudyResults, TrialRow
from trainable.records import EpochRecord

Script = Callable[[str], Any]
METRICS = {"val/accuracy": 0.5, "train/loss": 2.0, "train/stage": 1.0, "train/lr": 0.1}


def results_of(rows: list[TrialRow]) -> StudyResults:
    return StudyResults(
        name="x",
        trials_planned=len(rows),
        started_at=0.0,
        tracking_uri="",
        experiment="",
        parent_run_id="",
        rows=tuple(rows),
    )


def test_complete_trials_are_kept_epoch_by_epoch_with_what_was_drawn(
    script: Script, tmp_path: Path
) -> None:
    drawn = {"distill.decomposition": "5/2", "distill.k": 5, "distill.n": 2, "optim.lr": 0.5}
    rows: list[TrialRow] = []
    for number, state in enumerate(["complete", "failed", "complete", "complete"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for epoch in (1, 2):
            record = EpochRecord(epoch, {**METRICS, "val/accuracy": number + epoch / 10}, 0)
            add_epoch(folder, record)
        params = drawn | ({"distill.lam": 2.0} if number == 2 else {})
        row = TrialRow(role="trial", number=number, directory=str(folder), params=params, seconds=9)
        rows.append(row.model_copy(update={"state": state}))
    table = script("learning_curves").table_of(results_of(rows), seed=0).to_pylist()
    assert [(line["trial"], line["epoch"], line["half"]) for line in table] == [
        (0, 1, "tuning"),
        (0, 2, "tuning"),
        (2, 1, "tuning"),
        (2, 2, "tuning"),
        (3, 1, "holdout"),
        (3, 2, "holdout"),
    ]
    last = {"trial": 3, "half": "holdout", "epoch": 2, "seconds": 9.0}
    hyperparameters = {"decomposition": "5/2", "k": 5, "n": 2, "lr": 0.5, "lam": None}
    curve = {"val_accuracy": 3.2, "train_loss": 2.0, "stage": 1.0}
    assert [line["lam"] for line in table] == [None, None, 2.0, 2.0, None, None]
    assert table[-1] == last | hyperparameters | curve
    other = script("learning_curves").table_of(results_of(rows), seed=1).to_pylist()
    assert {line["half"] for line in other} == {"holdout"}
