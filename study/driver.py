"""A study from its config to its leaderboard.

Its steps are in `study.agenda`; here is what begins and ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import optuna
from ray.tune import TuneConfig
from ray.tune.experiment import Trial

from study.agenda import Agenda
from study.books import REST_S
from study.cluster import connected, may_reuse_processes
from study.config import StudyConfig
from study.folder import (
    check_same_study,
    connect,
    has_unsent,
    keep_config,
    load_finished,
    log_file,
    only_driver,
    open_results,
    replace_config,
)
from study.halving import Halving
from study.jobs import Job
from study.measuring import packed
from study.mirror import KeepingError, Mirror, mirrored
from study.nodes import cluster_problems
from study.optuna_storage import OptunaError, database_problems
from study.optuna_study import (
    NO_BASELINES,
    claim,
    ended_curves,
    ended_states,
    open_baselines,
    open_study,
)
from study.packing import as_packed
from study.pieces import open_halving
from study.preflight import StudyPlan, preflight
from study.recorder import Recorder, Watcher
from study.report.links import PAGE
from study.report.page import write_report
from study.results import StudyResults, TrialRow
from study.scheduler import build_scheduler
from study.search import StudySearch
from study.sieve import Sieve
from study.spool import SPOOL, Spool
from study.steps import Step
from study.stopping import Stop, sigterm_interrupts
from study.store import Store
from study.tracking import Tracker
from study.tuning import ScoringError, run_tune
from study.writer import Writer
from trainable import tasks
from trainable.bucket import BucketError
from trainable.errors import ConfigError, KdStudyError, StorageError
from trainable.storage import writing_to

_LOG = logging.getLogger(__name__)


class Display(Watcher, AbstractContextManager[Any], Protocol):
    """A watcher that is on screen while it is entered."""


OpenDisplay = Callable[[int, Sequence[TrialRow]], Display]
"""(trials at a time, rows that have ended before, or wait) → what shows the study."""


class StudyInterruptedError(KdStudyError):
    """The study was stopped and can be resumed by running it again."""


class StudyFailedError(KdStudyError):
    """The study cannot go on; running it again tries again."""


def run_study(config: StudyConfig, open_display: OpenDisplay) -> StudyResults:
    """Run the study, or go on with it, or return the results of one that has finished.

    Raises InputError before any trial starts if anything is wrong, StudyInterruptedError on Ctrl-C or
    SIGTERM, and StudyFailedError if there is no teacher to learn from, or a storage fails.
    """
    with _driving(config) as mirror:
        check_same_study(config)
        finished = load_finished(config)
        if finished is None:
            return _run(config, mirror, open_display)
        if has_unsent(config.folder, finished) or not (config.folder / PAGE).exists():
            return _end(config, finished, mirror, open_display)
        return finished


def extend_study(
    config: StudyConfig, open_display: OpenDisplay, *, before: StudyConfig
) -> StudyResults:
    """Run a study with more trials than it has in `before`, the config that it keeps.

    It keeps `config` once everything is known to be right, before the first new trial. Raises as `run_study`.
    """
    with _driving(config) as mirror:
        return _run(config, mirror, open_display, before)


@contextmanager
def _driving(config: StudyConfig) -> Generator[Mirror]:
    """What ends a study that can be gone on with, in the driver's own errors."""
    try:
        with sigterm_interrupts(), writing_to(config.root), mirrored(config) as mirror:
            yield mirror
    except KeyboardInterrupt:
        raise StudyInterruptedError from None
    except (OptunaError, StorageError, BucketError, KeepingError) as error:
        raise StudyFailedError(str(error)) from None


def _run(
    config: StudyConfig,
    mirror: Mirror,
    open_display: OpenDisplay,
    before: StudyConfig | None = None,
) -> StudyResults:
    with connected() as capacity:
        around = [*cluster_problems(config), *database_problems(config)]
        plan = preflight(as_packed(config, config.folder), capacity, around)
        store = connect(config)
        with only_driver(config.folder), log_file(config.folder):
            check_same_study(before or config)  # another driver may have come first
            keep_config(before or config)
            weights = _teacher_weights(plan)
            if weights is not None and config.trains_teacher:
                mirror.bring(weights)
            plan, told = packed(plan, weights)
            with _spooling(plan.config, mirror) as spool:
                claim(plan.config, spool.study_id)
                recording = _recording(
                    plan.config, store, plan.concurrency, spool, mirror, open_display
                )
                with recording as (recorder, show):
                    if told:
                        show.message(told)
                    if before is not None:
                        replace_config(config)
                    return _Run(plan, recorder, show).run()


def _end(
    config: StudyConfig, finished: StudyResults, mirror: Mirror, open_display: OpenDisplay
) -> StudyResults:
    """What a study that has finished could not: its report, and to tell MLflow the rest."""
    with only_driver(config.folder), log_file(config.folder):
        try:
            settled = as_packed(config, config.folder)
            store = connect(config)
            with (
                _spooling(settled, mirror) as spool,
                _recording(settled, store, 1, spool, mirror, open_display) as (recorder, display),
            ):
                if not (config.folder / PAGE).exists():
                    _report(recorder, display, config.folder)
                recorder.settle(REST_S)
                return recorder.results
        except ConfigError as error:
            with open_display(1, finished.of("trial")) as display:
                display.message(f"MLflow has not been told all of this study. {error}")
            return finished


@contextmanager
def _spooling(config: StudyConfig, mirror: Mirror) -> Generator[Spool]:
    """The study's spool, in which is the name by which stores know the study."""
    with Spool(config.folder / SPOOL) as spool:
        if config.bucket is not None:
            spool.released = 0  # until they are kept: the next driver would tell of them once more
        mirror.keep()
        yield spool


@contextmanager
def _recording(
    config: StudyConfig,
    store: Store,
    slots: int,
    spool: Spool,
    mirror: Mirror,
    open_display: OpenDisplay,
) -> Generator[tuple[Recorder, Display]]:
    """A recorder of the study as it stands, whose lines are sent to the store in this block."""
    results = open_results(config, store, spool)
    rested = [row for row in results.rows if _is_counted(row) and row.state != "running"]
    with open_display(slots, rested) as display, Writer(spool, Tracker(store)) as writer:
        yield Recorder(config, results, writer, display, mirror), display


def _is_counted(row: TrialRow) -> bool:
    """By a display: all but the teacher and the student without one."""
    return row.is_searched or row.role in ("screening", "replicate")


def _report(recorder: Recorder, watcher: Watcher, folder: Path) -> None:
    """Write the report, and keep it with the parent run; a study never fails of it."""
    try:
        recorder.keep_report(write_report(recorder.results, folder))
    except Exception as error:
        _LOG.exception("the report failed")
        watcher.message(f"no report, because {error}: `kd-study report` tries again")


class _Run:
    """One driver's work on a study."""

    def __init__(self, plan: StudyPlan, recorder: Recorder, watcher: Watcher) -> None:
        self._plan, self._config = plan, plan.config
        self._teacher_weights = _teacher_weights(plan)
        self._recorder, self._watcher = recorder, watcher
        self._beside = NO_BASELINES
        self._halving: Halving | None = None

    def run(self) -> StudyResults:
        try:
            study = open_study(self._config, self._watcher.message) if self._config.search else None
            self._beside = open_baselines(self._config, study) if study else NO_BASELINES
            ended = {name: ended_states(baseline) for name, baseline in self._beside.items()}
            self._recorder.take_up(ended_states(study) if study else {}, ended)
            self._work(study)
        except StudyFailedError:
            self._recorder.stopped("failed")
            raise
        except BaseException:
            self._recorder.stopped("interrupted")
            raise
        # A page that is there belongs to a study that had not finished; one that is missing is written.
        (self._config.folder / PAGE).unlink(missing_ok=True)
        self._recorder.finished(self._plan.data.val, self._plan.data.test)
        _report(self._recorder, self._watcher, self._config.folder)
        self._recorder.settle()
        return self._recorder.results

    def _work(self, study: optuna.Study | None) -> None:
        """Take all steps; once more those that are left if the search's time was up."""
        weights = self._teacher_weights
        rows = self._recorder.results.of("trial")
        violating = {row.number for row in rows if row.violates}
        self._halving = open_halving(self._config, study, violating) if study else None
        agenda = Agenda(
            self._config,
            study,
            weights,
            self._recorder,
            self._watcher,
            self._beside,
            self._halving,
        )
        stop = Stop(self._watcher.phase)
        self._tune(agenda.steps(stop), study, stop)
        if stop.reason == "out of time":
            stop = Stop(self._watcher.phase)
            self._tune(agenda.steps(None), study, stop)
        if not agenda.is_over:
            raise StudyInterruptedError  # by SIGUSR1, which Tune keeps to itself
        if weights is not None:
            self._must_be_complete(Job("teacher"))

    def _tune(self, steps: Iterator[Step], study: optuna.Study | None, stop: Stop) -> None:
        sieve = Sieve(self._config, self._plan.data, self._recorder)
        search = StudySearch(self._config, study, steps, self._beside, sieve, self._halving)
        how = TuneConfig(
            search_alg=search,
            scheduler=build_scheduler(self._config, ended_curves(study) if study else {}),
            num_samples=-1,
            max_concurrent_trials=self._plan.concurrency,
            reuse_actors=may_reuse_processes(self._config),
            trial_dirname_creator=_trial_dirname,
        )
        try:
            run_tune(self._config, self._teacher_weights, search, how, stop, self._recorder)
        except ScoringError as error:
            raise StudyFailedError(str(error)) from None
        if stop.reason == "interrupted":
            raise StudyInterruptedError
        search.settle()

    def _must_be_complete(self, job: Job) -> None:
        row = self._recorder.row(job)
        if row is None or row.state != "complete":
            reason = "it did not end" if row is None else row.error or row.state
            place = f"{job.folder(self._config)}, and error.txt of its MLflow run, say more"
            raise StudyFailedError(f"training the {job.role} failed: {reason}\n{place}")


def _teacher_weights(plan: StudyPlan) -> Path | None:
    """The file of the teacher's weights, also of one that is still to be trained."""
    config = plan.config
    if config.teacher is None:
        return None
    if config.teacher.checkpoint is not None:
        return Path(config.teacher.checkpoint)
    key = tasks.teacher_key(config.teacher_training(), plan.data)
    return config.teachers / f"{key}.safetensors"


def _trial_dirname(trial: Trial) -> str:
    return trial.trial_id
