"""The sections of a study's config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from study.problems import parse_or_refuse
from study.results import Value
from study.space import Sample, SearchRange
from study.tree import STORAGE, with_values
from trainable.config import (
    BatchNormConfig,
    Config,
    DistillConfig,
    PositiveFloat,
    PositiveInt,
    StudentConfig,
    TrialConfig,
)


class PrunerConfig(Config):
    """Which trials are stopped early."""

    name: Literal["none", "asha"] = "none"
    """`asha`: at geometric rungs of epochs, only the best 1/reduction_factor go on (Li et al. 2020)."""
    grace_epochs: PositiveInt = 1
    """The first rung: no trial is stopped before."""
    reduction_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0


class StudySection(Config):
    """The search as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the study's folder and its MLflow run."""
    trials: PositiveInt = 20
    time_budget_s: PositiveFloat | None = None
    """Seconds after which the search starts no trial and stops those that run; None has no limit."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampler; the trials' own is train.seed."""
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: PrunerConfig = PrunerConfig()
    concurrency: PositiveInt | None = None
    """Most trials at a time; None runs as many as the cluster has room for."""
    max_failures: Annotated[int, Field(ge=0)] = 0
    """How often a trial that failed is tried again, from its last checkpoint; lost nodes are not counted."""
    baseline: dict[str, Value] = Field(default_factory=dict[str, Value])
    """Dotted paths that the student without a teacher trains with, over the base values."""


class StorageSection(Config):
    """Where things are kept."""

    path: str = STORAGE
    """Folder of all studies; each has its own folder in it."""
    optuna: str | None = None
    """Storage URL of Optuna; None keeps a journal in the study's folder."""


class TrackingSection(Config):
    """The MLflow store."""

    uri: str | None = None
    """A server's URI, or None for `mlflow.db` under storage.path."""
    experiment: str = "kd-study"


class StudyConfig(TrialConfig):
    """A search over trials; the inherited sections are the base values of every trial."""

    study: StudySection
    storage: StorageSection = StorageSection()
    tracking: TrackingSection = TrackingSection()
    search: dict[str, SearchRange] = Field(default_factory=dict[str, SearchRange])

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.storage.path) / self.study.name

    @property
    def usual_sample(self) -> Sample:
        """One value for every searched path."""
        return {path: values.candidates[0] for path, values in self.search.items()}

    def trial(self, sample: Mapping[str, Value]) -> TrialConfig:
        """The config of one trial: the base values with the sampled ones in their places."""
        base = self.model_dump(include=set(TrialConfig.model_fields))
        return parse_or_refuse(TrialConfig, with_values(base, sample))

    def baseline(self) -> TrialConfig:
        """The student without a teacher: the base values, with `study.baseline` over them."""
        base = self.model_dump(include=set(TrialConfig.model_fields))
        tree = with_values(base, self.study.baseline)
        return parse_or_refuse(TrialConfig, {**tree, "distill": {"method": "none"}})

    def teacher_training(self) -> TrialConfig:
        """The teacher, trained from the labels alone on all of the data; only where `teacher.train` is set."""
        if self.teacher is None or self.teacher.train is None:
            raise ValueError("the config trains no teacher")
        train = self.teacher.train
        # The policies of train.batchnorm are the student's; the teacher is loaded without them.
        cuts = self.student.cuts if self.teacher.cuts is None else self.teacher.cuts
        watched = self.train.batchnorm.batch_stats_accuracy
        batchnorm = BatchNormConfig(sync=self.train.batchnorm.sync, batch_stats_accuracy=watched)
        changed = {
            "epochs": train.epochs,
            "seed": train.seed,
            "batchnorm": batchnorm,
            "gradient_noise": 0.0,
        }
        return TrialConfig(
            data=self.data.model_copy(update={"batch_size": train.batch_size, "subset": 1.0}),
            student=StudentConfig(model=self.teacher.model, cuts=cuts, head=self.teacher.head),
            distill=DistillConfig(method="none"),
            optim=train.optim,
            train=self.train.model_copy(update=changed),
            resources=self.resources,
        )
