"""`kd-study list`: what stands in a folder of studies, whatever else lies there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner, Result

from study.cli import _app
from study.config import RESOLVED
from study.folder import only_driver
from study.ledger import LEDGER, Ledger, save_results
from study.listing import studies_in
from study.results import StudyResults
from tests.study.studies import results_of, trial_row


def listed(storage: Path) -> Result:
    return CliRunner().invoke(_app, ["list", "--storage", str(storage)])


def study(storage: Path, name: str, *, at: float, **fields: object) -> StudyResults:
    """A study of three trials, one of which still runs, whose ledger was written at that time."""
    rows = (
        trial_row(0, value=0.5),
        trial_row(1, value=0.75, state="pruned"),
        trial_row(2, value=0.9, state="running"),
    )
    results = results_of(*rows, name=name, trials_planned=10, **fields)
    (storage / name).mkdir()
    save_results(results, storage / name / LEDGER)
    os.utime(storage / name / LEDGER, (at, at))
    return results


def lines(result: Result) -> list[list[str]]:
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return [line.split() for line in result.stdout.splitlines()]


def test_studies_are_listed_the_last_changed_first(tmp_path: Path) -> None:
    study(tmp_path, "old", at=86400.0, finished=True)
    study(tmp_path, "young", at=3 * 86400.0)
    study(tmp_path, "driven", at=2 * 86400.0)
    with only_driver(tmp_path / "driven"):
        head, *rows = lines(listed(tmp_path))
    assert head == ["study", "state", "trials", "best", "val", "%", "last", "change"]
    days = [time.strftime("%Y-%m-%d", time.localtime(day * 86400)) for day in range(4)]
    assert [row[:7] for row in rows] == [
        ["young", "interrupted", "2", "of", "10", "50.00", days[3]],
        ["driven", "running", "2", "of", "10", "50.00", days[2]],
        ["old", "ended", "2", "of", "10", "50.00", days[1]],
    ]
    assert lines(listed(tmp_path))[2][:2] == ["driven", "interrupted"]


def test_changes_since_the_ledger_was_written_whole_count(tmp_path: Path) -> None:
    results = study(tmp_path, "s", at=86400.0)
    ledger = Ledger(tmp_path / "s" / LEDGER)
    ledger.write(results)
    os.utime(tmp_path / "s" / LEDGER, (86400.0, 86400.0))
    ended = results.with_row(trial_row(2, value=0.9)).model_copy(update={"changes": 1})
    ledger.add(ended)
    (found,) = studies_in(tmp_path)
    assert found.results is not None
    assert found.results.winner == ended.winner
    assert found.changed_at > 86400.0


def test_what_is_broken_is_said_and_what_is_foreign_passed_over(tmp_path: Path) -> None:
    study(tmp_path, "[red]well", at=1.0)
    for name, text in (("damaged", "{"), ("other", '{"version": 9}'), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / LEDGER).write_text(text)
    (tmp_path / "folder" / LEDGER).mkdir(parents=True)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / RESOLVED).touch()
    (tmp_path / "teachers").mkdir()
    (tmp_path / "results.json").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    _, *rows = lines(listed(tmp_path))
    assert {row[0]: row[1:4] for row in rows} == {
        "[red]well": ["interrupted", "2", "of"],
        "damaged": ["unreadable", "—", "—"],
        "other": ["unreadable", "—", "—"],
        "empty": ["unreadable", "—", "—"],
        "folder": ["unreadable", "—", "—"],
        "begun": ["interrupted", "—", "—"],
    }


def test_a_folder_without_studies_and_one_that_is_not_there(tmp_path: Path) -> None:
    empty = listed(tmp_path)
    assert (empty.exit_code, empty.stdout) == (0, f"no studies in {tmp_path}\n")
    missing = listed(tmp_path / "x")
    assert missing.exit_code == 2
    assert missing.stderr.startswith(f"--storage: must be a folder, got '{tmp_path}/x'; run a ")
    assert not (tmp_path / "x").exists()


def test_looking_leaves_nothing_and_loads_no_heavy_library(tmp_path: Path) -> None:
    study(tmp_path, "s", at=1.0)
    code = (
        "import sys; from study.cli import _app\n"
        f"_app(['list', '--storage', {str(tmp_path)!r}], standalone_mode=False)\n"
        "print({'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'sqlalchemy'} & sys.modules.keys())"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert [path.name for path in tmp_path.rglob("*")] == ["s", LEDGER]
