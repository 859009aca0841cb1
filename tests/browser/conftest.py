"""Small studies in real stores, made up and run, MLflow's pages on them, and a browser to look at them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from study import telling
from study.entries import Entry, Opening
from study.ledger import LEDGER, load_results
from study.results import State, StudyResults, TrialRow
from study.store import open_store
from study.tracking import Tracker
from trainable.records import EpochRecord

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 3
STATES: list[State] = ["complete"] * 5 + ["pruned", "pruned", "failed"]
BROWSER_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--window-size=1600,1200",
]


@dataclass(frozen=True)
class StoredStudy:
    """A finished study, and the server that shows it."""

    server: str
    experiment_id: str
    parent: str
    trials: list[str]


def accuracy(trial: int, epoch: int) -> float:
    """Made up, and different for every trial and epoch."""
    return round(0.5 + 0.05 * epoch + 0.0123 * trial, 4)


def send(tracker: Tracker, run_id: str, entries: list[Entry]) -> None:
    """As the study's writer does, one entry at a time."""
    for entry in entries:
        assert tracker.send(run_id, [entry]) == []


def write_study(tracker: Tracker) -> tuple[str, list[str]]:
    """A parent run with eight trials; the run ids."""
    now = time.time_ns() // 1_000_000
    opening = telling.study_opening("quickstart", "0", "A *small* study", now)
    parent = tracker.open_run(opening, may_be_there=False)
    config = {"study": {"name": "quickstart", "trials": len(STATES)}}
    send(tracker, parent, telling.study_begins(config, "study:\n  name: quickstart\n"))
    results = StudyResults(
        name="quickstart",
        trials_planned=len(STATES),
        started_at=time.time(),
        tracking_uri="",
        experiment="kd",
        parent_run_id=parent,
    )
    for number, state in enumerate(STATES):
        params = {"optim.lr": 0.01 * 2**number, "distill.alpha": 0.1 * number, "distill.k": 5}
        row = TrialRow(role="trial", number=number, directory="/nowhere")
        opening, *told = telling.trial_begins(results, row, params, now)
        assert isinstance(opening, Opening)
        run_id = tracker.open_run(opening, may_be_there=False)
        for epoch in range(1, EPOCHS + 1):
            best = {"value": accuracy(number, epoch), "best_epoch": epoch, "epochs": epoch}
            row = row.model_copy(update=best)
            metrics = {"val/accuracy": accuracy(number, epoch), "train/loss": 2.0 / epoch}
            told += telling.epoch_ended(row, EpochRecord(epoch, metrics, now + epoch))
        error = "ValueError: no pictures" if state == "failed" else None
        row = row.model_copy(update={"state": state, "run_id": run_id})
        send(tracker, run_id, [*told, *telling.trial_ended(row, error, None, now + EPOCHS)])
        results = results.with_row(row)
        send(tracker, parent, telling.study_advances(results, 0.0, now + EPOCHS))
    winner = results.best_trials[0].model_copy(update={"test_accuracy": 0.6789})
    results = results.with_row(winner)
    send(tracker, parent, telling.study_ends("complete", results, now + EPOCHS))
    return parent, [run_id for run_id in results.run_ids.values() if run_id != parent]


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredStudy]:
    """The study in an embedded store, served by `mlflow ui` on this machine."""
    folder = tmp_path_factory.mktemp("pages")
    uri = f"sqlite:///{folder}/mlflow.db"
    store = open_store(uri, "kd", folder / "mlartifacts")
    parent, trials = write_study(Tracker(store))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri]
    log = folder / "server.log"
    server = f"http://127.0.0.1:{port}"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, stdout=out, stderr=out) as process,
    ):
        try:
            wait_until_healthy(server, process, log)
            yield StoredStudy(server, store.experiment_id, parent, trials)
        finally:
            process.terminate()


@dataclass(frozen=True)
class RunStudy:
    """A study that `kd-study run` has run, served by `kd-study ui`."""

    results: StudyResults
    folder: Path
    server: str
    page: str
    """What `kd-study ui` says is the study's page."""


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunStudy]:
    """The quickstart study, shortened to six trials of four epochs."""
    storage = tmp_path_factory.mktemp("ran")
    settings = [f"storage.path={storage}", "study.trials=6", "study.pruner.grace_epochs=2"]
    settings += ["train.epochs=4", "teacher.train.epochs=4"]
    run = [sys.executable, "-m", "study", "run", "configs/quickstart.yaml"]
    run += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(run, cwd=ROOT, check=True, capture_output=True, timeout=240)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    show = [sys.executable, "-m", "study", "ui", "--storage", str(storage), "--port", str(port)]
    with subprocess.Popen(show, cwd=ROOT, stdout=subprocess.PIPE, text=True) as ui:
        try:
            assert ui.stdout is not None
            name, page = ui.stdout.readline().split()
            folder = storage / name
            server = f"http://127.0.0.1:{port}"
            yield RunStudy(load_results(folder / LEDGER), folder, server, page)
        finally:
            ui.terminate()


def wait_until_healthy(server: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"`mlflow ui` did not start:\n{log.read_text()}")


def program(*names: str) -> str:
    """The first of these programs that is installed."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.fail(
        f"none of {', '.join(names)} is installed; `apt-get install chromium chromium-driver`, or "
        "leave these tests out with `-m 'not browser'`"
    )


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@contextmanager
def open_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a profile of its own, which keeps what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    for option in [*BROWSER_OPTIONS, f"--user-data-dir={profile}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
