"""Exit codes, and that bad input is a message on stderr and never a traceback."""

from __future__ import annotations

import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import study.driver
from study.cli import _app
from study.config import RESOLVED, StudyConfig, load_config
from study.driver import StudyFailedError, StudyInterruptedError
from study.folder import keep_config
from study.ledger import LEDGER, save_results
from study.results import StudyResults, TrialRow
from tests.study.studies import write_study

CONFIG = """
study: {name: s}
data: {source: digits}
student: {model: mini_resnet_10_4}
distill: {method: none}
search: {optim.lr: {loguniform: [1e-4, 1e-1]}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG + f"storage: {{path: {tmp_path}}}\n")
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(_app, [str(argument) for argument in arguments])


def ending(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[Any]:
    """Let the driver end in `result`; the configs that it is called with."""
    calls: list[Any] = []

    def conduct(config: Any, display: Any, before: Any = None) -> StudyResults:
        calls.append(config if before is None else (before, config))
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(study.driver, "run_study", conduct)
    monkeypatch.setattr(study.driver, "extend_study", conduct)
    return calls


def kept(config: Path, *settings: str) -> StudyConfig:
    """A study's folder with the config that it keeps, and nothing else yet."""
    begun = load_config(config, settings)
    begun.folder.mkdir()
    keep_config(begun)
    return begun


def results(state: str) -> StudyResults:
    row = {"role": "trial", "number": 0, "state": state, "value": 0.5, "directory": "/d"}
    return StudyResults(
        name="s",
        trials_planned=1,
        started_at=0.0,
        tracking_uri="http://tracking",
        experiment="",
        parent_run_id="p",
        rows=(TrialRow.model_validate(row),),
    )


@pytest.mark.parametrize("command", ["run", "train"])
def test_exit_codes(config: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    ending(monkeypatch, results("complete"))
    assert invoke(command, config).exit_code == 0

    ending(monkeypatch, results("pruned"))
    unusable = invoke(command, config)
    assert unusable.exit_code == 1
    assert "No usable trial" in unusable.stdout

    ending(monkeypatch, StudyInterruptedError())
    interrupted = invoke(command, config)
    assert (interrupted.exit_code, interrupted.stderr) == (130, "")
    assert "run the same command again to go on" in interrupted.stdout

    ending(monkeypatch, StudyFailedError("training the teacher failed: no"))
    failed = invoke(command, config)
    assert (failed.exit_code, failed.stderr) == (1, "training the teacher failed: no\n")


def test_resume_and_extend_take_the_kept_config(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = kept(config, "study.trials=7", "optim.momentum=0.5")
    calls = ending(monkeypatch, results("complete"))
    resumed = invoke("resume", "s", "--storage", tmp_path)
    assert (resumed.exit_code, resumed.stderr) == (0, "")
    assert "Best: trial 0" in resumed.stdout
    assert invoke("extend", "s", "--trials", 3, "--storage", tmp_path).exit_code == 0
    longer = load_config(config, ["study.trials=10", "optim.momentum=0.5"])
    assert calls == [begun, (begun, longer)]

    ending(monkeypatch, results("pruned"))
    assert invoke("resume", "s", "--storage", tmp_path).exit_code == 1


def test_an_interrupted_extension_is_resumed_and_not_extended_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(config)
    ending(monkeypatch, StudyInterruptedError())
    stopped = invoke("extend", "s", "--trials", 3, "--storage", tmp_path)
    assert (stopped.exit_code, stopped.stderr) == (130, "")
    again = f"`kd-study resume s --storage {tmp_path}` goes on"
    assert stopped.stdout == f"interrupted: {again}\n"
    stopped = invoke("resume", "s", "--storage", tmp_path)
    assert stopped.exit_code == 130
    assert "run the same command again to go on" in stopped.stdout


@pytest.mark.parametrize("command", [("resume",), ("extend", "--trials", 3)])
def test_what_can_be_neither_resumed_nor_extended(
    config: Path, tmp_path: Path, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(config)
    calls = ending(monkeypatch, results("complete"))
    unknown = invoke(*command, "nobody", "--storage", tmp_path)
    assert (unknown.exit_code, calls) == (2, [])
    assert unknown.stderr == f"{tmp_path}: must hold the study, got 'nobody'; there are s\n"
    (tmp_path / "s" / RESOLVED).write_text("study: {nmae: s}")
    damaged = invoke(*command, "s", "--storage", tmp_path)
    assert (damaged.exit_code, calls) == (2, [])
    assert "study.nmae: is not a known key" in damaged.stderr


def test_an_extension_adds_at_least_one_trial_to_a_search(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(config, "study.trials=1", "search={}")
    calls = ending(monkeypatch, results("complete"))
    for trials in (0, -1, "x"):
        none = invoke("extend", "s", "--trials", trials, "--storage", tmp_path)
        assert (none.exit_code, calls) == (2, [])
        assert "--trials" in none.stderr
    alone = invoke("extend", "s", "--trials", 1, "--storage", tmp_path)
    assert (alone.exit_code, calls) == (2, [])
    assert alone.stderr.startswith("search: must have a path to search")


def test_train_is_one_trial_of_its_own_name(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (calls := ending(monkeypatch, results("complete")))
    assert invoke("train", config, "--set", "optim.lr=5e-2").exit_code == 0
    (given,) = calls
    assert (given.study.name, given.study.trials, given.search) == ("s-train", 1, {})
    assert given.optim.lr == 0.05


def test_run_without_a_search_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = ending(monkeypatch, results("complete"))
    refused = invoke("run", config, "--set", "search={}")
    assert (refused.exit_code, calls) == (2, [])
    assert refused.stderr.startswith("search: ")


@pytest.mark.parametrize("command", ["run", "train", "validate"])
@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (["optim.lr=-1"], "optim.lr"),
        (["optm.lr=1"], "optm"),
        (["nothing"], "--set"),
        (["data.source=digit"], "data.source"),
    ],
)
def test_bad_input_exits_2_with_its_path_and_no_traceback(
    config: Path, command: str, settings: list[str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = ending(monkeypatch, results("complete"))
    bad = invoke(command, config, *(part for s in settings for part in ("--set", s)))
    assert (bad.exit_code, bad.stdout, calls) == (2, "", [])
    assert bad.stderr.startswith(path)
    assert "; " in bad.stderr  # the remedy
    assert "Traceback" not in bad.stderr
    assert isinstance(bad.exception, SystemExit)


def test_missing_config_and_unknown_command_exit_2(tmp_path: Path) -> None:
    missing = invoke("run", tmp_path / "nothing.yaml")
    assert missing.exit_code == 2
    assert "must be a config file" in missing.stderr
    assert invoke("rnu", tmp_path).exit_code == 2


def test_the_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    told = invoke("--version")
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout == f"kd-study {version('kd-study')}\n"

    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("study.version.version", unknown)  # as where its sources just lie
    assert invoke("--version").stdout == "kd-study uninstalled\n"


def test_report_prints_the_leaderboard_and_writes_page_and_table(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=3, epochs=3)
    told = invoke("report", "made-up", "--storage", tmp_path)
    assert told.exit_code == 0
    assert "Best: trial" in told.stdout
    assert f"Report      {folder}/report.html\n" in told.stdout
    assert (folder / "report.html").exists()
    assert (folder / "trials.parquet").exists()


def test_report_that_cannot_be_written_still_prints_the_leaderboard(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=3, epochs=3)
    (folder / "trials.parquet").mkdir()
    told = invoke("report", "made-up", "--storage", tmp_path)
    assert told.exit_code == 2
    assert "Best: trial" in told.stdout
    assert told.stderr.startswith(f"{folder}: must take the report's files")
    assert len(told.stderr.splitlines()) == 1


def test_run_names_the_report_where_there_is_one(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(monkeypatch, results("complete"))
    assert "Report" not in invoke("run", config).stdout
    page = tmp_path / "s" / "report.html"
    page.parent.mkdir()
    page.touch()
    assert f"Report      {page}\n" in invoke("run", config).stdout


def test_ui_of_a_study_on_a_server_prints_its_page(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    known = results("complete").model_copy(update={"experiment_id": "3"})
    save_results(known, tmp_path / "s" / LEDGER)
    told = invoke("ui", "s", "--storage", tmp_path)
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout.startswith("http://tracking/#/experiments/3/runs?")
    assert len(told.stdout.splitlines()) == 1


def test_ui_takes_no_bucket() -> None:
    refused = invoke("ui", "--storage", "s3://bucket/prefix")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("--storage: must be a folder, got 's3://bucket/prefix'; of a")


def test_a_report_of_a_place_that_is_none() -> None:
    refused = invoke("report", "s", "--storage", "hdfs://host/runs")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("--storage: must be a folder, or s3://bucket/prefix or gs://")


def test_ui_needs_a_store_and_a_free_port(tmp_path: Path) -> None:
    missing = invoke("ui", "--storage", tmp_path)
    assert missing.exit_code == 2
    assert missing.stderr.startswith("--storage: must hold an MLflow store, got ")
    assert len(missing.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "mlflow.db").touch()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        taken = invoke("ui", "--storage", tmp_path, "--port", port)
    assert taken.exit_code == 2
    assert taken.stderr.startswith(f"--port: must be free, got {port}; ")
    assert len(taken.stderr.splitlines()) == 1


def test_report_finds_storage_by_option_and_by_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke("report", "s", "--storage", tmp_path).exit_code == 2
    monkeypatch.setenv("KD_STUDY_STORAGE", str(tmp_path))
    by_variable = invoke("report", "s")
    assert by_variable.exit_code == 2
    assert str(tmp_path) in by_variable.stderr
