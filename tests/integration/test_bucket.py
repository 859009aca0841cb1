"""Studies kept in a bucket of a real server: on one machine, on another after it, on nodes that share nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from study.cli import _app
from study.config import RESOLVED, StudyConfig, dump_config
from study.fetching import ROOT, STATE, looked_at
from study.ledger import LEDGER, find_results
from study.results import StudyResults
from tests.integration.test_mlflow_away import must_be_there_once
from tests.study.exported import MadeUp, invoke
from tests.study.s3_server import S3Server, running_s3
from trainable.bucket import Bucket
from trainable.errors import InputError

pytestmark = [pytest.mark.service, pytest.mark.timeout(1200)]

TWO_NODES = """
import os, subprocess, sys
from ray.cluster_utils import Cluster

# The driver's node has no place for trials, and the other has another cache.
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
cluster.add_node(num_cpus=2, env_vars={"KD_STUDY_CACHE": sys.argv[1]})
try:
    command = [sys.executable, "-m", "study", "run", sys.argv[2]]
    sys.exit(subprocess.run(command, env=os.environ | {"RAY_ADDRESS": cluster.address}).returncode)
finally:
    cluster.shutdown()
"""


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running_s3(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def build(configure: Any, storage: str | Path, epochs: int = 4, **changes: Any) -> StudyConfig:
    return configure(
        storage,
        study={"trials": 2, "concurrency": 1},
        teacher={"train": {"epochs": 2, "batch_size": 64}},
        distill={"method": "kd", "alpha": 0.5},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
        train={"epochs": epochs},
        **changes,
    )


@contextmanager
def running(config: StudyConfig, folder: Path, machine: str) -> Generator[subprocess.Popen[str]]:
    """Run it as on a machine with this cache, and a Ray cluster of its own; whatever runs in the end is killed."""
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    env = os.environ | {"KD_STUDY_CACHE": str(folder / machine)}
    env.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        [sys.executable, "-m", "study", "run", str(path)],
        cwd=folder,  # where MLflow has the artifacts of a database
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as driver:
        try:
            yield driver
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)


def must_end_well(driver: subprocess.Popen[str]) -> None:
    stdout, stderr = driver.communicate(timeout=900)
    assert (driver.returncode, stderr) == (0, ""), stdout


def finish(config: StudyConfig, folder: Path, machine: str) -> None:
    with running(config, folder, machine) as driver:
        must_end_well(driver)


def numbers(results: StudyResults) -> list[tuple[Any, ...]]:
    """What a study found, without times and places."""
    return sorted(
        (row.label, row.state, row.epochs, row.value, row.test_accuracy, str(row.params))
        for row in results.rows
    )


def epochs_kept(config: StudyConfig) -> int:
    """As a driver elsewhere would find them."""
    try:
        root = looked_at(config.storage.path, config.study.name)
    except InputError:
        return 0
    return sum(row.epochs for row in find_results(root, config.study.name).rows)


def wait_for_progress(config: StudyConfig, driver: subprocess.Popen[str], epochs: int) -> None:
    until = time.monotonic() + 300
    while epochs_kept(config) < epochs:
        assert time.monotonic() < until
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(configure: Any, tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """The same study in a folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = build(configure, folder)
    finish(config, folder, "machine")
    return find_results(folder, config.study.name)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("store", ["embedded", "elsewhere"])
def test_a_killed_driver_is_followed_by_one_on_another_machine(
    store: str, s3: S3Server, tmp_path: Path, configure: Any, undisturbed: StudyResults
) -> None:
    draw = random.Random(3)
    elsewhere = {"tracking": {"uri": f"sqlite:///{tmp_path}/tracking.db"}}
    config = build(configure, s3.uri, **(elsewhere if store == "elsewhere" else {}))
    for machine in ("one", "two"):
        before = epochs_kept(config)
        with running(config, tmp_path, machine) as driver:
            wait_for_progress(config, driver, before + 3)
            time.sleep(draw.uniform(0, 2))
    finish(config, tmp_path, "three")
    root = looked_at(s3.uri, config.study.name)
    results = find_results(root, config.study.name)
    assert numbers(results) == numbers(undisturbed)
    moved = config.model_copy(
        update={"storage": config.storage.model_copy(update={"path": str(root)})}
    )
    must_be_there_once(moved, MlflowClient(results.tracking_uri))
    for run in MlflowClient(results.tracking_uri).search_runs([str(results.experiment_id)]):
        if store == "embedded":
            assert str(root) in run.info.artifact_uri
            assert MlflowClient(results.tracking_uri).list_artifacts(run.info.run_id)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_bucket_that_is_away_for_a_minute(
    s3: S3Server, tmp_path: Path, configure: Any, undisturbed: StudyResults
) -> None:
    config = build(configure, s3.uri)
    with running(config, tmp_path, "machine") as driver:
        wait_for_progress(config, driver, 5)
        s3.cut()
        with pytest.raises(InputError):
            looked_at(s3.uri, config.study.name)
        time.sleep(60)
        assert driver.poll() is None
        s3.mend()
        must_end_well(driver)
    root = looked_at(s3.uri, config.study.name)
    assert numbers(find_results(root, config.study.name)) == numbers(undisturbed)


@pytest.mark.slow
def test_nodes_that_share_nothing_but_a_bucket(
    s3: S3Server, tmp_path: Path, configure: Any, undisturbed: StudyResults
) -> None:
    config = build(configure, s3.uri)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-c", TWO_NODES, str(tmp_path / "other"), str(path)]
    env = os.environ | {"KD_STUDY_CACHE": str(tmp_path / "driver"), "RAY_LOG_TO_STDERR": "0"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    (here,) = (tmp_path / "driver" / "buckets").glob("*/tiny")
    (there,) = (tmp_path / "other" / "buckets").glob("*/tiny")
    assert list(there.glob("trials/*/checkpoints"))
    assert not list(here.glob("trials/*/checkpoints"))
    results = find_results(here.parent, config.study.name)
    assert numbers(results) == numbers(undisturbed)
    assert results.winner is not None
    best = Path(results.winner.directory) / "best.safetensors"
    assert best.read_bytes() == (there / best.relative_to(here)).read_bytes()


@pytest.mark.slow
def test_a_second_driver_is_refused_wherever_it_is(
    s3: S3Server, tmp_path: Path, configure: Any
) -> None:
    # The first is not to end before the second has seen that it lives.
    config = build(configure, s3.uri, epochs=500)
    with running(config, tmp_path, "one") as first:
        wait_for_progress(config, first, 1)
        with running(config, tmp_path, "two") as second:
            _, stderr = second.communicate(timeout=240)
            assert second.returncode == 2
            assert stderr.startswith("study.name: another kd-study is at work on it on ")
        assert first.poll() is None


def test_the_words_of_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    """As in tests/trainable/test_bucket.py."""
    bucket = Bucket(s3.uri)
    assert bucket.names() == []
    assert bucket.read("a/one") is None
    assert not bucket.fetch("a/one", tmp_path / "one")
    (tmp_path / "file").write_bytes(os.urandom(12 * 2**20))  # in parts
    bucket.put("a/one", tmp_path / "file")
    bucket.put("a/b/two", b"2")
    bucket.put("empty", b"")
    bucket.copy("a/b/two", "a/three")
    assert bucket.names() == ["a/b/two", "a/one", "a/three", "empty"]
    assert (bucket.read("a/three"), bucket.read("empty")) == (b"2", b"")
    assert bucket.fetch("a/one", tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "file").read_bytes()
    bucket.remove("a/one")
    bucket.remove("a/one")
    assert bucket.names("a") == ["a/b/two", "a/three"]


def test_what_is_replaced_while_it_is_read_is_read_whole(s3: S3Server, tmp_path: Path) -> None:
    """A file of one letter, again and again of another length; each takes several requests to read."""
    bucket = Bucket(s3.uri)
    bucket.put("file", b"a")

    def write() -> None:
        other = Bucket(s3.uri)
        for number in range(12):
            other.put("file", bytes([97 + number]) * (2**20 * (4 + number % 3)))
            time.sleep(0.5)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        assert bucket.fetch("file", tmp_path / "file")
        found = (tmp_path / "file").read_bytes()
        assert len(set(found)) == 1
        assert len(found) == 1 or len(found) % 2**20 == 0
    thread.join()


def refused(command: str, config: StudyConfig, folder: Path) -> str:
    """The line that says why."""
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    ended = CliRunner().invoke(_app, [command, str(path)])
    assert ended.exit_code == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("storage.path: must be a bucket that this machine may write and read ")
    return line


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_bucket_that_cannot_be_used_is_said_in_one_line(
    command: str, s3: S3Server, tmp_path: Path, configure: Any
) -> None:
    missing = refused(command, build(configure, "s3://there-is-none/x"), tmp_path)
    assert "The specified bucket does not exist" in missing
    assert missing.endswith(
        "got 's3://there-is-none/x'; make it, correct the address, or give credentials "
        "(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)"
    )
    s3.cut()
    assert "connect" in refused(command, build(configure, s3.uri), tmp_path)


def test_credentials_that_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Any
) -> None:
    with running_s3(tmp_path, knows_nobody=True) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        line = refused("run", build(configure, server.uri), tmp_path)
    assert "INVALID_ACCESS_KEY_ID" in line


def test_a_report_of_a_bucket_that_is_away(s3: S3Server) -> None:
    s3.cut()
    ended = CliRunner().invoke(_app, ["report", "s", "--storage", s3.uri])
    assert ended.exit_code == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("storage.path: must be a bucket that this machine may write and read ")


def test_a_study_that_is_not_there(s3: S3Server) -> None:
    ended = CliRunner().invoke(_app, ["report", "nobody", "--storage", s3.uri])
    assert ended.exit_code == 2
    assert ended.stderr == (
        f"{s3.uri}: must hold the study, got 'nobody'; check its name, the bucket and the prefix\n"
    )


def test_a_student_leaves_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    """Its winner, or another trial whose weights are there."""
    study, bucket = MadeUp(tmp_path / "runs"), Bucket(s3.uri)
    with ZipFile(tmp_path / STATE, "w") as archive:
        archive.writestr(ROOT, str(study.storage))
        for name in (RESOLVED, LEDGER):
            archive.write(study.folder / name, name)
    bucket.put(f"{study.name}/{STATE}", tmp_path / STATE)
    for number in (0, 1):
        kept = study.weights(number)
        bucket.put(str(kept.relative_to(study.storage)), kept)
    light = ("--storage", s3.uri, "--formats", "safetensors")
    for trial in ((), ("--trial", 0)):
        to = tmp_path / "-".join(["export", *map(str, trial)])
        ended = invoke("export", study.name, *light, *trial, "--to", to)
        assert (ended.exit_code, ended.stderr) == (0, "")
        card = (to / "MODEL_CARD.md").read_text()
        assert card.startswith(f"# made-up, trial {0 if trial else 1}\n")
    gone = invoke("export", study.name, *light, "--trial", 2, "--to", tmp_path / "gone")
    assert gone.stderr.startswith("--trial: must be one whose weights are kept")
    unregistered = invoke("export", study.name, "--storage", s3.uri, "--to", to, "--register")
    assert unregistered.stderr.startswith("--register: needs a study with tracking.uri")
