"""A study of several objectives with a constraint, in which the student's network is searched."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from typer.testing import CliRunner

from study.cli import _app
from study.config import StudyConfig, dump_config
from study.driver import StudyInterruptedError, run_study
from study.leftovers import KEPT_TRIALS
from study.optuna_study import open_study
from trainable.tasks import DataSummary, best_weights, inspect_data, parameters_in_use

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NARROW, USUAL, WIDE = "mini_resnet_10_2", "mini_resnet_10_4", "mini_resnet_10_8"
TRIALS = 9


def build(configure: Any, path: Path, **study: Any) -> StudyConfig:
    return configure(
        path,
        study={
            "trials": TRIALS,
            "concurrency": 1,
            "objectives": ["accuracy", "latency", "parameters"],
            "constraints": {"parameters": 30_000},
            **study,
        },
        search={
            "student.model": {"choice": [USUAL, NARROW, WIDE]},
            "optim.lr": {"loguniform": [1e-3, 0.1]},
        },
    )


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any) -> Any:
    return conduct(build(configure, tmp_path_factory.mktemp("calm")))


@pytest.fixture(scope="module")
def data(left: Any) -> DataSummary:
    return inspect_data(left.config)


def test_students_over_the_bound_are_stopped_before_they_train(
    left: Any, data: DataSummary
) -> None:
    sizes = {
        model: parameters_in_use(left.config.trial({"student.model": model}), data)
        for model in (NARROW, USUAL, WIDE)
    }
    assert sizes[NARROW] < sizes[USUAL] < 30_000 < sizes[WIDE]
    assert {row.params["student.model"] for row in left.results.of("trial")} == set(sizes)
    for row, trial in zip(left.results.of("trial"), left.optuna_trials, strict=True):
        size = sizes[row.params["student.model"]]
        assert row.costs["parameters"] == size
        assert trial.constraints == pytest.approx({"parameters": size / 30_000 - 1})
        over = row.params["student.model"] == WIDE
        assert (row.state, row.epochs) == (("pruned", 0) if over else ("complete", 2))
        assert row.violates == (("parameters",) if over else ())
        run = left.child(row.label)
        assert run.data.metrics["student/parameters"] == size
        assert run.data.tags.get("kd.violates") == ("parameters" if over else None)


def test_optuna_is_told_all_objectives_as_the_ledger_and_mlflow_have_them(left: Any) -> None:
    least, most = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
    assert open_study(left.config).directions == [most, least, least]
    for row, trial in zip(left.results.of("trial"), left.optuna_trials, strict=True):
        if row.state == "pruned":
            assert (trial.state, trial.values) == (TrialState.PRUNED, None)
            continue
        costs = row.costs
        assert trial.values == [row.value, costs["latency"], costs["parameters"]]
        history = left.history(row.label)
        assert history["student/latency_ms"] == [(2, costs["latency"])]
        assert [step for step, _ in history["train/seconds"]] == [1, 2]
        assert history["train/seconds"][1][1] == costs["training_seconds"]
    assert left.child("baseline").data.metrics["student/latency_ms"] > 0


def test_the_front_is_tagged_and_the_winner_is_the_most_accurate(left: Any) -> None:
    results = left.results
    front = {row.label for row in results.front}
    assert front
    usable = [row for row in results.of("trial") if row.is_usable]
    assert results.winner.value == max(row.value for row in usable)
    assert min(usable, key=lambda row: row.costs["latency"]).label in front
    kept = {*front, *(row.label for row in results.best_trials[:KEPT_TRIALS])}
    for row in results.of("trial"):
        assert best_weights(Path(row.directory)).exists() == (row.label in kept)
        assert left.child(row.label).data.tags["kd.front"] == str(row.label in front).lower()


def test_the_report_and_the_leaderboard_show_the_front(left: Any) -> None:
    page = (left.config.folder / "report.html").read_text()
    section = page[page.index('<section id="front">') : page.index('<section id="learning">')]
    assert section.count("<figure>") == 3
    assert all(row.label in section for row in left.results.front)
    told = CliRunner().invoke(
        _app, ["report", left.config.study.name, "--storage", left.config.storage.path]
    )
    assert told.exit_code == 0
    assert told.output.count("●") == len(left.results.front)


def test_interrupted_and_resumed_it_draws_the_same(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any
) -> None:
    """In NSGA-II's second generation, of objectives that follow from the sample: a latency is another each time."""
    kind = {"sampler": "nsga2", "trials": 14, "constraints": {}}
    kind |= {"objectives": ["accuracy", "parameters"]}
    drawn: list[list[Any]] = []
    for name in ("calm", "cut"):
        config, spy = build(configure, tmp_path / name, **kind), make_spy()
        if name == "cut":

            def at_epoch(row: Any, record: Any) -> None:
                if (row.role, row.number, record.epoch) == ("trial", 11, 1):
                    os.kill(os.getpid(), signal.SIGINT)

            spy.at_epoch = at_epoch
            with pytest.raises(StudyInterruptedError):
                run_study(config, spy.open)
        rows = conduct(config).results.of("trial")
        drawn.append([(row.params, row.state, row.value, row.violates) for row in rows])
    assert drawn[0] == drawn[1]


def test_a_study_in_which_no_trial_keeps_to_a_constraint_says_so_and_exits_1(
    tmp_path: Path, configure: Any, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    config = build(
        configure, tmp_path, objectives=["accuracy"], constraints={"accuracy": 1.0}, trials=2
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    told = CliRunner().invoke(_app, ["run", str(path)])
    assert told.exit_code == 1
    said = re.sub(r"\s+", " ", told.output)
    assert "No usable trial: 2 break accuracy >= 1." in said
