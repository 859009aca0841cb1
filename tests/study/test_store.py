"""Finding a store: real ones, and everything that is none."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from study.config import embedded_store
from study.store import open_store
from tests.study.mlflow_server import free_port
from trainable.errors import ConfigError


def test_an_experiment_is_made_once(place: tuple[str, Path | None]) -> None:
    first = open_store(place[0], "once", place[1])
    assert open_store(place[0], "once", place[1]).experiment_id == first.experiment_id


def test_embedded_artifacts_lie_under_their_root(embedded: tuple[str, Path]) -> None:
    store = open_store(embedded[0], "../odd name/é", embedded[1])
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_text(run_id, "a: 1", "config.yaml")
    (written,) = embedded[1].glob("*odd*/*/artifacts/config.yaml")
    assert written.is_relative_to(embedded[1])


def test_the_embedded_store_lies_where_its_folder_says(tmp_path: Path) -> None:
    folder = tmp_path / "a%2Fb? #c d"
    folder.mkdir()
    store = open_store(embedded_store(folder), "e", folder / "mlartifacts")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_text(run_id, "a: 1", "config.yaml")
    assert (folder / "mlflow.db").is_file()
    assert len(list(folder.glob("mlartifacts/*/*/artifacts/config.yaml"))) == 1
    # MLflow makes an empty folder of the address's own letters beside it.
    assert [path for path in tmp_path.rglob("*.db") if path.parent != folder] == []


def test_deleted_experiment_is_refused(embedded: tuple[str, Path]) -> None:
    store = open_store(embedded[0], "gone", embedded[1])
    MlflowClient(tracking_uri=embedded[0]).delete_experiment(store.experiment_id)
    with pytest.raises(ConfigError, match=r"^tracking\.experiment: must not be a deleted"):
        open_store(embedded[0], "gone", embedded[1])


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/mlflow.db", "e", tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON experiments BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with pytest.raises(ConfigError, match=r"^tracking\.uri: must be .*full"):
        open_store(f"sqlite:///{tmp_path}/mlflow.db", "another", tmp_path)


def test_server_that_is_not_there_is_told_soon() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"^tracking\.uri: must be .* got 'http://127.*; start"):
        open_store(f"http://127.0.0.1:{free_port()}", "e", None)
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_server_that_never_answers_is_told_soon() -> None:
    patience = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"^tracking\.uri: "):
            open_store(f"http://127.0.0.1:{silent.getsockname()[1]}", "e", None)
        assert time.monotonic() - started < 30
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
        open_store(uri.format(folder=tmp_path), "e", None)
    assert time.monotonic() - started < 10


def test_terminal_stays_quiet_and_global_state_untouched(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from study.entries import Points\n"
        "from study.store import open_store\n"
        "from study.telling import study_opening\n"
        "from study.tracking import Tracker\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "store = open_store(f'sqlite:///{folder}/new/mlflow.db', 'e', folder / 'mlartifacts')\n"
        "tracker = Tracker(store)\n"
        "run = tracker.open_run(study_opening('s', 'i', '', 1), may_be_there=True)\n"
        "assert not tracker.send(run, [Points(run='s', metrics={'a': 1.0}, step=1, time_ms=1)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"new"}
