"""Everything that can be known before the first trial: what will run, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from study.cluster import Capacity, concurrency, with_resources
from study.config import Draft, StudyConfig
from study.draws import in_search
from study.fetching import check_bucket
from study.results import Value
from study.rules import cross_problems, in_baseline, valid_candidates
from study.samplers import missing_package
from study.screening import screening_search
from study.space import Space
from study.warm_start import warm_start_problems
from trainable import plan, rules, tasks
from trainable.config import TrialConfig
from trainable.errors import ConfigError, DataError, InputError, Problem, input_error
from trainable.methods import METHODS
from trainable.tasks import DataSummary, NetworkSummary

_T = TypeVar("_T")
_USUAL_CLASSES, _USUAL_SIDE = 10, 64
_SHAPING = ("distill.method", "distill.decomposition")
_BUILDING = ("student.model", "student.projectors", "student.head.name", "distill.method")
_ANSWERING = ("data.augment.crop", "data.augment.flip", "data.subset", "train.precision")
"""What the size of a cached teacher's answers depends on."""


@dataclass(frozen=True)
class StudyPlan:
    """A study that can run."""

    config: StudyConfig
    """With its resources settled; where they are not yet, a trial has a whole GPU."""
    capacity: Capacity
    concurrency: int
    data: DataSummary
    student: NetworkSummary
    """Of the usual sample, where the search has several."""
    teacher: NetworkSummary | None
    parameters: Mapping[str, int]
    """Of every student that a trial may have, as it is used, by what search gives it."""
    is_unsettled: bool = False
    """Whether a trial is to be measured before the first, for `resources.gpus_per_worker: auto`."""


def preflight(config: StudyConfig, capacity: Capacity, around: Sequence[Problem] = ()) -> StudyPlan:
    """Check data, networks, checkpoint, every end of the search, and that a trial fits on the cluster.

    Decodes the data set, once a node. Raises InputError with everything that is wrong at once, and with what is
    wrong `around` it: with nodes, or databases.
    """
    return preflight_draft(Draft(config, problems=tuple(around)), capacity)


def preflight_draft(draft: Draft, capacity: Capacity) -> StudyPlan:
    """As `preflight`; of a config that is wrong, everything is checked that does not depend on it."""
    if draft.config is None:
        raise ConfigError(draft.problems)
    config = with_resources(draft.config, capacity)
    checks = _Checks(draft)
    checks.of(("storage",), lambda: _check_storage(config))
    if not draft.unknown and not draft.problems:
        checks.add(warm_start_problems(config))
    slots = checks.of(
        ("study", "resources", "train.workers", "train.launcher"),
        lambda: concurrency(config, capacity),
    )
    data = checks.of(("data",), lambda: tasks.inspect_data(config))
    checks.add(_too_few_pictures(config, data))
    checks.add(_no_whole_update(config, data, draft.unknown))
    if config.study.screening is not None:
        screened = screening_search(config)
        fewer = checks.of(("data", "study.screening"), lambda: tasks.inspect_data(screened))
        checks.add(_too_few_pictures(screened, fewer))
        checks.add(_no_whole_update(screened, fewer, draft.unknown))
    networks = _Networks(config, data, checks)
    checks.add(cross_problems(config, networks.blocks_of, draft.unknown))
    checks.add(missing_package(config.study))
    checks.add(_too_many_parameters(config, networks.parameters, draft.unknown))
    if checks.problems or slots is None or data is None or networks.student is None:
        raise checks.error()
    shares = bool(config.resources.gpus) and config.train.workers == 1
    is_unsettled = shares and draft.config.resources.gpus_per_worker == "auto"
    found = networks.student, networks.teacher, networks.parameters
    return StudyPlan(config, capacity, slots, data, *found, is_unsettled)


def stages_by_decomposition(plan_: StudyPlan) -> dict[str, tuple[plan.Stage, ...]]:
    """The stages of each decomposition that a trial may have (or of the method, where it has none)."""
    config, blocks = plan_.config, len(plan_.student.blocks)
    result: dict[str, tuple[plan.Stage, ...]] = {}
    for sample in config.space.draws(_SHAPING):
        trial = config.trial(sample)
        has_stages = trial.distill.method == "stablekd"
        name = trial.distill.decomposition if has_stages else None
        result[name or trial.distill.method] = plan.stages(trial, blocks)
    return result


def _too_few_pictures(config: StudyConfig, data: DataSummary | None) -> list[Problem]:
    """BatchNorm needs two pictures on every worker, also in an epoch of a single update."""
    if data is None or data.train >= 2 * config.train.workers:
        return []
    rule = f"must leave two training pictures for each worker, of {data.train} in all"
    return [Problem("train.workers", rule, "use fewer workers", str(config.train.workers))]


def _no_whole_update(
    config: StudyConfig, data: DataSummary | None, unknown: Collection[str]
) -> list[Problem]:
    """With `data.drop_last`, an epoch of fewer pictures than an update has would be empty."""
    if data is None or not config.data.drop_last:
        return []
    path, base, reference = "data.batch_size", config.data.batch_size, config.study.baseline
    searched = valid_candidates(config)[0].get(path)
    sizes: set[tuple[str, Value, int]] = {
        (f"search.{path}", size, data.train) for size in searched or ()
    }
    if searched is None:
        sizes.add((path, base, data.train))
    if config.search:
        place = f"study.baseline.{path}" if path in reference else path
        sizes.add((place, reference.get(path, base), data.train))
    if config.teacher is not None and config.teacher.train is not None:
        size, pictures = config.teacher.train.batch_size, data.train + data.left_out
        sizes.add(("teacher.train.batch_size", size, pictures))
    remedy = "lower it, or set data.drop_last: false"
    return [
        Problem(
            place,
            f"must be <= {pictures}, the training pictures, with data.drop_last",
            remedy,
            str(size),
        )
        for place, size, pictures in sorted(sizes, key=str)
        if isinstance(size, int) and size > pictures
        if not any(_overlap(wrong, place) for wrong in unknown)
    ]


def _too_many_parameters(
    config: StudyConfig, parameters: Mapping[str, int], unknown: Collection[str]
) -> list[Problem]:
    """A bound that is below every student that there can be leaves no trial to train."""
    path, bound = "study.constraints.parameters", config.study.constraints.parameters
    fewest = min(parameters.values(), default=0)
    if bound is None or fewest <= bound or any(_overlap(wrong, path) for wrong in unknown):
        return []
    rule = f"must be >= {fewest}, the parameters of the smallest student that a trial may have"
    return [Problem(path, rule, "raise it, or search a smaller student.model", f"{bound:g}")]


class _Checks:
    """Runs checks and keeps what they find; leaves out those that read what is not known."""

    def __init__(self, draft: Draft) -> None:
        self.unknown = draft.unknown
        self.problems: dict[Problem, None] = dict.fromkeys(draft.problems)
        self._kinds: set[type[InputError]] = {ConfigError} if draft.problems else set()

    def of(
        self,
        reads: tuple[str, ...],
        check: Callable[[], _T],
        placed: Callable[[Problem], Problem] = lambda problem: problem,
    ) -> _T | None:
        """The result of a check of these sections and keys; what it finds is kept, as `placed` has it."""
        if any(_overlap(read, path) for read in reads for path in self.unknown):
            return None
        try:
            return check()
        except InputError as error:
            self.problems |= dict.fromkeys(map(placed, error.problems))
            self._kinds.add(DataError if isinstance(error, DataError) else ConfigError)
            return None

    def add(self, problems: list[Problem]) -> None:
        """Keep what was found elsewhere."""
        self.problems |= dict.fromkeys(problems)
        self._kinds |= {ConfigError} if problems else set()

    def error(self) -> InputError:
        """All of it."""
        kind = DataError if self._kinds == {DataError} else ConfigError
        return kind(self.problems)


@dataclass(frozen=True)
class _Kind:
    """A kind of trial that the study can have."""

    trial: TrialConfig
    placed: Callable[[Problem], Problem]
    """A problem of the trial → where the config has it."""
    name: str | None = None
    """Its student, by what search gives it; None for the baseline's, which is no trial's."""


class _Networks:
    """The networks of every kind of trial.

    Where the data cannot be read, they are checked for pictures as there often are.
    """

    def __init__(self, config: StudyConfig, data: DataSummary | None, checks: _Checks) -> None:
        self._checks = checks
        self._data = data or _usual_data(config)
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
            reads = ("student", *(("teacher",) if trial.student.projectors != "none" else ()))
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
            self._checks.of(reads, lambda: tasks.check_teacher_cache(trial, data), kind.placed)
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
    return f"{trial.student.model_dump_json()} {trial.distill.method == 'deit'}"


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


def _check_storage(config: StudyConfig) -> None:
    if config.bucket is not None:
        check_bucket(config.storage.path)
    folder = config.root
    existing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        rule = f"must be a folder that can be written, which {existing} is not"
        raise input_error(ConfigError, "storage.path", rule, "choose another", str(folder))
    if config.storage.optuna is None:
        return
    remedy = "write e.g. sqlite:////folder/optuna.db, or install its driver"
    try:
        url = make_url(config.storage.optuna)
        url.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        rule = (
            f"must be the URL of a database that SQLAlchemy can open ({str(error).splitlines()[0]})"
        )
        raise input_error(ConfigError, "storage.optuna", rule, remedy) from None
    if (
        url.get_backend_name() == "sqlite"
        and not Path(url.database or ".").absolute().parent.is_dir()
    ):
        rule = "must lie in a folder that exists"
        raise input_error(ConfigError, "storage.optuna", rule, "make it", str(url))


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
