"""What MLflow is told of events, as data."""

from __future__ import annotations

from typing import Any

import pytest

from study.entries import Entry, File, Points, Status, Tags, Text
from study.results import StudyResults, TrialRow
from study.telling import (
    epoch_ended,
    flatten,
    reason_of,
    study_advances,
    study_ends,
    study_opening,
    trial_begins,
    trial_ended,
)
from trainable.records import EpochRecord, Finding

FINDING = Finding("dead", "It is dead.", "0 of 4 live (epoch 3)", "lower optim.lr")


def row(**fields: Any) -> TrialRow:
    return TrialRow.model_validate({"role": "trial", "number": 3, "directory": "/d"} | fields)


def results(*rows: TrialRow) -> StudyResults:
    return StudyResults(
        name="s",
        trials_planned=4,
        started_at=0.0,
        tracking_uri="",
        experiment="",
        parent_run_id="p",
        rows=rows,
    )


def tags_of(told: list[Entry]) -> dict[str, str]:
    return {name: value for e in told if isinstance(e, Tags) for name, value in e.tags.items()}


@pytest.mark.parametrize("role", ["teacher", "baseline", "trial", "replicate"])
def test_run_name_is_the_leaderboards_label(role: str) -> None:
    one = row(role=role, number=2)
    opening, _params = trial_begins(results(), one, {}, 1)
    assert (opening.run, opening.name) == (one.label, one.label)  # type: ignore[union-attr]


def test_a_study_is_found_by_what_no_other_has() -> None:
    one, other = (study_opening("s", name, "", 1) for name in ("a", "b"))
    assert one.found_by != other.found_by
    assert one.found_by.items() <= one.tags.items()


def test_the_best_accuracy_is_told_when_it_is_new() -> None:
    record = EpochRecord(2, {"val/accuracy": 0.5, "train/loss": 1.0}, 77)
    (better,) = epoch_ended(row(value=0.5, best_epoch=2, epochs=2), record)
    (worse,) = epoch_ended(row(value=0.6, best_epoch=1, epochs=2), record)
    (none,) = epoch_ended(row(epochs=2), EpochRecord(2, {"train/loss": 1.0}, 77))
    assert better == Points(
        run="trial 3", metrics=record.metrics | {"best/val_accuracy": 0.5}, step=2, time_ms=77
    )
    assert worse == Points(run="trial 3", metrics=record.metrics, step=2, time_ms=77)
    assert none == Points(run="trial 3", metrics={"train/loss": 1.0}, step=2, time_ms=77)


@pytest.mark.parametrize(
    ("gpus", "hours"), [(0.0, {"study/trial_hours": 0.75}), (2.0, {"study/gpu_hours": 1.5})]
)
def test_a_study_tells_how_far_it_is(gpus: float, hours: dict[str, float]) -> None:
    rows = [
        row(number=0, state="complete", value=0.7, seconds=900),
        row(number=1, state="pruned", value=0.8, seconds=900),
        row(number=2, state="complete", value=0.6),
        row(number=3, state="failed"),
        row(number=4),
        row(number=5, state="waiting", value=0.9),
        row(role="teacher", number=0, state="complete", value=0.9, seconds=900),
    ]
    (told,) = study_advances(results(*rows), gpus, 5)
    counts = {"complete": 2.0, "pruned": 1.0, "failed": 1.0, "running": 1.0, "waiting": 1.0}
    expected = {f"study/{state}": count for state, count in counts.items()}
    expected |= {**hours, "best/val_accuracy": 0.7}
    assert told == Points(run="study", metrics=expected, step=4, time_ms=5)


def test_a_study_has_a_health_of_its_own_once_it_is_over() -> None:
    over = results(row(state="complete", value=0.7)).model_copy(
        update={"finished": True, "findings": (FINDING,)}
    )
    told = study_ends("complete", over, 1)
    assert tags_of(told) == {"kd.health": "dead", "kd.state": "complete"}
    (text,) = [entry for entry in told if isinstance(entry, Text)]
    assert (text.run, text.name) == ("study", "findings.txt")
    stopped = over.model_copy(update={"finished": False})
    assert tags_of(study_ends("interrupted", stopped, 1)) == {"kd.state": "interrupted"}


@pytest.mark.parametrize(
    ("findings", "health"),
    [([], "unknown"), ([None], "unknown"), ([None, ()], "healthy")],
)
def test_a_study_none_of_whose_trials_could_be_diagnosed_is_not_called_healthy(
    findings: list[Any], health: str
) -> None:
    rows = [row(number=n, state="failed", findings=found) for n, found in enumerate(findings)]
    teacher = row(role="teacher", number=0, state="complete", findings=())
    over = results(*rows, teacher).model_copy(update={"finished": True})
    assert tags_of(study_ends("failed", over, 1)) == {"kd.health": health, "kd.state": "failed"}


def test_test_accuracy_is_told_at_the_end_alone() -> None:
    done = results(row(state="complete", value=0.7, test_accuracy=0.6))
    points = [e for e in study_ends("complete", done, 1) if isinstance(e, Points)]
    assert [e.metrics for e in points] == [{"best/test_accuracy": 0.6}]
    assert not [e for e in study_ends("interrupted", done, 1) if isinstance(e, Points)]


@pytest.mark.parametrize(
    ("findings", "health", "has_text"),
    [
        (None, "unknown", False),
        ((), "healthy", False),
        ((FINDING, Finding("slow", "", "", "")), "dead, slow", True),
    ],
)
def test_health_is_a_tag_and_findings_are_a_text(
    findings: Any, health: str, has_text: bool
) -> None:
    told = trial_ended(row(state="complete", findings=findings), None, None, 9)
    assert tags_of(told) == {"kd.health": health, "kd.state": "complete"}
    texts = [entry for entry in told if isinstance(entry, Text)]
    assert [entry.name for entry in texts] == ["findings.txt"] * has_text
    for entry in texts:
        for words in (FINDING.name, FINDING.words, FINDING.evidence, FINDING.remedy):
            assert words in entry.text


@pytest.mark.parametrize(
    ("state", "status"), [("complete", "FINISHED"), ("pruned", "KILLED"), ("failed", "FAILED")]
)
def test_a_run_is_closed_last(state: str, status: str, tmp_path: Any) -> None:
    file = tmp_path / "statistics.parquet"
    told = trial_ended(row(state=state), "Traceback\nValueError: no pictures\n", file, 9)
    assert told[-1] == Status.model_validate({"run": "trial 3", "status": status, "time_ms": 9})
    assert tags_of(told)["kd.error"] == "ValueError: no pictures"
    assert File(run="trial 3", path=str(file), folder="statistics") in told
    (text,) = [entry for entry in told if isinstance(entry, Text)]
    assert (text.name, text.text) == ("error.txt", "Traceback\nValueError: no pictures\n")


def test_a_long_param_is_shortened() -> None:
    _opening, params = trial_begins(results(), row(), {"long": "x" * 7000}, 1)
    text = params.params["long"]  # type: ignore[union-attr]
    assert (len(text), text[-2:]) == (6000, "x…")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "Traceback …\ntrainable.errors.TrainingError: epoch 1: it; do that\n",
            "epoch 1: it; do that",
        ),
        ("Traceback …\nValueError: no pictures\n", "ValueError: no pictures"),
        ("it ended without a report", "it ended without a report"),
        (
            "data.root: trainable.errors.DataError: is quoted",
            "data.root: trainable.errors.DataError: is quoted",
        ),
    ],
)
def test_the_reason_of_a_failure_begins_with_what_is_wrong(error: str, reason: str) -> None:
    assert reason_of(error) == reason


def test_flatten() -> None:
    config = {
        "study": {"objectives": ("val/accuracy",), "seed": None, "name": "s"},
        "search": {"optim.lr": {"loguniform": [1e-4, 0.1]}},
        "data": {"mean": (0.5, 0.5), "columns": {}},
        "train": {"deterministic": False},
    }
    assert flatten(config) == {
        "study.objectives": "[val/accuracy]",
        "study.name": "s",
        "search.optim.lr.loguniform": "[0.0001, 0.1]",
        "data.mean": "[0.5, 0.5]",
        "train.deterministic": False,
    }
