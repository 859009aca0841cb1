"""What a study knows: who won, and which row is whose."""

from __future__ import annotations

from typing import Any

from study.results import StudyResults, TrialRow


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


def test_of_equally_accurate_trials_one_of_the_front_wins() -> None:
    """The earlier of two is no answer where the later costs less."""
    rows = [
        trial(number, value=value, costs={"latency": latency})
        for number, (value, latency) in enumerate([(0.7, 9.0), (0.7, 5.0), (0.6, 1.0), (0.7, 5.0)])
    ]
    both = results(*rows).model_copy(update={"objectives": ("accuracy", "latency")})
    assert both.front == (rows[1], rows[2], rows[3])
    assert both.winner == rows[1]
    assert results(*rows).winner == rows[0]


def test_without_validation_the_last_complete_trial_wins() -> None:
    assert results(trial(0), trial(1, "failed")).winner == trial(0)
    assert results().winner is None
    assert results(trial(0, "pruned", value=0.9)).winner is None


def test_a_row_replaces_the_one_of_its_role_and_number() -> None:
    teacher = TrialRow(role="teacher", number=0, directory="/d")
    changed = results(trial(0), teacher, trial(1)).with_row(trial(0, value=0.5))
    assert changed.rows == (trial(0, value=0.5), teacher, trial(1))
    assert changed.of("trial") == (trial(0, value=0.5), trial(1))
