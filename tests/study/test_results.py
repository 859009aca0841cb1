"""The ledger: who won, and a file that is never half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.results import (
    LEDGER,
    StudyResults,
    TrialRow,
    find_results,
    load_results,
    save_results,
)
from trainable.errors import InputError


def trial(number: int, state: str = "complete", **fields: Any) -> TrialRow:
    return TrialRow.model_validate(
        {"role": "trial", "number": number, "state": state, "directory": "/d"} | fields
    )


def results(*rows: TrialRow) -> StudyResults:
    return StudyResults(
        name="s",
        trials_planned=3,
        started_at=1.0,
        tracking_uri="",
        experiment="",
        parent_run_id="p",
        rows=rows,
    )


def test_winner_is_the_best_complete_trial() -> None:
    rows = [
        trial(0, value=0.5),
        trial(1, value=0.7),
        trial(2, value=0.7),
        trial(3, "pruned", value=0.9),
        trial(4, "failed", value=0.95),
        trial(5, "running", value=0.99),
        TrialRow(role="baseline", number=0, state="complete", value=0.999, directory="/d"),
    ]
    winner = results(*rows).winner
    assert winner == rows[1]
    assert results(*reversed(rows)).winner == rows[1]


def test_without_validation_the_last_complete_trial_wins() -> None:
    assert results(trial(0), trial(1, "failed")).winner == trial(0)
    assert results().winner is None
    assert results(trial(0, "pruned", value=0.9)).winner is None


def test_a_row_replaces_the_one_of_its_role_and_number() -> None:
    teacher = TrialRow(role="teacher", number=0, directory="/d")
    changed = results(trial(0), teacher, trial(1)).with_row(trial(0, value=0.5))
    assert changed.rows == (trial(0, value=0.5), teacher, trial(1))
    assert changed.of("trial") == (trial(0, value=0.5), trial(1))


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
