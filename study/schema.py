"""The sections of a study's config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from study.objectives import ObjectiveName
from study.problems import broken_rule, parse_or_refuse
from study.results import Value
from study.space import Sample, SearchRange, Space
from study.tree import STORAGE, is_uri, with_values
from trainable.config import (
    BatchNormConfig,
    Config,
    DistillConfig,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    StudentConfig,
    TrialConfig,
)
from trainable.places import BUCKETS, is_bucket, within, working_folder
from trainable.rules.reading import without_unused

MOST_LETTERS = 100
"""Of a study's name."""


class PrunerConfig(Config):
    """Which trials are stopped early."""

    name: Literal["none", "asha", "halving"] = "none"
    """`halving`: trials wait at three points for others of their kind, and the best half goes on (`study.halving`);
    `asha`: at geometric rungs of epochs, only the best 1/reduction_factor go on (Li et al. 2020)."""
    grace_epochs: PositiveInt = 1
    """ASHA's first rung: no trial is stopped before."""
    reduction_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0
    """ASHA's."""


class ScreeningConfig(Config):
    """A cheaper training of every trial before its own, by which most are left out (docs/search.md)."""

    epochs: PositiveInt | None = None
    """Of a screening, with a whole schedule; None has as many as the trial."""
    subset: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the trial's training pictures, of each class."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the screened trials of a kind that are trained, from their beginning."""


class ConstraintsConfig(Config):
    """What a trial must keep to if it is to be of use; None bounds nothing."""

    accuracy: PositiveFraction | None = None
    """Least validation accuracy of its best epoch, in (0, 1]."""
    latency: PositiveFloat | None = None
    """Most milliseconds that its student takes for a picture."""
    parameters: PositiveFloat | None = None
    """Most parameters that its student has in use; known before it trains."""
    training_seconds: PositiveFloat | None = None
    """Most seconds of training updates."""

    @property
    def bounds(self) -> dict[str, float]:
        """Those that are set, by objective."""
        return self.model_dump(exclude_none=True)


def distinct_with_accuracy(names: tuple[ObjectiveName, ...]) -> tuple[ObjectiveName, ...]:
    """The objectives, if a study can have them."""
    if len(set(names)) != len(names):
        raise broken_rule("must not name an objective twice", "remove one of the two")
    if "accuracy" not in names:
        raise broken_rule("must have accuracy, by which the winner is chosen", "add it")
    return names


class ReplicatesConfig(Config):
    """How often what the search found is trained again, to tell a difference from luck (docs/trust.md)."""

    finalists: Annotated[int, Field(ge=1, le=100)] = 1
    """Best trials of the search, by validation accuracy, that are trained again."""
    seeds: Annotated[int, Field(ge=1, le=100)]
    """Trainings of each finalist and of each baseline, on all training pictures, the held-out ones with them."""


BaselineName = Literal["none", "kd"]
"""The methods that a baseline at its own best may have."""


class StudySection(Config):
    """The search as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MOST_LETTERS)]
    """Names the study's folder and its MLflow run."""
    trials: PositiveInt = 20
    """Trials that the search draws."""
    time_budget_s: PositiveFloat | None = None
    """Seconds after which the search starts no trial and stops those that run; None has no limit."""
    epoch_budget: PositiveInt | None = None
    """Epochs that the trials of the search train altogether: none begins that could exceed it, and those that run
    go on to their end; None has no limit."""
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Seed of the sampler; the trials' own is train.seed, and replicates' follow from this one."""
    sampler: Literal["tpe", "gp", "nsga2", "random", "qmc", "cmaes"] = "tpe"
    """How hyperparameters are drawn; `docs/search.md` says what each can do."""
    objectives: Annotated[tuple[ObjectiveName, ...], AfterValidator(distinct_with_accuracy)] = (
        "accuracy",
    )
    """What is sought: most accuracy, least latency, parameters or training_seconds."""
    constraints: ConstraintsConfig = ConstraintsConfig()
    pruner: PrunerConfig = PrunerConfig()
    screening: ScreeningConfig | None = None
    """None trains every trial that is drawn."""
    concurrency: PositiveInt | None = None
    """Most trials at a time; None runs as many as the cluster has room for."""
    max_failures: Annotated[int, Field(ge=0)] = 0
    """How often a trial that failed is tried again, from its last checkpoint; lost nodes are not counted."""
    first_trials: tuple[dict[str, Value], ...] = ()
    """Values by dotted path that the first trials of the search have, one mapping a trial: what is known to be good,
    or is to be beaten. What a trial is not given it draws."""
    warm_start: tuple[str, ...] = ()
    """Finished studies under storage.path whose complete trials the sampler knows from the first draw, as far as they
    are trials that this search could draw. They are copied when the study begins (docs/search.md)."""
    baseline: dict[str, Value] = Field(default_factory=dict[str, Value])
    """Dotted paths that the student without a teacher trains with, over the base values."""
    baselines: dict[BaselineName, PositiveInt] = Field(default_factory=dict[BaselineName, int])
    """Baselines that are searched themselves, with so many trials each: `none`, the student without a teacher, and
    `kd`, vanilla distillation."""
    replicates: ReplicatesConfig | None = None
    """None tests the winner itself, one training with one seed."""

    def looks_at(self, name: ObjectiveName) -> bool:
        """Whether a trial's value of this is sought or bounded."""
        return name in self.objectives or name in self.constraints.bounds


def folder_or_bucket(place: str) -> str:
    """The place, if studies can be kept there."""
    if not is_uri(place):
        return place
    if is_bucket(place) and place.partition("://")[2].strip("/"):
        if "@" in place.partition("://")[2].partition("/")[0]:
            rule = "must be without credentials: the config is kept for all to read"
            raise broken_rule(
                rule, "give them as variables (AWS_ACCESS_KEY_ID, …) or in their file"
            )
        return place
    kinds = " or ".join(f"{kind}bucket/prefix" for kind in BUCKETS)
    raise broken_rule(f"must be a folder, or {kinds}", f"write e.g. {STORAGE}")


class StorageSection(Config):
    """Where things are kept."""

    path: Annotated[str, AfterValidator(folder_or_bucket)] = STORAGE
    """Folder of all studies, each of which has its own in it; or a bucket, as `s3://bucket/prefix` or
    `gs://bucket/prefix`, with what is wanted in `docs/clusters.md`. `file:///folder` is a folder."""
    optuna: str | None = None
    """Storage URL of Optuna; None keeps a journal in the study's folder."""


class TrackingSection(Config):
    """The MLflow store."""

    uri: str | None = None
    """A server's URI, or None for `mlflow.db` under storage.path."""
    experiment: str = "kd-study"
    """MLflow's experiment, which is made if there is none."""


class StudyConfig(TrialConfig):
    """A search over trials; the inherited sections are the base values of every trial."""

    study: StudySection
    storage: StorageSection = StorageSection()
    tracking: TrackingSection = TrackingSection()
    search: dict[str, SearchRange] = Field(default_factory=dict[str, SearchRange])
    """What differs from trial to trial: dotted paths of a trial's config, each with a range (docs/search.md)."""

    @property
    def root(self) -> Path:
        """Where this node has the folders of studies: storage.path, or one of its own if that is a bucket."""
        return working_folder(self.storage.path)

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.root / self.study.name

    @property
    def teachers(self) -> Path:
        """Where the weights of teachers lie that studies have trained."""
        return self.root / "teachers"

    @property
    def trains_teacher(self) -> bool:
        """Whether the study trains its teacher, unless another has."""
        return self.teacher is not None and self.teacher.checkpoint is None

    @property
    def bucket(self) -> str | None:
        """URI of the study's part of a bucket; None where its folder is all there is."""
        storage = self.storage.path
        return within(storage, self.study.name) if is_bucket(storage) else None

    @property
    def place(self) -> str:
        """What a person calls the place of the study: its folder, or its part of a bucket."""
        return self.bucket or str(self.folder)

    @property
    def ranges(self) -> dict[str, SearchRange]:
        """`search`, with decompositions as the choice of those whose stages fit in the fewest epochs of a trial."""
        searched, screening = self.search.get("train.epochs"), self.study.screening
        given = (self.train.epochs,) if searched is None else searched.candidates
        if screening is not None and screening.epochs is not None:
            given = (*given, screening.epochs)
        fewest = min((end for end in given if isinstance(end, int)), default=self.train.epochs)
        return {path: values.within(fewest) for path, values in self.search.items()}

    @property
    def space(self) -> Space:
        """The samples that trials can have; only of a config whose search is valid."""
        return Space(self, self.ranges)

    @property
    def first_trials(self) -> tuple[Sample, ...]:
        """`study.first_trials`, with values of the types that are drawn; only of a config that is valid."""
        ranges = self.ranges
        return tuple(
            {path: ranges[path].own(value) for path, value in given.items()}
            for given in self.study.first_trials
        )

    def trial(self, sample: Mapping[str, Value]) -> TrialConfig:
        """The config of one trial: the base values with the sampled ones in their places.

        A key that it has no use for, where the search decides so, is left out: it has its default.
        """
        base = self.model_dump(include=set(TrialConfig.model_fields))
        trial = parse_or_refuse(TrialConfig, with_values(base, sample))
        return without_unused(trial, self.search)

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
