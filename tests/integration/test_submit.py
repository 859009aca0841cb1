"""Studies as jobs of a Ray cluster: followed, left alone, stopped, gone on with, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from study.config import StudyConfig, dump_config
from study.ledger import load_results
from tests.integration.jobs import ray_job_submit, running_cluster, submit, submitting

pytestmark = [pytest.mark.service, pytest.mark.slow, pytest.mark.timeout(400)]

SEARCH = {"optim.lr": {"loguniform": [0.01, 0.1]}}
EPOCHS = 40  # a trial is not through before another command has said something
LONG: dict[str, Any] = {
    "study": {"trials": 3, "concurrency": 1},
    "train": {"epochs": EPOCHS},
    "search": SEARCH,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with running_cluster() as address:
        yield address


def written(config: StudyConfig) -> Path:
    """The config as a file of the person who submits it."""
    path = Path(config.storage.path) / "my study.yaml"
    path.write_text(dump_config(config))
    return path


def wait_for_second_trial(config: StudyConfig, process: subprocess.Popen[str]) -> None:
    """Until the second of a LONG study's trials has reported an epoch."""
    ledger, until = config.folder / "results.json", time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None:
        if ledger.exists():
            rows = load_results(ledger).of("trial")
            if any(row.number == 1 and row.epochs >= 1 for row in rows):
                return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the second trial did not begin: {process.communicate()}")


def followed_in_mid_study(config: StudyConfig, address: str) -> tuple[Path, subprocess.Popen[str]]:
    """The file of a study that was submitted, and who follows it, in its second trial."""
    path = written(config)
    process = submitting(path, "--address", address)
    wait_for_second_trial(config, process)
    return path, process


def must_be_whole(left: Any) -> None:
    """Three trials, each once and complete, and nothing that still runs."""
    assert [trial.state for trial in left.optuna_trials] == [TrialState.COMPLETE] * 3
    told = Counter((run.data.tags["kd.role"], run.data.tags["kd.trial"]) for run in left.children)
    assert set(told.values()) == {1}
    assert {run.data.tags["kd.state"] for run in left.children} == {"complete"}
    assert {run.info.status for run in (left.parent, *left.children)} == {"FINISHED"}
    for number in range(3):
        steps = [step for step, _ in left.history(f"trial {number}")["val/accuracy"]]
        assert steps == list(range(1, EPOCHS + 1))


def test_a_study_is_followed_to_its_leaderboard(
    cluster: str, tmp_path: Path, configure: Any, left_by: Any
) -> None:
    config = configure(tmp_path, search=SEARCH)
    path = written(config)
    code, stdout, stderr = submit(path, "--address", cluster)
    assert (code, stderr) == (0, ""), stdout
    assert "Running entrypoint for job tiny-" in stdout
    assert "2 of 2 trials ended" in stdout
    assert stdout.splitlines()[-1].startswith("tiny-")
    assert ": succeeded at " in stdout.splitlines()[-1]
    assert left_by(config).parent.info.status == "FINISHED"

    code, stdout, stderr = submit(path, "--address", cluster, "--status")
    assert (code, stderr) == (0, "")
    assert ": succeeded at " in stdout

    code, stdout, stderr = submit(path, "--address", cluster, "--stop")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("study.name: has no job that runs, got 'tiny-")

    code, again, _ = submit(path, "--address", cluster)
    assert code == 0
    assert "training the" not in again
    assert "2 of 2 trials ended" in again


def test_rays_own_command_does_it_too(
    cluster: str, tmp_path: Path, configure: Any, left_by: Any
) -> None:
    config = configure(tmp_path, study={"trials": 1}, search=SEARCH)
    sent = tmp_path / "sent"
    sent.mkdir()
    (sent / "my study.yaml").write_text(dump_config(config))
    command = ["kd-study", "run", "my study.yaml", "--set", "optim.momentum=0.8"]
    plain = ray_job_submit(sent, cluster, *command)
    assert plain.returncode == 0, plain.stderr
    assert "1 of 1 trials ended" in plain.stdout
    assert left_by(config).child("trial 0").data.params["optim.momentum"] == "0.8"


def test_a_stopped_study_goes_on(
    cluster: str, tmp_path: Path, configure: Any, left_by: Any
) -> None:
    config = configure(tmp_path, **LONG)
    path, first = followed_in_mid_study(config, cluster)

    asked = time.monotonic()
    code, stdout, stderr = submit(path, "--address", cluster, "--stop")
    assert (code, stderr) == (0, "")
    assert time.monotonic() - asked < 60
    assert "interrupted: run the same command again to go on" in stdout
    assert ": stopped at " in stdout.splitlines()[-1]
    told, errors = first.communicate(timeout=30)
    assert (first.returncode, errors) == (130, "")
    assert told.endswith("run the same command again to go on\n")
    stopped = left_by(config)
    assert stopped.parent.data.tags["kd.state"] == "interrupted"
    states = [trial.state for trial in stopped.optuna_trials]
    assert 1 <= states.count(TrialState.COMPLETE) <= 2

    code, stdout, stderr = submit(path, "--address", cluster)
    assert (code, stderr) == (0, ""), stdout
    assert "trial 0 complete: " not in stdout  # it was not trained again
    must_be_whole(left_by(config))


def test_ctrl_c_leaves_the_job_alone_and_the_same_command_follows_it(
    cluster: str, tmp_path: Path, configure: Any, left_by: Any
) -> None:
    config = configure(tmp_path, **LONG)
    path, first = followed_in_mid_study(config, cluster)
    os.killpg(first.pid, signal.SIGINT)
    stdout, stderr = first.communicate(timeout=30)
    assert (first.returncode, stderr) == (130, "")
    assert "\ndetached from tiny-" in stdout
    name = stdout.partition(":")[0]

    code, stdout, stderr = submit(path, "--address", cluster, "--status")
    assert (code, stderr) == (0, "")
    assert stdout.splitlines()[-1].startswith(f"{name}: running since ")

    code, stdout, stderr = submit(path, "--address", cluster, "--set", "optim.momentum=0.5")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("study.name: is being run with other settings or other code, got ")

    code, stdout, stderr = submit(path, "--address", cluster)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"{name}: running since ")
    assert "3 of 3 trials ended" in stdout
    must_be_whole(left_by(config))


def test_code_that_the_cluster_does_not_have_travels_along(
    cluster: str, tmp_path: Path, configure: Any
) -> None:
    network = tmp_path / "nets.py"
    network.write_text(
        "from torch import nn\n\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(4, num_classes))\n"
    )
    config = configure(
        tmp_path,
        study={"trials": 1},
        student={"model": "nets:small"},
        distill={"method": "kd", "alpha": 0.5},
        search=SEARCH,
    )
    path = written(config)
    code, stdout, _ = submit(path, "--address", cluster)
    assert code == 2
    assert "student.model: " in stdout

    sent = ["--code", network, "--with-kd-study"]
    code, stdout, stderr = submit(path, "--address", cluster, *sent)
    assert (code, stderr) == (0, ""), stdout
    assert ": python -m study run 'my study.yaml'" in stdout
    assert "1 of 1 trials ended" in stdout


def test_a_job_that_fails_by_itself_says_why(cluster: str, tmp_path: Path, configure: Any) -> None:
    path = written(configure(tmp_path, search=SEARCH, data={"source": "cifar10", "root": "/none"}))
    code, stdout, stderr = submit(path, "--address", cluster)
    assert (code, stderr) == (2, "")
    assert "data.root: " in stdout
    assert ": failed at " in stdout.splitlines()[-1]


def test_what_cannot_be_submitted_is_said_in_one_line(
    cluster: str, tmp_path: Path, configure: Any
) -> None:
    path = written(configure(tmp_path, search=SEARCH))
    for arguments, words in (
        ([path, "--status"], "study.name: has no job at http://127.0.0.1:"),
        ([path, "--stop"], "study.name: has no job at http://127.0.0.1:"),
        ([path, "--code", tmp_path / "none.py"], "--code: must be a Python file or the folder "),
        ([tmp_path / "none.yaml"], f"{tmp_path}/none.yaml: must be a config file; "),
    ):
        code, stdout, stderr = submit(*arguments, "--address", cluster)
        assert (code, stdout) == (2, "")
        assert stderr.startswith(words)
        assert len(stderr.splitlines()) == 1


@pytest.mark.chaos
def test_a_cluster_that_goes_away_is_said(tmp_path: Path, configure: Any) -> None:
    # So many that they are not through before the cluster is.
    config = configure(tmp_path, **LONG | {"study": {"trials": 100}})
    with running_cluster() as address:
        _, following = followed_in_mid_study(config, address)
    stdout, stderr = following.communicate(timeout=60)
    assert following.returncode == 130, stdout
    assert stderr.startswith(f"{address} no longer ")
    assert "; the same command follows tiny-" in stderr
    assert len(stderr.splitlines()) == 1


def test_a_cluster_that_asks_for_a_token(tmp_path: Path, configure: Any) -> None:
    path = written(configure(tmp_path, study={"trials": 1}, search=SEARCH))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
    with running_cluster(token) as address:
        for given in ({}, token | {"RAY_AUTH_TOKEN": "u" * 64}):
            code, stdout, stderr = submit(path, "--address", address, "--status", env=given)
            assert (code, stdout) == (2, "")
            assert stderr.startswith("--address: asks for a token, and must be given the right one")
            assert len(stderr.splitlines()) == 1
        code, stdout, stderr = submit(path, "--address", address, env=token)
        assert (code, stderr) == (0, "")
        assert "1 of 1 trials ended" in stdout
