"""The networks of every kind of trial that a study can have, built before the first without their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from study.checks import Checks
from study.config import StudyConfig
from study.draws import in_search
from study.rules import in_baseline, valid_candidates
from study.space import Space
from trainable import rules, tasks
from trainable.config import TrialConfig
from trainable.errors import ConfigError, Problem
from trainable.methods import METHODS
from trainable.tasks import DataSummary, NetworkSummary

_USUAL_CLASSES, _USUAL_SIDE = 10, 64
_NORMS = ("train.batchnorm.sync", "train.batchnorm.group_norm")
_BUILDING = (
    "student.model",
    "student.projectors",
    "student.head.name",
    "distill.method",
    *_NORMS,
)
_ANSWERING = ("data.augment.crop", "data.augment.flip", "data.subset", "train.precision")
"""What the size of a cached teacher's answers depends on."""


@dataclass(frozen=True)
class _Kind:
    """A kind of trial that the study can have."""

    trial: TrialConfig
    placed: Callable[[Problem], Problem]
    """A problem of the trial → where the config has it."""
    name: str | None = None
    """Its student, by what search gives it; None for the baseline's, which is no trial's."""


class Networks:
    """The networks of every kind of trial.

    Where the data cannot be read, they are checked for pictures as there often are. `asked_most` is the data of the
    trials that ask a cached teacher about most pictures.
    """

    def __init__(
        self,
        config: StudyConfig,
        data: DataSummary | None,
        checks: Checks,
        asked_most: DataSummary | None,
    ) -> None:
        self._checks = checks
        self._data = data or _usual_data(config)
        self._asked_most = asked_most or self._data
        self._students: dict[str, NetworkSummary | None] = {}
        self.parameters: dict[str, int] = {}
        """Of the student of every kind of trial as it is used, by what search gives it."""
        self.teacher: NetworkSummary | None = None
        if config.teacher is not None:
            reads = ("teacher.model", "teacher.cuts", "student.cuts")
            self.teacher = checks.of(reads, lambda: tasks.describe_teacher(config, self._data))
            self._check_checkpoint(config, is_measured=data is not None)
        kinds = list(_kinds_of_trial(config))
        for kind in kinds:
            if self._describe(kind) is not None:
                self._check_method(kind)
                self._count(kind)
        self.student = self.student_of(kinds[0].trial)
        """Of the usual sample."""

    def student_of(self, trial: TrialConfig) -> NetworkSummary | None:
        """The student of a trial; None where it cannot be built."""
        return self._students.get(student_key(trial))

    def blocks_of(self, trial: TrialConfig) -> int | None:
        """Into how many blocks the student of a trial is cut, if that is known."""
        student = self.student_of(trial)
        return None if student is None else len(student.blocks)

    def _describe(self, kind: _Kind) -> NetworkSummary | None:
        trial, key = kind.trial, student_key(kind.trial)
        if key not in self._students:
            reads = ("student", *_NORMS, "train.workers")
            reads += ("teacher",) if trial.student.projectors != "none" else ()
            self._students[key] = self._checks.of(
                reads, lambda: tasks.describe_student(trial, self._data), kind.placed
            )
        return self._students[key]

    def _count(self, kind: _Kind) -> None:
        if kind.name is not None and kind.name not in self.parameters:
            reads = ("student", "teacher.model", "teacher.cuts")
            count = self._checks.of(
                reads, lambda: tasks.parameters_in_use(kind.trial, self._data), kind.placed
            )
            self.parameters |= {} if count is None else {kind.name: count}

    def _check_method(self, kind: _Kind) -> None:
        trial, data = kind.trial, self._data
        if self.teacher is not None:
            reads = ("student", "teacher.model", "teacher.cuts", "distill.method")
            self._checks.of(reads, lambda: tasks.check_features(trial, data), kind.placed)
            reads = ("data", "teacher", "student.cuts", "distill.method", "train.precision")
            asked = self._asked_most
            self._checks.of(reads, lambda: tasks.check_teacher_cache(trial, asked), kind.placed)
        traits = METHODS[trial.distill.method]
        if self.teacher is None and traits.features == "maps":
            return
        if not rules.problems(trial, unknown=self._checks.unknown):
            reads = ("student", "distill.method", *(f"distill.{key}" for key in traits.reads))
            self._checks.of(reads, lambda: tasks.check_method(trial, data), kind.placed)

    def _check_checkpoint(self, config: StudyConfig, *, is_measured: bool) -> None:
        if config.teacher is None or config.teacher.checkpoint is None or self.teacher is None:
            return
        weights = Path(config.teacher.checkpoint)
        if is_measured or not weights.is_file():  # its shapes depend on the data's classes
            self._checks.of(
                ("teacher.checkpoint",),
                lambda: tasks.check_checkpoint(config, self._data, weights),
            )


def student_key(trial: TrialConfig) -> str:
    """Equal for trials whose students have the same layers: `deit` adds a token."""
    norm = trial.train.batchnorm
    layers = trial.distill.method == "deit", norm.sync and trial.train.workers > 1, norm.group_norm
    return f"{trial.student.model_dump_json()} {layers}"


def _kinds_of_trial(config: StudyConfig) -> Iterator[_Kind]:
    """One trial for each student and method that there can be, the usual one first, the baseline's last."""
    candidates, _ = valid_candidates(config)
    is_cached = config.teacher is not None and config.teacher.cache
    building = (*_BUILDING, *(_ANSWERING if is_cached else ()))
    samples = list(Space(config, config.ranges, candidates).draws(building))
    for sample in samples:
        shown = {path: value for path, value in sample.items() if path in building}
        placed = partial(in_search, sample=shown, always=len(samples) == 1)
        trial = config.trial(sample)
        given = [str(value) for path, value in shown.items() if path.startswith("student.")]
        given += ["deit"] * (trial.distill.method == "deit")
        yield _Kind(trial, placed, ", ".join(given) or trial.student.model)
    if config.search:
        try:
            baseline = config.baseline()
        except ConfigError:
            return  # reported by `cross_problems`
        yield _Kind(baseline, partial(in_baseline, values=config.study.baseline))


def _usual_data(config: StudyConfig) -> DataSummary:
    side = config.data.image_size or _USUAL_SIDE
    classes = config.data.classes or tuple(str(label) for label in range(_USUAL_CLASSES))
    hidden = config.data.unseen_classes or ()
    return DataSummary(
        classes=tuple(name for name in classes if name not in hidden),
        train=1,
        left_out=0,
        val=0,
        test=1,
        unseen_classes=hidden,
        unseen=0,
        channels=config.data.channels,
        image_size=(side, side),
        fingerprint="",
        decoded_gib=0.0,
        streamed=False,
        overlap=0,
    )
