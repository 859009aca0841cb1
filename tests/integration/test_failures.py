"""Trials that fail: tried again from their checkpoint, or given up, and a study in which nothing works."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from study.cli import _app
from study.config import dump_config, without_search
from study.driver import StudyFailedError
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = pytest.mark.timeout(300)


def leave_a_damaged_checkpoint(folder: Path) -> Path:
    """What a trial in this folder cannot go on from."""
    damaged = folder / "checkpoints" / "000000001"
    damaged.mkdir(parents=True)
    (damaged / "state.pt").write_bytes(b"not a checkpoint")
    return damaged


def kill_the_trial() -> None:
    """As the kernel does when memory runs out."""
    ours = psutil.Process().children(recursive=True)
    everyone = ours or list(psutil.process_iter())
    names = ("ray::ImplicitFunc", "ray::run_job")
    victims = [p for p in everyone if any(p.cmdline()[:1] and n in p.cmdline()[0] for n in names)]
    assert len(victims) == 1, victims
    victims[0].send_signal(signal.SIGKILL)


@pytest.mark.chaos
def test_killed_trial_goes_on_from_its_checkpoint(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any
) -> None:
    changes = {"train": {"epochs": 4}, "study": {"name": "killed", "trials": 1, "max_failures": 1}}
    undisturbed = {**changes, "study": {"name": "calm", "trials": 1}}
    calm = conduct(without_search(configure(tmp_path, **undisturbed)))
    spy = make_spy()

    def at_epoch(row: Any, record: Any) -> None:
        if record.epoch == 2 and len(spy.started) == 2:  # the teacher and the trial, once each
            kill_the_trial()

    spy.at_epoch = at_epoch
    left = conduct(without_search(configure(tmp_path, **changes)), spy)
    assert [row.label for row in spy.started] == ["teacher", "trial 0", "trial 0"]
    (row,) = left.results.of("trial")
    assert (row.state, row.epochs, row.error) == ("complete", 4, None)
    ours, theirs = left.history("trial 0"), calm.history("trial 0")
    for history in (ours, theirs):
        for name in OF_THE_MACHINE:
            history.pop(name, None)
    assert ours
    assert ours == theirs


@pytest.mark.chaos
def test_killed_trial_without_retries_fails_and_the_study_goes_on(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any
) -> None:
    spy = make_spy()

    def at_epoch(row: Any, record: Any) -> None:
        if row.label == "trial 0" and record.epoch == 1:
            kill_the_trial()

    spy.at_epoch = at_epoch
    config = configure(
        tmp_path,
        study={"trials": 2, "concurrency": 1},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
    )
    left = conduct(config, spy)
    states = [trial.state for trial in left.optuna_trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]
    assert [row.state for row in left.results.of("trial")] == ["failed", "complete"]
    run = left.child("trial 0")
    assert run.data.tags["kd.state"] == "failed"
    assert "died" in run.data.tags["kd.error"], run.data.tags["kd.error"]


@pytest.mark.slow
def test_study_without_a_usable_trial_exits_1_and_says_why(
    tmp_path: Path, configure: Any, ray_cluster: str, left_by: Any
) -> None:
    config = configure(tmp_path, search={"optim.lr": {"loguniform": [0.01, 0.1]}})
    for number in range(2):
        leave_a_damaged_checkpoint(config.folder / "trials" / f"{number:04d}")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    done = CliRunner().invoke(_app, ["run", str(path)])
    assert done.exit_code == 1, done.output
    assert done.stderr == ""
    assert done.stdout.count("trial 0 failed: ") == 2  # when it happened, and in the end
    assert "must hold a checkpoint that is whole" in done.stdout
    assert "No usable trial: all 2 failed" in done.stdout
    left = left_by(config)
    assert [trial.state for trial in left.optuna_trials] == [TrialState.FAIL] * 2
    assert left.parent.data.tags["kd.state"] == "failed"
    assert "best/val_accuracy" not in left.parent.data.metrics
    assert [run for run in left.children if "test/accuracy" in run.data.metrics] == []


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_on_a_worker_is_told_everywhere_with_its_place(
    workers: int, tmp_path: Path, configure: Any, conduct: Any
) -> None:
    """A file where the checkpoint after update 5 has to be: renaming a folder to it fails."""
    changes = {"train": {"epochs": 2, "workers": workers, "checkpoint": {"every": 5}}}
    config = without_search(configure(tmp_path, study={"trials": 1}, **changes))
    in_the_way = config.folder / "trials" / "0000" / "checkpoints" / "000000005"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_bytes(b"")
    left = conduct(config)
    (row,) = left.results.of("trial")
    assert (row.state, row.epochs) == ("failed", 0)
    run = left.child("trial 0")
    assert run.data.tags["kd.state"] == "failed"
    for told in (row.error, run.data.tags["kd.error"]):
        assert "NotADirectoryError" in told
        assert "(rank 0, epoch 1, update 5, writing a checkpoint)" in told
    text = Path(left.client.download_artifacts(run.info.run_id, "error.txt")).read_text()
    assert "(rank 0, epoch 1, update 5, writing a checkpoint)" in text
    assert re.search(r'File ".*engine/checkpoint\.py", line \d+, in _commit', text), text


@pytest.mark.slow
def test_study_whose_teacher_fails_stops_and_can_be_run_again(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any, left_by: Any
) -> None:
    train = {"epochs": 2, "batch_size": 64}
    config = configure(
        tmp_path,
        study={"trials": 2},
        teacher={"train": train},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
    )
    damaged = leave_a_damaged_checkpoint(config.folder / "teacher")
    with pytest.raises(
        StudyFailedError, match=r"training the teacher failed: .*must hold a checkpoint"
    ):
        conduct(config)
    failed = left_by(config)
    assert failed.parent.data.tags["kd.state"] == "failed"
    assert failed.child("teacher 0").data.tags["kd.state"] == "failed"
    assert failed.results.of("trial") == ()

    runs = {run.info.run_id for run in failed.children}
    assert len(runs) == 2

    shutil.rmtree(damaged)
    left = conduct(config)
    assert left.parent.data.tags["kd.state"] == "complete"
    assert left.child("teacher 0").data.tags["kd.state"] == "complete"
    assert runs < {run.info.run_id for run in left.children}
    assert len(left.children) == 4
    assert left.results.winner.test_accuracy is not None
