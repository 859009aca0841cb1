"""Everything that can be known before the first trial: what will run, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from study.cluster import Capacity, concurrency, with_resources
from study.config import StudyConfig, cross_problems
from trainable import plan, tasks
from trainable.config import TrialConfig
from trainable.errors import ConfigError, DataError, InputError, Problem
from trainable.tasks import DataSummary, NetworkSummary

_T = TypeVar("_T")


@dataclass(frozen=True)
class StudyPlan:
    """A study that can run."""

    config: StudyConfig
    """With its resources settled."""
    capacity: Capacity
    concurrency: int
    data: DataSummary
    student: NetworkSummary
    teacher: NetworkSummary | None


def preflight(config: StudyConfig, capacity: Capacity) -> StudyPlan:
    """Check data, networks, checkpoint, every end of the search, and that a trial fits on the cluster.

    Decodes the data set, once a node. Raises InputError with everything that is wrong at once.
    """
    config = with_resources(config, capacity)
    checks = _Checks()
    slots = checks.of(lambda: concurrency(config, capacity))
    data = checks.of(lambda: tasks.inspect_data(config))
    student = teacher = None
    if data is not None:
        student = checks.of(lambda: tasks.describe_student(config, data))
        if config.teacher is not None:
            teacher = checks.of(lambda: tasks.describe_teacher(config, data))
            checks.of(lambda: _check_checkpoint(config, data))
        if student is not None and not checks.problems:
            _check_trials(config, data, checks)
    checks.problems += cross_problems(config, None if student is None else len(student.blocks))
    if checks.problems or slots is None or data is None or student is None:
        problems = tuple(dict.fromkeys(checks.problems))
        raise (checks.kinds.pop() if len(checks.kinds) == 1 else ConfigError)(problems)
    return StudyPlan(config, capacity, slots, data, student, teacher)


def stages_by_decomposition(plan_: StudyPlan) -> dict[str, tuple[plan.Stage, ...]]:
    """The stages of each decomposition that a trial may have (or of the method, where it has none)."""
    config, blocks = plan_.config, len(plan_.student.blocks)
    samples = [
        sample for path, sample in config.corner_samples() if path == "distill.decomposition"
    ]
    result: dict[str, tuple[plan.Stage, ...]] = {}
    for sample in samples or [config.usual_sample]:
        trial = config.trial(sample)
        has_stages = trial.distill.method == "stablekd"
        name = trial.distill.decomposition if has_stages else None
        result[name or trial.distill.method] = plan.stages(trial, blocks)
    return result


class _Checks:
    """Runs checks and keeps what they find."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.kinds: set[type[InputError]] = set()

    def of(self, check: Callable[[], _T]) -> _T | None:
        try:
            return check()
        except InputError as error:
            self.problems += error.problems
            self.kinds.add(type(error) if isinstance(error, DataError) else ConfigError)
            return None


def _check_checkpoint(config: StudyConfig, data: DataSummary) -> None:
    if config.teacher is not None and config.teacher.checkpoint is not None:
        tasks.check_checkpoint(config, data, Path(config.teacher.checkpoint))


def _check_trials(config: StudyConfig, data: DataSummary, checks: _Checks) -> None:
    """Methods and networks of every kind of trial that the search can give."""
    samples = [config.usual_sample, *(sample for _, sample in config.corner_samples())]
    seen: set[str] = set()
    for sample in samples:
        try:
            trial: TrialConfig = config.trial(sample)
        except ConfigError:
            continue  # reported by `cross_problems`
        if plan.problems(trial):
            continue
        key = trial.model_dump_json(include={"student", "distill"})
        if key in seen:
            continue
        seen.add(key)
        checks.of(lambda trial=trial: tasks.describe_student(trial, data))
        checks.of(lambda trial=trial: tasks.check_features(trial, data))
        checks.of(lambda trial=trial: tasks.check_method(trial, data))
