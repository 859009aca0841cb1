"""The tracker against a real SQLite store and a real server; both must show the same runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from study.results import TrialRow
from study.tracking import OpenRun, Tracker, flatten, reason_of
from trainable.errors import ConfigError
from trainable.records import EpochRecord

CONFIG = {"study": {"name": "first", "trials": 8}, "data": {"classes": ("cat", "dog")}}
TRACEBACK = (
    'Traceback (most recent call last):\n  File "loop.py", line 3\nValueError: no pictures\n'
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_healthy(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"mlflow server did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server on this machine."""
    folder = tmp_path_factory.mktemp("server")
    uri = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts"]
    log = folder / "server.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, stdout=out, stderr=out) as process,
    ):
        try:
            wait_until_healthy(uri, process, log)
            yield uri
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The embedded store's address and its folder of artifacts."""
    folder = tmp_path_factory.mktemp("embedded")
    return f"sqlite:///{folder}/mlflow.db", folder / "mlartifacts"


@pytest.fixture(params=["embedded", pytest.param("server", marks=pytest.mark.service)])
def store(request: pytest.FixtureRequest) -> tuple[str, Path | None]:
    """A tracking URI with its artifact root, once of each kind."""
    if request.param == "server":
        return request.getfixturevalue("server"), None
    return request.getfixturevalue("embedded")


@pytest.fixture
def tracker(store: tuple[str, Path | None], request: pytest.FixtureRequest) -> Tracker:
    """A tracker on an experiment of the test's own."""
    uri, artifacts = store
    return Tracker(uri, request.node.name, artifacts)


@pytest.fixture
def client(store: tuple[str, Path | None]) -> MlflowClient:
    """Another program that looks at the same store."""
    return MlflowClient(tracking_uri=store[0])


def start_study(tracker: Tracker) -> str:
    return tracker.start_study(
        "first", CONFIG, {"team": "vision"}, config_text="a: 1\n", note="*hi*"
    )


def read_artifact(client: MlflowClient, run_id: str, name: str, folder: Path) -> str:
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text()


def test_study_run_carries_config_tags_and_note(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = start_study(tracker)
    run: Run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("first", "RUNNING")
    assert run.data.params == {
        "study.name": "first",
        "study.trials": "8",
        "data.classes": "[cat, dog]",
    }
    expected = {"kd.study": "first", "kd.state": "running", "team": "vision"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.note.content"] == "*hi*"
    assert read_artifact(client, run_id, "config.yaml", tmp_path) == "a: 1\n"

    tracker.update_best(run_id, 0.5, 1)
    tracker.update_best(run_id, 0.75, 4)
    tracker.end_study(run_id, "complete", {"best/test_accuracy": 0.7})
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["kd.state"]) == ("FINISHED", "complete")
    assert run.data.metrics == {"best/val_accuracy": 0.75, "best/test_accuracy": 0.7}
    history = client.get_metric_history(run_id, "best/val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (4, 0.75)]


def test_trial_is_a_nested_run_with_flat_params(tracker: Tracker, client: MlflowClient) -> None:
    parent = start_study(tracker)
    params = {"optim.lr": 0.05, "optim.nesterov": True, "distill.k": 5}
    run_id = tracker.start_trial(parent, "first", "trial", 3, params)
    run = client.get_run(run_id)
    assert run.info.run_name == "trial 3"
    assert run.data.params == {"optim.lr": "0.05", "optim.nesterov": "True", "distill.k": "5"}
    tags = {name: run.data.tags.get(name) for name in ("kd.study", "kd.trial", "kd.role")}
    assert tags == {"kd.study": "first", "kd.trial": "3", "kd.role": "trial"}
    assert run.data.tags["kd.state"] == "running"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert "kd.health" not in run.data.tags

    tracker.set_tags(run_id, {"kd.health": "healthy"})
    assert client.get_run(run_id).data.tags["kd.health"] == "healthy"


@pytest.mark.parametrize("role", ["teacher", "baseline", "trial", "replicate"])
def test_run_name_is_the_leaderboards_label(
    role: str, embedded: tuple[str, Path], request: pytest.FixtureRequest
) -> None:
    row = TrialRow.model_validate({"role": role, "number": 2, "directory": "/d"})
    tracker = Tracker(embedded[0], "names", embedded[1])
    run_id = tracker.start_trial("0" * 32, "s", row.role, row.number, {})
    run = MlflowClient(tracking_uri=embedded[0]).get_run(run_id)
    assert run.info.run_name == row.label


def test_more_params_than_a_call_takes_and_longer_than_it_allows(
    tracker: Tracker, client: MlflowClient
) -> None:
    params: dict[str, bool | int | float | str] = {f"many.p{i}": i for i in range(205)}
    params["long"] = "x" * 7000
    run_id = tracker.start_trial(start_study(tracker), "first", "trial", 0, params)
    logged = client.get_run(run_id).data.params
    assert len(logged) == 206
    assert logged["many.p204"] == "204"
    assert (len(logged["long"]), logged["long"][-2:]) == (6000, "x…")


def test_epoch_keeps_its_step_and_time_and_a_replay_adds_nothing(
    tracker: Tracker, client: MlflowClient
) -> None:
    run_id = tracker.start_trial(start_study(tracker), "first", "trial", 0, {})
    record = EpochRecord(2, {"val/accuracy": 0.5, "grad/norm.layer1.0": 3.0}, 1_700_000_000_123)
    tracker.log_epoch(run_id, record)
    tracker.log_epoch(run_id, record)
    for name, value in record.metrics.items():
        (point,) = client.get_metric_history(run_id, name)
        assert (point.step, point.value, point.timestamp) == (2, value, record.timestamp_ms)


@pytest.mark.parametrize(
    ("state", "status"), [("complete", "FINISHED"), ("pruned", "KILLED"), ("failed", "FAILED")]
)
def test_state_is_told_as_tag_and_status(
    embedded: tuple[str, Path], state: str, status: str
) -> None:
    tracker = Tracker(embedded[0], "states", embedded[1])
    run_id = tracker.start_trial(start_study(tracker), "first", "trial", 0, {})
    tracker.end_trial(run_id, state)  # pyright: ignore[reportArgumentType]
    run = MlflowClient(tracking_uri=embedded[0]).get_run(run_id)
    assert (run.info.status, run.data.tags["kd.state"]) == (status, state)
    assert run.info.end_time is not None


def test_failure_is_kept_whole_and_named_in_a_line(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = tracker.start_trial(start_study(tracker), "first", "trial", 0, {})
    tracker.end_trial(run_id, "failed", TRACEBACK)
    assert client.get_run(run_id).data.tags["kd.error"] == "ValueError: no pictures"
    assert read_artifact(client, run_id, "error.txt", tmp_path) == TRACEBACK


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "Traceback …\ntrainable.errors.TrainingError: epoch 1: it; do that\n",
            "epoch 1: it; do that",
        ),
        ("Traceback …\nValueError: no pictures\n", "ValueError: no pictures"),
        ("it ended without a report", "it ended without a report"),
        (
            "data.root: trainable.errors.DataError: is quoted",
            "data.root: trainable.errors.DataError: is quoted",
        ),
    ],
)
def test_the_reason_of_a_failure_begins_with_what_is_wrong(error: str, reason: str) -> None:
    assert reason_of(error) == reason


def test_artifacts(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    run_id = start_study(tracker)
    plot = tmp_path / "plot.txt"
    plot.write_text("a plot")
    tracker.log_artifact(run_id, plot, "plots")
    assert read_artifact(client, run_id, "plots/plot.txt", tmp_path / "down") == "a plot"


def test_leftover_are_the_open_trials_of_one_study(tracker: Tracker) -> None:
    parent, other = start_study(tracker), start_study(tracker)
    assert tracker.leftover(parent) == []
    tracker.start_trial(other, "second", "trial", 0, {})
    teacher = tracker.start_trial(parent, "first", "teacher", 0, {})
    done = tracker.start_trial(parent, "first", "trial", 0, {})
    open_ = tracker.start_trial(parent, "first", "trial", 1, {})
    tracker.end_trial(done, "complete")
    found = sorted(tracker.leftover(parent), key=lambda run: run.role)
    assert found == [OpenRun(teacher, "teacher", 0), OpenRun(open_, "trial", 1)]


def test_interrupted_study_is_taken_up_by_another_process(
    tracker: Tracker,
    client: MlflowClient,
    store: tuple[str, Path | None],
    request: pytest.FixtureRequest,
) -> None:
    run_id = start_study(tracker)
    tracker.end_study(run_id, "interrupted", {})
    assert client.get_run(run_id).info.status == "KILLED"
    again = Tracker(store[0], request.node.name, store[1])
    assert again.experiment_id == tracker.experiment_id
    again.resume_study(run_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["kd.state"]) == ("RUNNING", "running")


def test_resuming_a_run_that_the_store_lacks(tracker: Tracker) -> None:
    with pytest.raises(ConfigError, match=r"^tracking\.uri: must name the store that holds"):
        tracker.resume_study("f" * 32)


def test_embedded_artifacts_lie_under_their_root(embedded: tuple[str, Path]) -> None:
    tracker = Tracker(embedded[0], "../odd name/é", embedded[1])
    start_study(tracker)
    (written,) = embedded[1].glob("*odd*/*/artifacts/config.yaml")
    assert written.is_relative_to(embedded[1])


def test_deleted_experiment_is_refused(embedded: tuple[str, Path]) -> None:
    tracker = Tracker(embedded[0], "gone", embedded[1])
    MlflowClient(tracking_uri=embedded[0]).delete_experiment(tracker.experiment_id)
    with pytest.raises(ConfigError, match=r"^tracking\.experiment: must not be a deleted"):
        Tracker(embedded[0], "gone", embedded[1])


def test_server_that_is_not_there_is_told_soon() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"^tracking\.uri: must be .* got 'http://127.*; start"):
        Tracker(f"http://127.0.0.1:{free_port()}", "e", None)
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_server_that_never_answers_is_told_soon() -> None:
    patience = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"^tracking\.uri: "):
            Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "e", None)
        assert time.monotonic() - started < 12
    assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") == patience


@pytest.mark.parametrize(
    "uri",
    [
        "127.0.0.1:5000",
        "mlruns",
        "file:///nowhere/mlruns",
        "ftp://host/x",
        "sqlite:///{folder}",
        "sqlite:///{folder}/text.db",
        "postgresql://nobody@127.0.0.1:9/none",
        "",
    ],
)
def test_unusable_store_is_refused(uri: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, whatever its name says")
    started = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"^tracking\.uri: must be the address of an MLflow store"
    ):
        Tracker(uri.format(folder=tmp_path), "e", None)
    assert time.monotonic() - started < 10


def test_terminal_stays_quiet_and_global_state_untouched(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from study.tracking import Tracker\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "tracker = Tracker(f'sqlite:///{folder}/new/mlflow.db', 'e', folder / 'mlartifacts')\n"
        "run = tracker.start_study('s', {}, {}, config_text='', note='')\n"
        "tracker.end_study(run, 'complete', {'a': 1.0})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "mlartifacts"}


def test_flatten() -> None:
    config = {
        "study": {"objectives": ("val/accuracy",), "seed": None, "name": "s"},
        "search": {"optim.lr": {"loguniform": [1e-4, 0.1]}},
        "data": {"mean": (0.5, 0.5), "columns": {}},
        "train": {"deterministic": False},
    }
    assert flatten(config) == {
        "study.objectives": "[val/accuracy]",
        "study.name": "s",
        "search.optim.lr.loguniform": "[0.0001, 0.1]",
        "data.mean": "[0.5, 0.5]",
        "train.deterministic": False,
    }


def test_a_trial_that_is_taken_up_again_forgets_its_error(embedded: tuple[str, Path]) -> None:
    uri, root = embedded
    tracker = Tracker(uri, "again", root)
    parent = tracker.start_study("s", {}, {}, config_text="", note="")
    run_id = tracker.start_trial(parent, "s", "trial", 0, {})
    tracker.end_trial(run_id, "failed", "ValueError: no pictures")
    tracker.reopen_trial(run_id)
    run = MlflowClient(tracking_uri=uri).get_run(run_id)
    assert (run.info.status, run.data.tags["kd.state"]) == ("RUNNING", "running")
    assert "kd.error" not in run.data.tags
    tracker.end_trial(run_id, "complete")
    tracker.reopen_trial(run_id)
