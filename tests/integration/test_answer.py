"""A study whose answer can be trusted: replicates and searched baselines, and a test split that decides nothing."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from sklearn.datasets import load_digits

from study.optuna_study import open_study
from study.results import TrialRow
from tests.integration.conftest import history_of
from tests.trainable.data.conftest import encoded, write_parquet
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS, TRIALS, SEEDS, FINALISTS = 2, 3, 2, 2
BASELINES = {"none": 2, "kd": 1}
BROKEN = "baseline replicate 1"
TRAINED_AGAIN = FINALISTS + 1 + len(BASELINES)


def write_digits(root: Path, *, shuffled: bool) -> None:
    """As Parquet; with the labels of the test split shuffled if that is wanted."""
    bunch = load_digits()
    images = [encoded(np.repeat(np.uint8(16 * p)[:, :, None], 3, 2)) for p in bunch.images]
    labels = bunch.target.tolist()
    tests = labels[1400:]
    if shuffled:
        random.Random(0).shuffle(tests)
    root.mkdir()
    write_parquet(root / "train-0.parquet", images[:1400], labels[:1400], row_group_size=500)
    write_parquet(root / "test-0.parquet", images[1400:], tests, row_group_size=500)


def build(configure: Any, place: Path, data: Path) -> Any:
    return configure(
        place,
        study={
            "trials": TRIALS,
            "concurrency": 1,
            "seed": 3,
            "baselines": BASELINES,
            "replicates": {"finalists": FINALISTS, "seeds": SEEDS},
            "epoch_budget": TRIALS * EPOCHS,
        },
        data={
            "source": "parquet",
            "root": str(data),
            "classes": [str(n) for n in range(10)],
            "batch_size": 128,
        },
        distill={"method": "stablekd", "alpha": None, "lam": 1.0, "decomposition": "3/1"},
        train={"epochs": EPOCHS},
        search={
            "optim.lr": {"loguniform": [1e-2, 0.3]},
            "distill.decomposition": {"choice": ["1/0", "3/1"]},
        },
    )


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any) -> list[Any]:
    """One study on two data sets that differ in the labels of the test split; a replicate of each fails."""
    found = []
    for shuffled in (False, True):
        place = tmp_path_factory.mktemp("answer")
        write_digits(place / "data", shuffled=shuffled)
        config = build(configure, place, place / "data")
        damaged = config.folder / "replicates" / "baseline" / "0001" / "checkpoints" / "000000001"
        damaged.mkdir(parents=True)
        (damaged / "state.pt").write_bytes(b"not a checkpoint")
        found.append(conduct(config))
    return found


@pytest.fixture(scope="module")
def answered(studies: list[Any]) -> Any:
    return studies[0]


def replicates(left: Any) -> list[TrialRow]:
    return [row for row in left.results.rows if row.role == "replicate"]


def test_finalists_and_baselines_are_trained_again_on_all_pictures(answered: Any) -> None:
    results = answered.results
    finalists = [row.label for row in results.best_trials[:FINALISTS]]
    best = [results.best_of_baseline(name).label for name in BASELINES]
    rows = replicates(answered)
    assert {row.of for row in rows} == {*finalists, "baseline", *best}
    assert len(rows) == TRAINED_AGAIN * SEEDS
    for row in rows:
        run = answered.client.get_run(row.run_id)
        assert (run.data.tags["kd.role"], run.data.tags["kd.of"]) == ("replicate", row.of)
        assert run.info.run_name == row.label
        assert run.data.params["data.val_fraction"] == "0.0"
        assert run.data.params["train.seed"] == str(3001 + row.number)
        assert "val/accuracy" not in run.data.metrics


def test_each_is_tested_once_and_the_winner_itself_is_not(answered: Any) -> None:
    for row in answered.results.rows:
        history = history_of(answered.client, row.run_id)
        is_tested = row.role == "teacher" or (row.role == "replicate" and row.label != BROKEN)
        points = history.get("test/accuracy", [])
        assert [value for _, value in points] == ([row.test_accuracy] if is_tested else [])
    accuracies = [
        row.test_accuracy for row in replicates(answered) if row.of == answered.results.winner.label
    ]
    told = answered.parent.data.metrics
    assert told["best/test_accuracy"] == pytest.approx(statistics.fmean(accuracies))
    assert told["best/test_accuracy_sd"] == pytest.approx(statistics.stdev(accuracies))


def test_a_replicate_that_fails_is_a_failure_that_is_told(answered: Any) -> None:
    (broken,) = [row for row in answered.results.rows if row.state == "failed"]
    assert broken.label == BROKEN
    assert answered.client.get_run(broken.run_id).data.tags["kd.state"] == "failed"
    page = (answered.config.folder / "report.html").read_text()
    assert "1 of 2 replicates of baseline failed, and count in no figure." in page


def test_each_baseline_has_an_optuna_study_of_its_own(answered: Any) -> None:
    study = open_study(answered.config)
    names = {found.study_name for found in optuna.get_all_study_summaries(study._storage)}
    assert names == {"tiny", "tiny/none", "tiny/kd"}
    for name, count in BASELINES.items():
        own = optuna.load_study(study_name=f"tiny/{name}", storage=study._storage)
        rows = answered.results.of("baseline", name)
        assert [trial.value for trial in own.trials] == [row.value for row in rows]
        assert len(rows) == count
        for row in rows:
            tags = answered.client.get_run(row.run_id).data.tags
            assert (tags["kd.role"], tags["kd.of"]) == ("baseline", name)
    assert all(
        0 <= row.params["distill.alpha"] <= 1 for row in answered.results.of("baseline", "kd")
    )


def test_the_disk_keeps_the_winners_replicates_and_no_others(answered: Any) -> None:
    winner, results = answered.results.winner, answered.results
    for row in results.rows:
        folder = Path(row.directory)
        if row.role == "replicate":
            assert (folder / "best.safetensors").exists() == (row.of == winner.label)
        if row.role == "baseline" and row.of:
            assert (folder / "best.safetensors").exists() == (
                row == results.best_of_baseline(row.of)
            )
        assert not (folder / "checkpoints").exists() or not list((folder / "checkpoints").iterdir())
    for row in results.replicates_of_winner:
        kept = answered.client.list_artifacts(row.run_id, "checkpoint")
        assert [file.path for file in kept] == ["checkpoint/best.safetensors"]


def test_the_labels_of_the_test_split_decide_nothing(studies: list[Any]) -> None:
    """Shuffled, they change test accuracies, and what is told of them: not one number that was trained or chosen."""
    first, second = studies
    assert first.results.winner.label == second.results.winner.label
    kept = [[(r.label, r.params, r.value, r.epochs) for r in s.results.rows] for s in studies]
    assert kept[0] == kept[1]
    assert [t.params for t in first.optuna_trials] == [t.params for t in second.optuna_trials]
    for row, other in zip(first.results.rows, second.results.rows, strict=True):
        ours, theirs = (history_of(s.client, r.run_id) for s, r in ((first, row), (second, other)))
        told = {"test/accuracy", *OF_THE_MACHINE}
        assert {n: p for n, p in ours.items() if n not in told} == {
            n: p for n, p in theirs.items() if n not in told
        }
    tested = [[row.test_accuracy for row in replicates(left)] for left in studies]
    assert tested[0] != tested[1]


def test_the_same_command_prints_it_again_and_trains_nothing(answered: Any, conduct: Any) -> None:
    again = conduct(answered.config)
    assert again.results == answered.results
    assert again.spy.started == []
