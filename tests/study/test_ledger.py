from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.config import embedded_store
from study.ledger import LEDGER, Ledger, all_results, find_results, load_results, save_results
from study.results import StudyResults, TrialRow
from tests.study.test_results import results, trial
from trainable.errors import InputError


def test_round_trip(tmp_path: Path) -> None:
    kept = results(trial(0, value=0.1 + 0.2, params={"a": True, "b": 3, "c": 0.1, "d": "5/2"}))
    save_results(kept, tmp_path / LEDGER)
    assert load_results(tmp_path / LEDGER) == kept
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER]


def test_a_failed_write_leaves_the_old_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_results(results(), tmp_path / LEDGER)

    def full_disk(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(text[:10].encode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_results(results(trial(0)), tmp_path / LEDGER)
    assert load_results(tmp_path / LEDGER) == results()


def test_a_study_that_was_moved_is_found_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    baseline = TrialRow(role="baseline", number=0, directory="/before/s/baseline")
    save_results(results(trial(12), baseline), tmp_path / "s" / LEDGER)
    assert [row.directory for row in find_results(tmp_path, "s").rows] == [
        f"{tmp_path}/s/trials/0012",
        f"{tmp_path}/s/baseline",
    ]


def test_a_store_that_was_moved_with_a_study_is_found_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    before = results(trial(0)).model_copy(update={"tracking_uri": "sqlite:////before/mlflow.db"})
    save_results(before, tmp_path / "s" / LEDGER)
    assert find_results(tmp_path, "s").tracking_uri == before.tracking_uri
    (tmp_path / "mlflow.db").touch()
    assert find_results(tmp_path, "s").tracking_uri == embedded_store(tmp_path)
    assert [found.tracking_uri for found in all_results(tmp_path)] == [embedded_store(tmp_path)]


def test_a_store_that_is_elsewhere_stays_there(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for path in (tmp_path / "mlflow.db", tmp_path / "other.db"):
        path.touch()
    for uri in (f"sqlite:///{tmp_path}/other.db", "http://127.0.0.1:5000"):
        before = results(trial(0)).model_copy(update={"tracking_uri": uri})
        save_results(before, tmp_path / "s" / LEDGER)
        assert find_results(tmp_path, "s").tracking_uri == uri


def changed(before: StudyResults, *rows: TrialRow) -> StudyResults:
    """The study after one more change, as the recorder counts them."""
    for row in rows:
        before = before.with_row(row)
    return before.model_copy(update={"changes": before.changes + 1})


def test_changes_are_added_and_read_with_the_whole(tmp_path: Path) -> None:
    ledger, now = Ledger(tmp_path / LEDGER), results(*map(trial, range(3)))
    ledger.add(now)
    written = (tmp_path / LEDGER).stat().st_mtime_ns
    for number in range(2, 6):
        now = changed(now, trial(number, "running", epochs=1), trial(number, epochs=2))
        ledger.add(now)
        assert load_results(tmp_path / LEDGER) == now
    assert (tmp_path / LEDGER).stat().st_mtime_ns == written
    ledger.write(now)
    assert load_results(tmp_path / LEDGER) == now
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER]


def test_what_an_event_writes_does_not_grow_with_the_trials(tmp_path: Path) -> None:
    written = {count: bytes_written(tmp_path / str(count), trials=count) for count in (200, 1000)}
    assert written[1000] < 1.1 * written[200]


def bytes_written(folder: Path, *, trials: int) -> int:
    """By 200 events of a study of so many trials, with each whole."""
    folder.mkdir()
    ledger, now = Ledger(folder / LEDGER), results(*map(trial, range(trials)))
    ledger.add(now)
    changes, total, length = folder / "changes.jsonl", 0, 0
    for number in range(200):
        now = changed(now, trial(number, epochs=1))
        whole = (folder / LEDGER).stat()
        ledger.add(now)
        if (folder / LEDGER).stat().st_ino != whole.st_ino:
            total, length = total + whole.st_size, 0
        else:
            total, length = total + changes.stat().st_size - length, changes.stat().st_size
    return total


def test_half_a_line_of_a_dead_driver_is_not_read_and_spoils_nothing(tmp_path: Path) -> None:
    ledger, now = Ledger(tmp_path / LEDGER), results(trial(0, "running"))
    ledger.add(now)
    for epochs in (1, 2):
        before, now = now, changed(now, trial(0, "running", epochs=epochs))
        ledger.add(now)
    changes = tmp_path / "changes.jsonl"
    changes.write_bytes(changes.read_bytes()[:-20])
    assert load_results(tmp_path / LEDGER) == before
    ledger = Ledger(tmp_path / LEDGER)  # of the next driver
    for epochs in (2, 3):
        before = changed(before, trial(0, "running", epochs=epochs))
        ledger.add(before)
        assert load_results(tmp_path / LEDGER) == before


def test_changes_that_could_not_be_added_are_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, now = Ledger(tmp_path / LEDGER), results(trial(0, "running"))
    ledger.add(now)
    now = changed(now, trial(0, "running", epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_disk)
        with pytest.raises(OSError, match="no space"):
            ledger.add(now)
    assert load_results(tmp_path / LEDGER).rows == (trial(0, "running"),)
    for number in (1, 2):
        now = changed(now, trial(number))
        ledger.add(now)
        assert load_results(tmp_path / LEDGER) == now


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError("no space left on device")


def test_a_driver_that_died_as_it_wrote_the_whole_left_changes_that_are_in_it(
    tmp_path: Path,
) -> None:
    ledger, now = Ledger(tmp_path / LEDGER), results(trial(0, "running"))
    ledger.add(now)
    ledger.add(now := changed(now, trial(0, "running", epochs=1)))
    old = (tmp_path / "changes.jsonl").read_bytes()
    now = changed(now, trial(0, epochs=2))
    ledger.write(now)
    (tmp_path / "changes.jsonl").write_bytes(old)
    assert load_results(tmp_path / LEDGER) == now


def test_a_whole_that_is_older_than_the_changes_is_refused(tmp_path: Path) -> None:
    ledger, now = Ledger(tmp_path / LEDGER), results(trial(0, "running"))
    ledger.add(now)
    old = (tmp_path / LEDGER).read_bytes()
    now = changed(now, trial(1))
    ledger.write(now)
    ledger.add(changed(now, trial(2)))
    (tmp_path / LEDGER).write_bytes(old)
    with pytest.raises(InputError, match="must be the ledger"):
        load_results(tmp_path / LEDGER)


def test_unknown_study_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run a study, or name its --storage"):
        find_results(tmp_path, "s")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_results(results(), tmp_path / name / LEDGER)
    (tmp_path / "mlartifacts").mkdir()
    assert find_results(tmp_path, "one") == results()
    with pytest.raises(InputError, match="got 'three'; there are one, two"):
        find_results(tmp_path, "three")
