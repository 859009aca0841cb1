"""`kd-study ui` as a person uses it: it serves, says where, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from study.config import embedded_store
from study.ledger import LEDGER, save_results
from study.report.server import ServerError, serve
from study.results import StudyResults
from study.store import open_store
from study.telling import study_opening
from study.tracking import Tracker
from tests.study.mlflow_server import free_port
from tests.study.studies import results_of

pytestmark = [pytest.mark.service, pytest.mark.slow]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a study's parent run."""
    folder = tmp_path_factory.mktemp("storage")
    uri = embedded_store(folder)
    store = open_store(uri, "kd-study", folder / "mlartifacts")
    parent = Tracker(store).open_run(study_opening("first", "id", "", 0), may_be_there=False)
    known = {"tracking_uri": uri, "experiment_id": store.experiment_id, "parent_run_id": parent}
    results: StudyResults = results_of(name="first", **known)
    (folder / "first").mkdir()
    save_results(results, folder / "first" / LEDGER)
    return folder


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", [[], ["first"]])
def test_ui_serves_until_it_is_stopped(
    storage: Path, stop: signal.Signals, name: list[str]
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "study", "ui", *name]
    command += ["--storage", str(storage), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        assert ui.stderr is not None
        told = [ui.stdout.readline(), ui.stdout.readline()]
        page = f"http://127.0.0.1:{port}/#/experiments/1/runs?"
        assert told[0].startswith(f"first  {page}"), ui.stderr.read() if ui.poll() else told
        assert told[1] == f"MLflow at http://127.0.0.1:{port}; Ctrl-C stops it\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            assert answer.status == 200
        started = psutil.Process(ui.pid).children(recursive=True)
        assert started
        ui.send_signal(stop)
        assert ui.wait(30) == 0
        assert (ui.stdout.read(), ui.stderr.read()) == ("", "")
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def test_a_server_that_ends_by_itself_says_why(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    store.write_bytes(b"this is no database" * 100)
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"mlflow ui did not start:\n."):
        serve(f"sqlite:///{store}", free_port(), print)
    assert time.monotonic() - began < 100
