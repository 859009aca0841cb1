"""A study from its config to its leaderboard.

Three phases: the references (a teacher to train, the student without one), the search, and the test of
what came of them. The test split is read in the last one only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from filelock import FileLock, Timeout
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial

from study.cluster import actor_resources as resources_of
from study.cluster import connected, worker_resources
from study.config import StudyConfig, differing_keys, dump_config, parse_config
from study.jobs import Job
from study.preflight import StudyPlan, preflight
from study.recorder import Recorder, TuneListener, Watcher
from study.results import LEDGER, StudyResults, TrialRow, load_results, save_results
from study.scheduler import build_scheduler
from study.search import StudySearch, finished_trials, open_study
from study.tracking import Tracker
from study.trial import run_job
from study.yaml import dump_yaml, parse_yaml
from trainable import tasks
from trainable.errors import ConfigError, KdStudyError, Problem, input_error

RESOLVED = "config.yaml"


class Display(Watcher, AbstractContextManager[Any], Protocol):
    """A watcher that is on screen while it is entered."""


OpenDisplay = Callable[[int, Sequence[TrialRow]], Display]
"""(trials at a time, rows that have ended before) → what shows the study."""


class StudyInterruptedError(KdStudyError):
    """The study was stopped and can be resumed by running it again."""


def run_study(config: StudyConfig, open_display: OpenDisplay) -> StudyResults:
    """Run the study, or go on with it, or return the results of one that has finished.

    Raises InputError before any trial starts if anything is wrong, and StudyInterruptedError on Ctrl-C.
    """
    _check_same_study(config)
    finished = load_finished(config.folder)
    if finished is not None:
        return finished
    with connected() as capacity:
        plan = preflight(config, capacity)
        tracker = Tracker(tracking_uri(config), config.tracking.experiment, artifact_root(config))
        config.folder.mkdir(parents=True, exist_ok=True)
        with _only_driver(config.folder):
            (config.folder / RESOLVED).write_text(dump_config(config))
            results = _open_results(plan.config, tracker)
            ended = [row for row in results.of("trial") if row.state != "running"]
            with open_display(plan.concurrency, ended) as display:
                return _Run(plan, Recorder(plan.config, results, tracker, display), display).run()


def load_finished(folder: Path) -> StudyResults | None:
    """The results of a study that has finished."""
    path = folder / LEDGER
    results = load_results(path) if path.exists() else None
    return results if results is not None and results.finished else None


def tracking_uri(config: StudyConfig) -> str:
    """The MLflow store: the config's, or the embedded one."""
    if config.tracking.uri is not None:
        return config.tracking.uri
    Path(config.storage.path).mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{Path(config.storage.path) / 'mlflow.db'}"


def artifact_root(config: StudyConfig) -> Path | None:
    """Where the embedded store keeps its artifacts; None leaves it to a server."""
    return Path(config.storage.path) / "mlartifacts" if config.tracking.uri is None else None


class _Run:
    """One driver's work on a study."""

    def __init__(self, plan: StudyPlan, recorder: Recorder, watcher: Watcher) -> None:
        self._plan, self._config = plan, plan.config
        self._recorder, self._watcher = recorder, watcher

    def run(self) -> StudyResults:
        try:
            self._train_references()
            self._search()
            self._test()
        except (KeyboardInterrupt, StudyInterruptedError):
            self._recorder.interrupted()
            raise StudyInterruptedError from None
        self._recorder.finished()
        return self._recorder.results

    @property
    def _teacher_weights(self) -> Path | None:
        teacher = self._config.teacher
        if teacher is None:
            return None
        if teacher.checkpoint is not None:
            return Path(teacher.checkpoint)
        key = tasks.teacher_key(self._config.teacher_training(), self._plan.data)
        return Path(self._config.storage.path) / "teachers" / f"{key}.safetensors"

    def _train_references(self) -> None:
        """Train the teacher unless its weights exist, and beside it the student without a teacher."""
        weights, jobs = self._teacher_weights, list[Job]()
        teacher = Job("teacher")
        if weights is not None and not weights.exists():
            jobs.append(teacher)
        if self._config.search and not self._is_complete(Job("baseline")):
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
            if not self._is_complete(Job("trial")):
                self._watcher.phase("training the student")
                self._train([Job("trial")])
            return
        optuna_study = open_study(self._config)
        remaining = self._config.study.trials - finished_trials(optuna_study)
        if remaining > 0:
            self._watcher.phase(f"searching: {self._config.study.trials} trials")
            self._tune(
                {},
                TuneConfig(
                    search_alg=StudySearch(self._config, optuna_study),
                    scheduler=build_scheduler(self._config),
                    num_samples=remaining,
                    max_concurrent_trials=self._plan.concurrency,
                    time_budget_s=self._config.study.time_budget_s,
                    reuse_actors=True,
                    trial_dirname_creator=_trial_dirname,
                ),
            )

    def _test(self) -> None:
        """Read the test split, once for each of the winner, the baseline and the teacher."""
        winner = self._recorder.results.winner
        if winner is None:
            return
        self._watcher.phase("testing the winner, the baseline and the teacher")
        sample = {path: winner.params[path] for path in self._config.search}
        for job in (Job("trial", winner.number, sample), Job("baseline"), Job("teacher")):
            row = self._recorder.row(job)
            if row is None or row.state != "complete" or row.test_accuracy is not None:
                continue
            weights = self._teacher_weights if job.role == "teacher" else None
            weights = weights or tasks.best_weights(job.folder(self._config))
            accuracy = self._score(job, weights, "test")
            if accuracy is not None:
                self._recorder.tested(job, accuracy)
            if job.role == "trial":
                text = dump_yaml(
                    job.config(self._config).model_dump(mode="json", exclude_none=True)
                )
                self._recorder.keep_artifacts(job, weights, text)

    def _train(self, jobs: Sequence[Job]) -> None:
        space = {"job": tune.grid_search([job.to_dict() for job in jobs])}
        slots = max(1, self._plan.concurrency)
        self._tune(
            space, TuneConfig(max_concurrent_trials=slots, trial_dirname_creator=_trial_dirname)
        )

    def _tune(self, space: dict[str, Any], how: TuneConfig) -> None:
        _quieten_tune()
        trainable = tune.with_parameters(
            run_job, study=self._config, teacher_weights=self._teacher_weights
        )
        Tuner(
            tune.with_resources(trainable, resources_of(self._config)),
            param_space=space,
            tune_config=how,
            run_config=RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(self._config.folder / "ray"),
                callbacks=[TuneListener(self._recorder)],
                failure_config=FailureConfig(max_failures=self._config.study.max_failures),
                verbose=0,
            ),
        ).fit()
        if any(row.state == "running" for row in self._recorder.results.rows):
            raise StudyInterruptedError

    def _score(self, job: Job, weights: Path, split: Literal["val", "test"]) -> float | None:
        """Accuracy of a network on a split, measured where trials run."""
        config: Any = self._config if job.role == "teacher" else job.config(self._config)
        network = "teacher" if job.role == "teacher" else "student"
        need = worker_resources(self._config)
        task = ray.remote(tasks.score_weights).options(
            num_cpus=need["CPU"], num_gpus=need.get("GPU", 0)
        )
        device = tasks.default_device(config)
        score = ray.get(task.remote(config, network, weights, split, device))
        return None if score is None else score.accuracy

    def _is_complete(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state == "complete"

    def _must_be_complete(self, job: Job) -> None:
        row = self._recorder.row(job)
        if row is None or row.state != "complete":
            reason = "it did not end" if row is None else row.error or row.state
            raise input_error(
                ConfigError,
                job.role,
                f"training it failed ({reason})",
                f"see {job.folder(self._config)} and the MLflow run's error.txt",
            )


def _open_results(config: StudyConfig, tracker: Tracker) -> StudyResults:
    """The ledger of the study as it stands, with its MLflow parent run open."""
    path = config.folder / LEDGER
    if path.exists():
        results = load_results(path)
        tracker.resume_study(results.parent_run_id)
        return results
    parent = tracker.start_study(
        config.study.name,
        config.model_dump(mode="json", exclude_none=True),
        {},
        config_text=dump_config(config),
        note=_note(config),
    )
    results = StudyResults(
        name=config.study.name,
        trials_planned=config.study.trials,
        started_at=time.time(),
        tracking_uri=tracking_uri(config),
        experiment=config.tracking.experiment,
        parent_run_id=parent,
    )
    save_results(results, path)
    return results


def _note(config: StudyConfig) -> str:
    teacher = config.teacher.model if config.teacher is not None else "no teacher"
    searched = ", ".join(f"`{path}`" for path in config.search) or "nothing"
    return (
        f"Distilling **{teacher}** into **{config.student.model}** on `{config.data.source}` with "
        f"`{config.distill.method}`.\n\n{config.study.trials} trial(s), searching {searched}."
    )


def _check_same_study(config: StudyConfig) -> None:
    path = config.folder / RESOLVED
    if not path.exists():
        return
    old = parse_config(parse_yaml(path.read_text(), str(path)), where=str(path))
    keys = differing_keys(old, config)
    if keys:
        raise ConfigError(
            [
                Problem(
                    key,
                    f"must be as it was when the study {config.study.name!r} began",
                    "change it back, or give the study another name (study.name)",
                )
                for key in keys
            ]
        )


@contextmanager
def _only_driver(folder: Path) -> Generator[None]:
    lock = FileLock(folder / ".driver.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        rule, remedy = "another kd-study is at work on it", "wait for it, or choose another name"
        raise input_error(ConfigError, "study.name", rule, remedy, folder.name) from None
    try:
        yield
    finally:
        lock.release()


def _trial_dirname(trial: Trial) -> str:
    return trial.trial_id


def _quieten_tune() -> None:
    """Failures reach a person through the recorder, with their reason; Tune's own lines would be noise."""
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
