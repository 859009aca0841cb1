"""Everything that can be known before the first trial: what will run, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from study.checks import Checks, overlap
from study.cluster import Capacity, concurrency, with_resources
from study.config import Draft, StudyConfig
from study.fetching import check_bucket
from study.networks import Networks
from study.results import Value
from study.rules import cross_problems, valid_candidates
from study.samplers import missing_package
from study.screening import screening_search
from study.warm_start import warm_start_problems
from study.writable import nearest_folder, sqlite_problem, takes_files
from trainable import plan, tasks
from trainable.errors import ConfigError, Problem, input_error
from trainable.tasks import DataSummary, NetworkSummary

_SHAPING = ("distill.method", "distill.decomposition")


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
    return preflight_draft(Draft(config), capacity, around)


def preflight_draft(draft: Draft, capacity: Capacity, around: Sequence[Problem] = ()) -> StudyPlan:
    """As `preflight`; of a config that is wrong, everything is checked that does not depend on it."""
    if draft.config is None:
        raise ConfigError(draft.problems)
    config = with_resources(draft.config, capacity)
    checks = Checks(draft)
    checks.add(list(around))
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
    networks = Networks(config, data, checks, _asked_most(config, data, checks))
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


def _asked_most(
    config: StudyConfig, data: DataSummary | None, checks: Checks
) -> DataSummary | None:
    """The data of the trials that ask a cached teacher about most pictures: replicates hold none out."""
    is_cached = config.teacher is not None and config.teacher.cache
    if not is_cached or config.study.replicates is None:
        return data
    whole = config.data.model_copy(update={"val_fraction": 0.0})
    return checks.of(
        ("data", "study.replicates"),
        lambda: tasks.inspect_data(config.model_copy(update={"data": whole})),
    )


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
    remedy = "lower it, or set data.drop_last: false"
    return [
        Problem(
            place,
            f"must be <= {pictures}, the training pictures, with data.drop_last",
            remedy,
            str(size),
        )
        for place, size, pictures in larger_than_an_epoch(config, data)
        if not any(overlap(wrong, place) for wrong in unknown)
    ]


def larger_than_an_epoch(config: StudyConfig, data: DataSummary) -> Iterator[tuple[str, int, int]]:
    """Each batch size that exceeds the pictures of an epoch: the key that gives it, the size and the pictures."""
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
    for place, size, pictures in sorted(sizes, key=str):
        if isinstance(size, int) and size > pictures:
            yield place, size, pictures


def _too_many_parameters(
    config: StudyConfig, parameters: Mapping[str, int], unknown: Collection[str]
) -> list[Problem]:
    """A bound that is below every student that there can be leaves no trial to train."""
    path, bound = "study.constraints.parameters", config.study.constraints.parameters
    fewest = min(parameters.values(), default=0)
    if bound is None or fewest <= bound or any(overlap(wrong, path) for wrong in unknown):
        return []
    rule = f"must be >= {fewest}, the parameters of the smallest student that a trial may have"
    return [Problem(path, rule, "raise it, or search a smaller student.model", f"{bound:g}")]


def _check_storage(config: StudyConfig) -> None:
    if config.bucket is not None:
        check_bucket(config.storage.path)
    for folder in (config.root, config.folder):
        existing = nearest_folder(folder)
        if not takes_files(existing):
            rule = f"must be a folder that can be written, which {existing} is not"
            raise input_error(ConfigError, "storage.path", rule, "choose another", str(config.root))
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
    if url.get_backend_name() == "sqlite" and url.database:
        _check_file(Path(url.database).absolute(), str(url))


def _check_file(path: Path, url: str) -> None:
    """Optuna makes the file of a SQLite database, but no folder for it."""
    if not path.parent.is_dir():
        rule, remedy = "must lie in a folder that exists", "make it"
    elif wrong := sqlite_problem(path):
        rule, remedy = f"must be a SQLite file that can be written, but {wrong}", "choose another"
    else:
        return
    raise input_error(ConfigError, "storage.optuna", rule, remedy, url)
