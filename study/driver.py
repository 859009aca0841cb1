"""A study from its config to its leaderboard.

Three phases: the references (a teacher to train, the student without one), the search, and the test of
what came of them. The test split is read in the last one only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.tune import TuneConfig
from ray.tune.experiment import Trial

from study.cluster import connected, uses_torch_trainer, worker_resources
from study.config import StudyConfig
from study.folder import (
    SPOOL,
    check_same_study,
    connect,
    has_unsent,
    keep_config,
    load_finished,
    log_file,
    only_driver,
    open_results,
)
from study.jobs import Job
from study.measuring import packed
from study.nodes import check_nodes
from study.packing import as_packed
from study.preflight import StudyPlan, preflight
from study.recorder import REST_S, Recorder, Watcher
from study.report.links import PAGE
from study.report.page import write_report
from study.results import StudyResults, TrialRow
from study.scheduler import build_scheduler
from study.search import (
    StudySearch,
    ended_curves,
    ended_states,
    open_study,
    prune_unfinished,
)
from study.spool import Spool
from study.stopping import Stop, sigterm_interrupts
from study.store import Store
from study.tracking import Tracker
from study.tuning import run_tune
from study.writer import Writer
from study.yaml import dump_yaml
from trainable import tasks
from trainable.errors import ConfigError, KdStudyError

KEPT_TRIALS = 3
"""Best trials whose weights and config are kept as artifacts of their MLflow runs."""


_LOG = logging.getLogger(__name__)


class Display(Watcher, AbstractContextManager[Any], Protocol):
    """A watcher that is on screen while it is entered."""


OpenDisplay = Callable[[int, Sequence[TrialRow]], Display]
"""(trials at a time, rows that have ended before) → what shows the study."""


class StudyInterruptedError(KdStudyError):
    """The study was stopped and can be resumed by running it again."""


class StudyFailedError(KdStudyError):
    """The study cannot go on; running it again tries again."""


def run_study(config: StudyConfig, open_display: OpenDisplay) -> StudyResults:
    """Run the study, or go on with it, or return the results of one that has finished.

    Raises InputError before any trial starts if anything is wrong, StudyInterruptedError on Ctrl-C or
    SIGTERM, and StudyFailedError if there is no teacher to learn from.
    """
    check_same_study(config)
    finished = load_finished(config.folder)
    try:
        with sigterm_interrupts():
            if finished is None:
                return _run(config, open_display)
            if has_unsent(config.folder, finished) or not (config.folder / PAGE).exists():
                return _end(config, finished, open_display)
            return finished
    except KeyboardInterrupt:
        raise StudyInterruptedError from None


def _run(config: StudyConfig, open_display: OpenDisplay) -> StudyResults:
    with connected() as capacity:
        check_nodes(Path(config.storage.path))
        plan = preflight(as_packed(config, config.folder), capacity)
        store = connect(config)
        with only_driver(config.folder), log_file(config.folder):
            keep_config(config)
            plan, told = packed(plan, _teacher_weights(plan))
            with _recording(plan.config, store, plan.concurrency, open_display) as (recorder, show):
                if told:
                    show.message(told)
                return _Run(plan, recorder, show).run()


def _end(config: StudyConfig, finished: StudyResults, open_display: OpenDisplay) -> StudyResults:
    """What a study that has finished could not: its report, and to tell MLflow the rest."""
    with only_driver(config.folder), log_file(config.folder):
        try:
            settled = as_packed(config, config.folder)
            with _recording(settled, connect(config), 1, open_display) as (recorder, display):
                if not (config.folder / PAGE).exists():
                    _report(recorder, display, config.folder)
                recorder.settle(REST_S)
                return recorder.results
        except ConfigError as error:
            with open_display(1, finished.of("trial")) as display:
                display.message(f"MLflow has not been told all of this study. {error}")
            return finished


@contextmanager
def _recording(
    config: StudyConfig, store: Store, slots: int, open_display: OpenDisplay
) -> Generator[tuple[Recorder, Display]]:
    """A recorder of the study as it stands, whose lines are sent to the store in this block."""
    with Spool(config.folder / SPOOL) as spool:
        results = open_results(config, store, spool)
        ended = [row for row in results.of("trial") if row.state != "running"]
        with open_display(slots, ended) as display, Writer(spool, Tracker(store)) as writer:
            yield Recorder(config, results, writer, display), display


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

    def run(self) -> StudyResults:
        try:
            searched = ended_states(open_study(self._config)) if self._config.search else {}
            self._recorder.take_up(searched)
            self._train_references()
            self._search()
            self._test()
        except StudyFailedError:
            self._recorder.stopped("failed")
            raise
        except BaseException:
            self._recorder.stopped("interrupted")
            raise
        self._recorder.finished(self._plan.data.test)
        _report(self._recorder, self._watcher, self._config.folder)
        self._recorder.settle()
        return self._recorder.results

    def _train_references(self) -> None:
        """Train the teacher unless its weights exist, and beside it the student without a teacher."""
        weights, jobs = self._teacher_weights, list[Job]()
        teacher = Job("teacher")
        if weights is not None and not weights.exists():
            jobs.append(teacher)
        if self._config.search and not self._has_ended(Job("baseline")):
            jobs.append(Job("baseline"))
        if jobs:
            self._watcher.phase(f"training the {' and the '.join(job.role for job in jobs)}")
            self._train(jobs)
        if teacher in jobs:
            self._must_be_complete(teacher)
            assert weights is not None
            tasks.keep_teacher(teacher.folder(self._config), weights)
        elif weights is not None and not self._is_complete(teacher):
            self._recorder.started(teacher)
            self._recorder.scored(teacher, self._score(teacher, weights, "val"))
            self._recorder.ended(teacher, "complete")

    def _search(self) -> None:
        if not self._config.search:
            if not self._has_ended(Job("trial")):
                self._watcher.phase("training the student")
                self._train([Job("trial")])
            return
        study = open_study(self._config)
        seconds = self._search_seconds_left()
        remaining = self._config.study.trials - len(ended_states(study))
        if remaining > 0 and (seconds is None or seconds > 0):
            self._watcher.phase(f"searching: {self._config.study.trials} trials")
            how = TuneConfig(
                search_alg=StudySearch(self._config, study),
                scheduler=build_scheduler(self._config, ended_curves(study)),
                num_samples=remaining,
                max_concurrent_trials=self._plan.concurrency,
                # A thread that waits for a TorchTrainer cannot be ended, and so not its actor reused.
                reuse_actors=not uses_torch_trainer(self._config),
                trial_dirname_creator=_trial_dirname,
            )
            stop = Stop(seconds, self._watcher.phase)
            self._tune({}, how, stop)
            if stop.reason is None and len(ended_states(study)) < self._config.study.trials:
                raise StudyInterruptedError  # by SIGUSR1, which Tune keeps to itself
        # Whatever still runs was stopped by the time budget.
        for job in prune_unfinished(study):
            if self._recorder.row(job) is None:
                self._recorder.started(job)
            self._recorder.ended(job, "pruned")

    def _search_seconds_left(self) -> float | None:
        """Of the time budget, which an interruption does not give back."""
        searched = self._recorder.seconds_searched()
        budget = self._config.study.time_budget_s
        return None if budget is None else budget - searched

    def _test(self) -> None:
        """Read the test split, once for each of the winner, the baseline and the teacher."""
        winner = self._recorder.results.winner
        if winner is None:
            return
        self._watcher.phase("testing the winner and what it is compared with")
        for row in self._recorder.results.best_trials[:KEPT_TRIALS]:
            job = Job.of(row, self._config)
            text = dump_yaml(job.config(self._config).model_dump(mode="json", exclude_none=True))
            self._recorder.keep_artifacts(job, tasks.best_weights(job.folder(self._config)), text)
        for job in (Job.of(winner, self._config), Job("baseline"), Job("teacher")):
            row = self._recorder.row(job)
            if row is None or row.state != "complete" or row.test_accuracy is not None:
                continue
            weights = self._teacher_weights if job.role == "teacher" else None
            weights = weights or tasks.best_weights(job.folder(self._config))
            self._recorder.tested(job, self._score(job, weights, "test"))

    def _train(self, jobs: Sequence[Job]) -> None:
        space = {"job": tune.grid_search([job.to_dict() for job in jobs])}
        how = TuneConfig(
            max_concurrent_trials=self._plan.concurrency, trial_dirname_creator=_trial_dirname
        )
        self._tune(space, how, Stop(None, self._watcher.phase))
        if not all(self._has_ended(job) for job in jobs):
            raise StudyInterruptedError

    def _tune(self, space: dict[str, Any], how: TuneConfig, stop: Stop) -> None:
        run_tune(self._config, self._teacher_weights, space, how, stop, self._recorder)
        if stop.reason == "interrupted":
            raise StudyInterruptedError

    def _score(self, job: Job, weights: Path, split: Literal["val", "test"]) -> dict[str, float]:
        """Metrics of a network on a split, measured where trials run."""
        config: Any = self._config if job.role == "teacher" else job.config(self._config)
        network = "teacher" if job.role == "teacher" else "student"
        need = worker_resources(self._config)
        task = ray.remote(tasks.score_weights).options(
            num_cpus=need["CPU"], num_gpus=need.get("GPU", 0)
        )
        device = tasks.default_device(config)
        return ray.get(task.remote(config, network, weights, split, device))

    def _is_complete(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state == "complete"

    def _has_ended(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state != "running"

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
    return Path(config.storage.path) / "teachers" / f"{key}.safetensors"


def _trial_dirname(trial: Trial) -> str:
    return trial.trial_id
