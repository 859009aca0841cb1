"""What `validate` finds around a config without making anything, as `run` does when it begins."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from study.cli import _app
from study.cluster import Capacity
from study.config import load_config, parse_config
from study.folder import keep_config
from study.ledger import LEDGER
from study.preflight import preflight
from study.store import check_store, open_store
from study.writable import sqlite_problem, takes_files
from trainable.errors import ConfigError

CONFIG = """
study: {name: s}
data: {source: digits}
student: {model: mini_resnet_10_4}
distill: {method: none}
search: {optim.lr: {loguniform: [1e-4, 1e-1]}}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("study.yaml").write_text(CONFIG)


def validate(*settings: str) -> Result:
    options = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(_app, ["validate", "study.yaml", *options])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tracking.uri=http://127.0.0.1:9", "tracking.uri: must be the address of an MLflow store"),
        ("tracking.uri=http//host", "tracking.uri: must be the address of an MLflow store that "),
        ("tracking.uri=sqlite:////proc/x/m.db", "/proc is no folder that can be written"),
        ("tracking.uri=sqlite:///study.yaml", "study.yaml is no SQLite database"),
        ("storage.path=/proc/x", "storage.path: must be a folder that can be written, which /proc"),
        ("storage.optuna=sqlite:////proc/x.db", "/proc is no folder that can be written"),
        ("storage.optuna=sqlite:///study.yaml", "study.yaml is no SQLite database"),
        ("storage.optuna=sqlite:////proc", "storage.optuna: must be a SQLite file that can be"),
        ("storage.optuna=postgresql://me:pw@127.0.0.1:9/x", "storage.optuna: must be the URL of a"),
    ],
)
def test_a_store_that_run_could_not_open_is_refused(setting: str, words: str) -> None:
    before = sorted(Path.cwd().rglob("*"))
    refused = validate(setting)
    assert refused.exit_code == 2, refused.output
    (line,) = refused.stderr.splitlines()
    assert words in line
    assert "pw@" not in line
    assert "; " in line
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_name_that_another_config_has_taken_is_refused() -> None:
    begun = load_config(Path("study.yaml"))
    begun.folder.mkdir(parents=True)
    keep_config(begun)
    assert "whether MLflow still has its run" not in validate().stdout
    (begun.folder / LEDGER).touch()
    again = validate()
    assert again.exit_code == 0
    assert "whether MLflow still has its run" in again.stdout.splitlines()[-1]
    taken = validate("optim.momentum=0.5")
    assert taken.exit_code == 2
    (line,) = taken.stderr.splitlines()
    assert line.startswith("optim.momentum: must be ")
    assert "the study 's'" in line


def test_a_file_in_the_place_of_the_studys_folder_is_refused() -> None:
    Path("runs").mkdir()
    Path("runs/s").touch()
    refused = validate()
    assert refused.exit_code == 2
    assert "storage.path: must be a folder that can be written, which " in refused.stderr
    assert "runs/s is not" in refused.stderr


def test_nothing_is_said_of_a_store_whose_address_is_wrong_in_itself() -> None:
    refused = validate("tracking.url=http://127.0.0.1:9", "tracking.uri=7", "optim.lr=-1")
    assert refused.stderr.splitlines() == [
        "optim.lr: must be > 0, got -1; give a larger number",
        "tracking.uri: must be text, got 7; put it in quotes if it is meant",
        "tracking.url: is not a known key; did you mean tracking.uri?",
    ]


def test_what_is_not_checked_is_said_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = validate("storage.optuna=sqlite:///o.db", "tracking.uri=sqlite:///new/m.db")
    assert (done.exit_code, done.stderr) == (0, "")
    last = done.stdout.splitlines()[-1]
    assert last.startswith("not checked whether another kd-study is at work on it; ")
    assert last.endswith("; whether storage.optuna holds another study of this name")
    assert [path.name for path in Path.cwd().iterdir()] == ["study.yaml"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "; the cluster of RAY_ADDRESS " in validate().stdout.splitlines()[-1]


def test_a_driver_refuses_the_same_places_before_anything_is_made() -> None:
    def wrong(**storage: str) -> str:
        tree: dict[str, Any] = {
            "study": {"name": "s"},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "storage": storage,
        }
        with pytest.raises(ConfigError) as caught:
            preflight(parse_config(tree), Capacity(cpus=2, gpus=0))
        return str(caught.value)

    assert wrong(path="/proc/x").startswith("storage.path: must be a folder that can be written")
    assert wrong(optuna="sqlite:////proc/x.db").startswith("storage.optuna: must be a SQLite file")


def test_a_store_is_looked_at_and_not_made(tmp_path: Path) -> None:
    check_store(f"sqlite:///{tmp_path}/new/mlflow.db", "e")
    assert not (tmp_path / "new").exists()
    open_store(f"sqlite:///{tmp_path}/mlflow.db", "e", tmp_path)
    before = (tmp_path / "mlflow.db").read_bytes()
    check_store(f"sqlite:///{tmp_path}/mlflow.db", "other")
    assert (tmp_path / "mlflow.db").read_bytes() == before


@pytest.mark.service
def test_a_server_is_asked_for_the_experiment_and_makes_none(server: str) -> None:
    check_store(server, "never seen")
    client = MlflowClient(tracking_uri=server)
    assert client.get_experiment_by_name("never seen") is None
    client.delete_experiment(open_store(server, "thrown away", None).experiment_id)
    with pytest.raises(ConfigError, match=r"^tracking\.experiment: must not be a deleted"):
        check_store(server, "thrown away")


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    assert takes_files(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "study.yaml"]
    if sys.platform == "linux":  # where a file needs no name
        assert tmp_path.stat().st_mtime_ns == before
    assert not takes_files(tmp_path / "study.yaml")
    assert not takes_files(Path("/proc"))


def test_a_sqlite_file_may_be_empty_or_missing_but_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    assert sqlite_problem(path) is None
    path.touch()
    assert sqlite_problem(path) is None
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x)")
    assert sqlite_problem(path) is None
    assert sqlite_problem(tmp_path / "study.yaml") == f"{tmp_path}/study.yaml is no SQLite database"
    assert sqlite_problem(tmp_path) == f"{tmp_path}: Is a directory"
