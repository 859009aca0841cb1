"""The runs of a study, as Tune carries them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.config import StudyConfig, parse_config
from study.jobs import Job, decomposition_params


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
    [Job("teacher"), Job("baseline"), Job("trial", 3, {"optim.lr": 0.5, "distill.k": "5/2"})],
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
    jobs = [Job("teacher"), Job("baseline"), Job("trial", 0), Job("trial", 12), Job("replicate", 0)]
    folders = [job.folder(study) for job in jobs]
    names = ["teacher", "baseline", "trials/0000", "trials/0012", "replicates/0000"]
    assert folders == [Path("/runs/s") / name for name in names]


def test_a_sampled_decomposition_is_also_shown_as_k_and_n() -> None:
    shown = Job("trial", 0, {"optim.lr": 0.5, "distill.decomposition": "5/2"}).shown_params()
    assert shown["distill.decomposition"] == "5/2"
    assert (shown["distill.k"], shown["distill.n"]) == (5, 2)
    assert Job("trial", 0, {"optim.lr": 0.5}).shown_params() == {"optim.lr": 0.5}
    assert decomposition_params(None) == {}
