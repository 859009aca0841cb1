"""How trials are screened, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from study.budget import has_room
from study.config import StudyConfig
from study.halving import course_of
from study.jobs import Job
from study.results import StudyResults, TrialRow
from study.screening import screening_search
from tests.study.test_baselines import SEARCH
from tests.study.test_baselines import build as with_baselines
from trainable.errors import ConfigError

EPOCHS = 20


def build(screening: dict[str, Any], **changes: Any) -> StudyConfig:
    study = {"baselines": {}, "screening": screening, **changes.pop("study", {})}
    return with_baselines(study=study, **changes)


def test_a_screening_is_its_trial_but_shorter_and_on_fewer_pictures() -> None:
    config = build({"epochs": 5, "subset": 0.5}, data={"source": "digits", "subset": 0.4})
    sample = {"distill.decomposition": "2/1", "optim.lr": 0.2, "data.batch_size": 32}
    trial, screening = (Job(role, 3, sample).config(config) for role in ("trial", "screening"))
    assert (trial.train.epochs, screening.train.epochs) == (EPOCHS, 5)
    assert (trial.data.subset, screening.data.subset) == (0.4, 0.2)
    back = {"data": trial.data, "train": trial.train}
    assert screening.model_copy(update=back) == trial
    assert Job("screening", 3).folder(config) != Job("trial", 3).folder(config)
    assert Job("screening", 3).label == "screening 3"


def test_what_is_not_said_of_a_screening_is_the_trials() -> None:
    assert screening_search(build({"subset": 0.5})).train.epochs == EPOCHS
    assert screening_search(build({"epochs": 5})).data.subset == 1.0


def test_a_range_of_decompositions_has_those_that_a_screening_has_epochs_for() -> None:
    search = {"distill.decomposition": {"k": [2, 5], "n": [0, 3]}}
    whole, short = (build({"epochs": epochs}, search=search) for epochs in (4, 2))
    assert "5/3" in (whole.ranges["distill.decomposition"].choice or ())
    assert "5/3" not in (short.ranges["distill.decomposition"].choice or ())


def test_a_trial_that_is_screened_only_waits_nowhere_else() -> None:
    trial = build({"epochs": 5}).trial({})
    assert course_of(trial, waits=False).points == ()
    assert course_of(trial, waits=False).kind == course_of(trial).kind


@pytest.mark.parametrize(
    ("screening", "changes", "told"),
    [
        ({}, {}, "study.screening: must cost less than the trial"),
        ({"epochs": EPOCHS}, {}, "study.screening: must cost less than the trial"),
        (
            {"epochs": 21},
            {},
            "study.screening.epochs: must be <= 20, the epochs of a trial, got 21",
        ),
        ({"epochs": 5, "keep": 1}, {}, "study.screening.keep: must be < 1, got 1"),
        ({"subset": 0}, {}, "study.screening.subset: must be > 0, got 0"),
        (
            {"epochs": 5},
            {"search": SEARCH | {"train.epochs": {"int": [5, 30]}}},
            "study.screening.epochs: must be without a search of train.epochs",
        ),
        ({"epochs": 5}, {"search": {}}, "study.screening: needs a search, whose trials it screens"),
        (
            {"epochs": 1},
            {},
            "in a screening of 1 epochs",  # 2/1 has two stages
        ),
        (
            {"epochs": 5},
            {"optim": {"schedule": "multistep", "milestones": [10]}},
            "in a screening of 5 epochs",
        ),
    ],
)
def test_what_is_wrong_is_named(
    screening: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(screening, **changes)
    assert told in str(caught.value)


def test_a_budget_of_epochs_has_the_screenings_in_it() -> None:
    config = build({"epochs": 5}, study={"epoch_budget": 60})

    def row(role: str, number: int, state: str, epochs: int) -> TrialRow:
        known = {"role": role, "number": number, "state": state, "epochs": epochs}
        return TrialRow.model_validate({**known, "directory": "/d"})

    rows = (
        row("screening", 0, "complete", 5),
        row("trial", 0, "complete", EPOCHS),
        row("screening", 1, "complete", 5),  # whose trial waits
        row("screening", 2, "running", 2),
    )
    results = StudyResults(
        name="s",
        trials_planned=9,
        started_at=0.0,
        tracking_uri="",
        experiment="",
        parent_run_id="",
        rows=rows,
    )
    assert has_room(config, results, [0, 1], running=0)  # 30 of 60 are spent, and one takes 25
    assert not has_room(config, results, [0, 1], running=1)
    assert has_room(config, results, [0], running=0)
