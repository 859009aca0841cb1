"""Where the events of a study become results: the ledger, the MLflow runs and what a person sees.

The only place that joins the three, so that they cannot tell different stories.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from study import telling
from study.books import HURRY_S, PATIENCE_S, Books, Outlet
from study.config import StudyConfig, dump_config
from study.curves import add_epoch, read_curve
from study.diagnosed import diagnosed, diagnosed_study
from study.entries import Entry
from study.folder import note_of
from study.jobs import Job, decomposition_params
from study.mirror import Mirror
from study.objectives import Values, broken, costs_in, objective
from study.results import Key, State, StudyResults, TrialRow, Value
from trainable import records, tasks
from trainable.records import EpochRecord

_NONE_BESIDE: Mapping[str, Mapping[int, State]] = {}

_LOG = logging.getLogger(__name__)


class Watcher(Protocol):
    """Shows a person what happens."""

    def phase(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def trial_started(self, row: TrialRow) -> None: ...
    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None: ...
    def trial_ended(self, row: TrialRow) -> None: ...


class Recorder:
    """Enters what happens in the books of one study, tells MLflow by its `outlet`, and tells the watcher."""

    def __init__(
        self,
        config: StudyConfig,
        results: StudyResults,
        outlet: Outlet,
        watcher: Watcher,
        mirror: Mirror,
    ) -> None:
        self._config, self._watcher = config, watcher
        self._books = Books(config, results, outlet, mirror)
        self._started: dict[Key, float] = {}
        self._tested: set[Key] = set()

    @property
    def results(self) -> StudyResults:
        """What is known by now."""
        return self._books.results

    @property
    def mirror(self) -> Mirror:
        """Where the study's files are kept beside its folder."""
        return self._books.mirror

    def row(self, job: Job) -> TrialRow | None:
        """What is known of a job."""
        return self.results.row(job.role, job.number, job.of)

    def take_up(
        self, ended: Mapping[int, State], beside: Mapping[str, Mapping[int, State]] = _NONE_BESIDE
    ) -> None:
        """Begin, begin to have more trials, or put right what a driver that died left half told.

        The curve is told first of an epoch, and Optuna of the end of a trial; `ended` are those that
        Optuna knows to have ended, by number, and `beside` those of each baseline that is searched.
        """
        known = {"": ended, **beside}
        results, told = self.results, telling.study_goes_on(_now_ms())
        trials = self._config.study.trials
        if results.trials_planned != trials:
            results = results.extended_to(trials)
            told += telling.study_extended(note_of(self._config), dump_config(self._config))
        self._books.save(results, told)
        for row in self.results.rows:
            if row.has_ended:
                continue
            job = Job.of_row(row, self._config)
            for record in read_curve(Path(row.directory)):
                if record.epoch > row.epochs:
                    self._take_in(job, record)
            if job.is_searched and (state := known.get(job.of, {}).get(job.number)) is not None:
                error = "the driver died before it wrote down why" if state == "failed" else None
                self.ended(job, state, error)

    def seconds_searched(self) -> float:
        """Wall time since the search first began, without the time between two drivers."""
        now = self._books.seconds()
        if self.results.search_began is None:
            self._books.save(self.results.model_copy(update={"search_began": now}))
        return now - (self.results.search_began or 0.0)

    def started(self, job: Job) -> None:
        """A job begins, or begins again."""
        known = self.row(job)
        self._started[job.key] = time.monotonic() - (known.seconds if known else 0.0)
        if known is None:
            row = TrialRow(
                role=job.role,
                number=job.number,
                of=job.of,
                params=job.shown_params(),
                until=job.until,
                directory=str(job.folder(self._config)),
            )
            params = trial_params(self._config, job)
            told = telling.trial_begins(self.results, row, params, _now_ms())
        else:
            update = {"state": "running", "until": job.until, "error": None, "findings": None}
            row = known.model_copy(update=update)
            told = telling.trial_goes_on(row, _now_ms())
        self._put(row, told)
        Path(row.directory).mkdir(parents=True, exist_ok=True)
        self._books.keep()
        self._watcher.trial_started(row)

    def begins_again(self, job: Job, why: str, reason: str) -> None:
        """A job failed, and is to go on from its last checkpoint."""
        if self.row(job) is None:  # its process died as it began
            self.started(job)
        text = f"{self._known(job).label} goes on from its last checkpoint: {why}"
        _LOG.warning("%s (%s)", text, reason)
        self._watcher.message(text)

    def reported(self, job: Job, record: EpochRecord, epochs: int) -> None:
        """An epoch of a job ended."""
        row = self._known(job)
        if record.epoch <= row.epochs:
            return  # replayed after a restart from an older checkpoint
        add_epoch(Path(row.directory), record)
        row = self._take_in(job, record)
        if self._config.storage.optuna is not None:
            self._books.keep()  # that database may be told next that the trial has ended
        self._watcher.epoch(row, record, epochs)

    def look_around(self) -> None:
        """See which running trials found no memory beside others, and began again; keep what is new."""
        for row in self.results.rows:
            if row.state == "running":
                self._take_in_notes(row)
        self._books.keep_soon()

    def keep(self) -> None:
        """Returns when a driver on another machine would find all that was told until now."""
        self._books.keep()

    def ended(self, job: Job, state: State, error: str | None = None) -> None:
        """A job is over, one whose process died as it began, too; with a screening that is not complete, its trial."""
        if self.row(job) is None:
            self.started(job)
        for name in (records.NOTES, records.STATISTICS):
            self.mirror.bring(job.folder(self._config) / name)
        self._take_in_notes(self._known(job))
        row = self._known(job)
        update = {
            "state": state,
            "violates": broken(self._config.study.constraints.bounds, _judged(row, state)),
            "error": None if error is None else telling.reason_of(error),
            "seconds": self._elapsed(job),
            "findings": diagnosed(self._config, job, row),
        }
        row = row.model_copy(update=update)
        statistics = Path(row.directory) / records.STATISTICS
        told = telling.trial_ended(
            row, error, statistics if statistics.is_file() else None, _now_ms()
        )
        if job.role == "trial" or job.of:
            told += telling.study_advances(self.results.with_row(row), self._gpus, _now_ms())
        self._put(row, told)
        self._watcher.trial_ended(row)
        if job.role == "screening" and state != "complete":
            self.ended(replace(job, role="trial"), state, error)

    def waits(self, job: Job) -> None:
        """A piece of a trial has ended, and it is to wait for its turn."""
        update = {"state": "waiting", "seconds": self._elapsed(job)}
        row = self._known(job).model_copy(update=update)
        self._started.pop(job.key, None)
        self._put(row, telling.trial_waits(row))
        self._watcher.trial_ended(row)

    def kept_back(self, job: Job, values: Values) -> None:
        """A trial that breaks a constraint by these values, whatever it would learn, is stopped before it begins."""
        known = self.row(job)
        if known is not None and known.violates:
            return  # by a driver that died before Optuna was told
        if known is None:
            self.started(job)
        row = self._known(job).model_copy(update={"costs": dict(values)})
        metrics = {objective(name).metric: value for name, value in values.items()}
        self._put(row, telling.metrics_measured(row, metrics, _now_ms()))
        self.ended(job, "pruned")

    def tested(self, job: Job, metrics: Mapping[str, float]) -> None:
        """The test split was read, once, for a job's best student."""
        accuracy, eer = metrics.get(records.TEST_ACCURACY), metrics.get(records.TEST_EER)
        row = self._known(job).model_copy(update={"test_accuracy": accuracy, "test_eer": eer})
        self._put(row, telling.metrics_measured(row, metrics, _now_ms()))
        self._tested.add(job.key)

    def is_tested(self, job: Job) -> bool:
        """Whether this driver has had the test split read for it."""
        return job.key in self._tested

    def scored(self, job: Job, metrics: Mapping[str, float]) -> None:
        """A network that was not trained here was validated, as far as there are pictures for it."""
        accuracy, eer = metrics.get(records.VAL_ACCURACY), metrics.get(records.VAL_EER)
        row = self._known(job).model_copy(update={"value": accuracy, "val_eer": eer})
        best = {} if accuracy is None else {records.BEST_VAL_ACCURACY: accuracy}
        self._put(row, telling.metrics_measured(row, {**metrics, **best}, _now_ms()))

    def keep_artifacts(self, job: Job, weights: Path, config_text: str) -> None:
        """Keep a job's weights and config with its MLflow run."""
        self.mirror.bring(weights)
        self._books.save(self.results, telling.trial_kept(self._known(job), weights, config_text))

    def keep_report(self, page: Path) -> None:
        """Keep the study's report with its parent run."""
        self._books.save(self.results, telling.study_reported(page))

    def finished(self, val_pictures: int, test_pictures: int) -> None:
        """The study is over; its parent run gets the winner's figures, and what is wrong. Then `settle`.

        The pictures are those of the splits on which the networks were validated and tested.
        """
        update = {
            "finished": True,
            "findings": diagnosed_study(self._config, self.results, test_pictures),
            "val_pictures": val_pictures,
            "test_pictures": test_pictures,
        }
        results = self.results.model_copy(update=update)
        state = "complete" if results.winner is not None else "failed"
        told = telling.front_found(results) + telling.study_ends(state, results, _now_ms())
        self._books.save(results, told)

    def settle(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for MLflow to take the rest, and say it if it does not; Ctrl-C ends the waiting."""
        self._books.settle(self._watcher, patience_s)

    def stopped(self, state: telling.StudyState) -> None:
        """The driver stops before the study's end; what runs can be resumed."""
        self._books.save(self.results, telling.study_ends(state, self.results, _now_ms()))
        self.settle(HURRY_S if state == "interrupted" else PATIENCE_S)

    @property
    def _gpus(self) -> float:
        """Of one trial."""
        return (self._config.resources.gpus or 0.0) * self._config.train.workers

    def _take_in(self, job: Job, record: EpochRecord) -> TrialRow:
        """An epoch that the curve has becomes part of the ledger and of the run."""
        row = self._known(job)
        accuracy = record.metrics.get(records.VAL_ACCURACY)
        update: dict[str, Any] = {"epochs": record.epoch, "seconds": self._elapsed(job)}
        update["costs"] = row.costs | costs_in(record.metrics)
        if accuracy is None:  # the last epoch's student is the one that is kept
            update["val_eer"] = record.metrics.get(records.VAL_EER)
        elif row.value is None or accuracy > row.value:
            update |= {"value": accuracy, "best_epoch": record.epoch}
            update["val_eer"] = record.metrics.get(records.VAL_EER)
        row = row.model_copy(update=update)
        self._put(row, telling.epoch_ended(row, record))
        return row

    def _take_in_notes(self, row: TrialRow) -> None:
        notes = tasks.out_of_memory_notes(Path(row.directory))
        if len(notes) <= len(row.out_of_memory):
            return
        row = row.model_copy(update={"out_of_memory": notes})
        self._put(row, telling.trial_began_again(row))
        text = (
            f"{row.label} ran out of memory beside others and goes on once it is alone on its GPU"
        )
        _LOG.warning("%s: %s", text, notes[-1])
        self._watcher.message(text)

    def _known(self, job: Job) -> TrialRow:
        row = self.row(job)
        if row is None:
            raise RuntimeError(f"{job.label} reported before it began")
        return row

    def _elapsed(self, job: Job) -> float:
        """Seconds of a job under all drivers."""
        started = self._started.get(job.key)
        return self._known(job).seconds if started is None else time.monotonic() - started

    def _put(self, row: TrialRow, told: list[Entry]) -> None:
        self._books.save(self.results.with_row(row), told)


def trial_params(config: StudyConfig, job: Job) -> dict[str, Value]:
    """The whole config of a job as flat params, with the decomposition also as k and n."""
    if job.role == "teacher" and config.teacher is not None and config.teacher.checkpoint:
        return telling.flatten(
            config.model_dump(mode="json", exclude_none=True, include={"data", "teacher"})
        )
    trial = job.config(config)
    flat = telling.flatten(trial.model_dump(mode="json", exclude_none=True))
    if trial.distill.method == "stablekd":
        flat |= decomposition_params(trial.distill.decomposition)
    return flat


def _judged(row: TrialRow, state: State) -> Values:
    """What a trial that ends so is held to: of one that was stopped, only what no more epochs would have changed."""
    if not row.is_searched:
        return {}
    if state == "complete":
        return row.values
    return {name: value for name, value in row.costs.items() if name == "parameters"}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
