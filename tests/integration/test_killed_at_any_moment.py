"""A study whose driver is killed twenty times, from its start-up to its end, ends as one that is left alone."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from study.config import RESOLVED, StudyConfig
from study.folder import SPOOL
from study.ledger import LEDGER, load_results
from study.spool import unsent
from tests.integration.driving import command, processes_of, start
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3600)]

SEED, KILLS = 26, 20
TRIALS, EPOCHS, TEACHER_EPOCHS = 12, 4, 2
PRUNERS = {
    "asha": {"name": "asha", "grace_epochs": 2, "reduction_factor": 2},
    "halving": {"name": "halving"},
}
TESTED = 3
"""The winner, the student without a teacher and the teacher."""
PATIENCE_S = 400.0
"""For what takes seconds where nothing else runs."""
GONE_S = 180.0
"""How long the processes of a killed driver may live on; alone on a machine they take a second or two, but for Ray's
agents, which first try to tell a head that is dead, too, and may take a minute for it."""


def build(configure: Any, path: Path, pruner: str) -> StudyConfig:
    return configure(
        path,
        study={"trials": TRIALS, "concurrency": 1, "pruner": PRUNERS[pruner]},
        teacher={"train": {"epochs": TEACHER_EPOCHS, "batch_size": 64}},
        train={"epochs": EPOCHS, "checkpoint": {"every": 7}},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}, "data.batch_size": {"choice": [16, 32]}},
    )


def work_done(config: StudyConfig) -> int:
    """Epochs and looks at the test split, of all rows."""
    path = config.folder / LEDGER
    rows = load_results(path).rows if path.exists() else ()
    return sum(row.epochs + (row.test_accuracy is not None) for row in rows)


@dataclass(frozen=True)
class Moment:
    """When a driver is killed."""

    work: int | None
    """Once so much is done in all, and more than when it began if there is more; None is in its start-up."""
    later_s: float


def moments(work: int, seed: int) -> list[Moment]:
    """Three in start-ups, of which one has no study yet, three in the study's end, the others anywhere between."""
    draw = random.Random(seed)
    between = sorted(draw.sample(range(1, work - TESTED), KILLS - 6))
    found = [Moment(done, draw.uniform(0, 1)) for done in between]
    found += [Moment(done, draw.uniform(0, 0.3)) for done in (work - TESTED, work - 2, work)]
    for place in (0, 5, 10):
        found.insert(place, Moment(None, draw.uniform(1, 6)))
    return found


def last_written(config: StudyConfig) -> int:
    path = config.folder / LEDGER
    return path.stat().st_mtime_ns if path.exists() else 0


def has_finished(config: StudyConfig) -> bool:
    path = config.folder / LEDGER
    return path.exists() and load_results(path).finished


def wait_for(moment: Moment, work: int, config: StudyConfig, driver: subprocess.Popen[str]) -> None:
    """Until the driver of a study of so much `work` has come to a moment; of one that has finished, which a driver
    that was killed late may leave, there is no other than its end."""
    if has_finished(config):
        return
    if moment.work is not None:
        goal, before = min(max(moment.work, work_done(config) + 1), work), last_written(config)
        until = time.monotonic() + PATIENCE_S
        while work_done(config) < goal or last_written(config) == before:
            if has_finished(config):
                return
            assert driver.poll() is None, f"it ended first: {driver.communicate()}"
            assert time.monotonic() < until, f"{goal} was not reached in {PATIENCE_S:g} s"
            time.sleep(0.02)
    time.sleep(moment.later_s)
    assert driver.poll() is None or has_finished(config), f"it ended first: {driver.communicate()}"


def go_on(config: StudyConfig) -> subprocess.Popen[str]:
    """As a person would: there is nothing to resume before the study has a folder."""
    is_kept = (config.folder / RESOLVED).exists()
    return command(config, "resume", config.study.name) if is_kept else start(config)


def found_dead(config: StudyConfig) -> str:
    """What a driver was at when it was killed, as far as its ledger says."""
    path = config.folder / LEDGER
    if not path.exists():
        return "no ledger"
    results = load_results(path)
    running = [row.label for row in results.rows if row.state == "running"]
    return f"{work_done(config)} done, {'finished' if results.finished else running or 'between'}"


def kill(driver: subprocess.Popen[str]) -> None:
    """And nothing that it had started."""
    driver.kill()
    driver.wait()
    for pipe in (driver.stdout, driver.stderr):
        assert pipe is not None
        pipe.close()


def kill_again_and_again(config: StudyConfig, work: int, killed: list[str]) -> None:
    """Adds to `killed` where each driver was found dead."""
    driver, left = go_on(config), set[psutil.Process]()
    for moment in moments(work, SEED):
        wait_for(moment, work, config, driver)
        left |= {*processes_of(config)}
        kill(driver)
        killed.append(f"{moment}: {found_dead(config)}")
        driver = go_on(config)  # at once: nobody waits for what the dead one left
    stdout, stderr = driver.communicate(timeout=PATIENCE_S)
    assert (driver.returncode, stderr) == (0, ""), stdout
    assert f"{TRIALS} of {TRIALS} trials ended" in stdout
    _, alive = psutil.wait_procs(left | {*processes_of(config)}, GONE_S)
    assert not alive


@contextmanager
def saying(killed: list[str]) -> Generator[None]:
    """What fails in this block says with which kills."""
    try:
        yield
    except BaseException as error:
        error.add_note("\n".join([f"seed {SEED}, killed {len(killed)} times:", *killed]))
        raise


def numbers(left: Any, label: str) -> dict[str, list[tuple[int, float]]]:
    history = left.history(label)
    return {name: points for name, points in history.items() if name not in OF_THE_MACHINE}


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_study_killed_twenty_times(
    tmp_path: Path, configure: Any, left_by: Any, pruner: str
) -> None:
    calm_config, config = (build(configure, tmp_path / name, pruner) for name in ("calm", "killed"))
    for folder in ("calm", "killed"):
        (tmp_path / folder).mkdir()
    driver = start(calm_config)
    stdout, stderr = driver.communicate(timeout=PATIENCE_S)
    assert (driver.returncode, stderr) == (0, ""), stdout
    killed: list[str] = []
    with saying(killed):
        kill_again_and_again(config, work_done(calm_config), killed)
        must_be_the_same(left_by(config), left_by(calm_config))
        assert sum("trial " in found for found in killed) >= KILLS // 2  # it hit work


def must_be_the_same(ours: Any, theirs: Any) -> None:
    """And everything is closed, and there once."""
    rows, others = ({row.label: row for row in left.results.rows} for left in (ours, theirs))
    assert sorted(rows) == sorted(others)
    told = ("state", "params", "epochs", "value", "best_epoch", "test_accuracy", "error")
    for label, row in rows.items():
        for name in told:
            assert getattr(row, name) == getattr(others[label], name), (label, name)
        assert numbers(ours, label) == numbers(theirs, label), label
        points = ours.history(label)["val/accuracy"]
        assert [step for step, _ in points] == list(range(1, row.epochs + 1)), label
        run = ours.child(label)
        assert run.data.tags["kd.state"] == row.state
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[row.state]
    assert ours.results.finished
    assert unsent(ours.config.folder / SPOOL) == 0
    assert len(ours.children) == len(rows)
    assert ours.parent.info.status == "FINISHED"
    for left in (ours, theirs):
        history = left.history("study")
        assert [step for step, _ in history["best/val_accuracy"]] == list(range(1, TRIALS + 1))
        assert [step for step, _ in history["best/test_accuracy"]] == [TRIALS]
    assert ours.results.winner.label == theirs.results.winner.label
    drawn, wanted = (
        [(trial.state, trial.params, trial.intermediate_values) for trial in left.optuna_trials]
        for left in (ours, theirs)
    )
    assert drawn == wanted
    assert len(drawn) == TRIALS
