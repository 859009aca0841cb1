"""The runs of a study, as Tune carries them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.config import StudyConfig, parse_config
from study.jobs import Job, decomposition_params
from study.replicates import replicate_seeds
from study.results import TrialRow


@pytest.fixture
def study() -> StudyConfig:
    return parse_config(
        {
            "study": {"name": "s", "baseline": {"optim.lr": 0.3}},
            "storage": {"path": "/runs"},
            "data": {"source": "digits"},
            "student": {"model": "resnet18"},
            "teacher": {"model": "resnet34", "train": {"epochs": 2}},
            "distill": {"method": "kd", "alpha": 0.5},
            "search": {"optim.lr": {"uniform": [0.1, 1]}},
        }
    )


@pytest.mark.parametrize(
    "job",
    [
        *(Job("teacher"), Job("baseline"), Job("baseline", 2, {"optim.lr": 0.5}, of="kd")),
        Job("trial", 3, {"optim.lr": 0.5, "distill.k": "5/2"}),
        Job("replicate", 1, {"optim.lr": 0.5}, "test", of="trial 3"),
    ],
)
def test_a_job_survives_the_trip_through_tune(job: Job) -> None:
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job


def test_what_tune_carries_is_a_copy() -> None:
    job = Job("trial", 0, {"optim.lr": 0.5})
    job.to_dict()["sample"]["optim.lr"] = 1
    assert job.sample == {"optim.lr": 0.5}


def test_each_role_trains_its_own_config(study: StudyConfig) -> None:
    assert Job("teacher").config(study) == study.teacher_training()
    assert Job("baseline").config(study).optim.lr == 0.3
    assert Job("trial", 1, {"optim.lr": 0.7}).config(study).optim.lr == 0.7


def test_each_job_has_a_folder_of_its_own(study: StudyConfig) -> None:
    places = [
        (Job("teacher"), "teacher"),
        (Job("baseline"), "baseline"),
        (Job("baseline", 3, of="kd"), "baselines/kd/0003"),
        (Job("trial", 0), "trials/0000"),
        (Job("trial", 12), "trials/0012"),
        (Job("replicate", 1, of="trial 12"), "replicates/trial-12/0001"),
        (Job("replicate", 0, of="baseline kd 3"), "replicates/baseline-kd-3/0000"),
    ]
    for job, place in places:
        assert job.folder(study) == Path("/runs/s") / place


def test_each_job_has_a_label_of_its_own() -> None:
    trial, searched = Job("trial", 12), Job("baseline", 3, of="none")
    labels = [job.label for job in (Job("teacher"), Job("baseline"), trial, searched)]
    assert labels == ["teacher", "baseline", "trial 12", "baseline none 3"]
    repeated = [job.replicate(1).label for job in (trial, searched, Job("baseline"))]
    assert repeated == [
        *("trial 12 replicate 1", "baseline none 3 replicate 1"),
        "baseline replicate 1",
    ]


def test_a_replicate_is_its_trial_with_another_seed_and_all_pictures(study: StudyConfig) -> None:
    seeded = study.model_copy(update={"study": study.study.model_copy(update={"seed": 7})})
    for job in (
        Job("trial", 1, {"optim.lr": 0.7}),
        Job("baseline", 2, {"optim.lr": 0.6, "distill.alpha": 0.2}, of="kd"),
        Job("baseline"),
    ):
        original = job.config(seeded)
        for number in range(2):
            repeated = job.replicate(number).config(seeded)
            assert repeated.train.seed == 7001 + number
            assert repeated.data.val_fraction == 0
            train = repeated.train.model_copy(update={"seed": original.train.seed})
            data = repeated.data.model_copy(update={"val_fraction": original.data.val_fraction})
            assert repeated.model_copy(update={"train": train, "data": data}) == original


def test_no_replicate_has_its_trials_own_seed() -> None:
    assert replicate_seeds(study_seed=0, own=0, seeds=3) == [1, 2, 3]
    assert replicate_seeds(study_seed=0, own=2, seeds=3) == [1, 3, 4]
    assert replicate_seeds(study_seed=3, own=3001, seeds=2) == [3002, 3003]


@pytest.mark.parametrize(
    "job",
    [
        Job("trial", 3, {"optim.lr": 0.5}),
        Job("baseline"),
        Job("baseline", 2, {"optim.lr": 0.5, "distill.alpha": 0.3}, of="kd"),
        Job("replicate", 1, {"optim.lr": 0.5, "distill.alpha": 0.3}, of="baseline kd 2"),
        Job("replicate", 0, of="baseline"),
    ],
)
def test_the_ledger_gives_a_job_back(job: Job, study: StudyConfig) -> None:
    row = TrialRow(
        role=job.role, number=job.number, of=job.of, params=job.shown_params(), directory="/d"
    )
    assert Job.of_row(row, study) == job
    assert (row.key, row.label) == (job.key, job.label)


def test_a_sampled_decomposition_is_also_shown_as_k_and_n() -> None:
    shown = Job("trial", 0, {"optim.lr": 0.5, "distill.decomposition": "5/2"}).shown_params()
    assert shown["distill.decomposition"] == "5/2"
    assert (shown["distill.k"], shown["distill.n"]) == (5, 2)
    assert Job("trial", 0, {"optim.lr": 0.5}).shown_params() == {"optim.lr": 0.5}
    assert decomposition_params(None) == {}
