"""Where the events of a study become results: the ledger, the MLflow runs and what a person sees.

The only place that joins the three, so that they cannot tell different stories.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ray.tune import Callback
from ray.tune.experiment import Trial

from study.config import StudyConfig
from study.curves import add_epoch
from study.jobs import Job, decomposition_params
from study.results import LEDGER, Role, State, StudyResults, TrialRow, Value, save_results
from study.tracking import StudyState, Tracker, flatten, reason_of
from trainable import records
from trainable.records import EPOCH, EPOCHS, EpochRecord

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What Ray puts into tracebacks for terminals."""


class Watcher(Protocol):
    """Shows a person what happens."""

    def phase(self, text: str) -> None: ...
    def trial_started(self, row: TrialRow) -> None: ...
    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None: ...
    def trial_ended(self, row: TrialRow) -> None: ...


class Recorder:
    """Keeps the ledger of one study, writes its MLflow runs, and tells the watcher."""

    def __init__(
        self, config: StudyConfig, results: StudyResults, tracker: Tracker, watcher: Watcher
    ) -> None:
        self._config, self._tracker, self._watcher = config, tracker, watcher
        self.results = results
        self._started: dict[tuple[Role, int], float] = {}
        self._orphans: dict[tuple[str, int], str] = {}
        self._before = results.seconds
        self._opened = time.monotonic()

    def row(self, job: Job) -> TrialRow | None:
        """What is known of a job."""
        found = [r for r in self.results.rows if (r.role, r.number) == (job.role, job.number)]
        return found[0] if found else None

    def take_up(self, ended: Mapping[int, State]) -> None:
        """Put right what a driver that died left half told.

        Optuna is told first, then the ledger, then MLflow; `ended` are the trials that Optuna knows to
        have ended, by number.
        """
        for number, state in ended.items():
            row = self.row(Job("trial", number))
            if row is not None and row.state == "running":
                error = "the driver died before it wrote down why" if state == "failed" else None
                self.ended(Job("trial", number), state, error)
        for run in self._tracker.leftover(self.results.parent_run_id):
            rows = [row for row in self.results.rows if row.run_id == run.run_id]
            if not rows:
                self._orphans[run.role, run.number] = run.run_id
            elif rows[0].state != "running":
                self._tracker.end_trial(run.run_id, rows[0].state, rows[0].error)

    def seconds_searched(self) -> float:
        """Wall time since the search first began, without the time between two drivers."""
        now = self._seconds()
        if self.results.search_began is None:
            self._save(self.results.model_copy(update={"search_began": now}))
        return now - (self.results.search_began or 0.0)

    def started(self, job: Job) -> None:
        """A job begins, or begins again."""
        known = self.row(job)
        self._started[job.role, job.number] = time.monotonic() - (known.seconds if known else 0.0)
        if known is None:
            known = TrialRow(
                role=job.role,
                number=job.number,
                params=job.shown_params(),
                directory=str(job.folder(self._config)),
                run_id=self._orphans.pop((job.role, job.number), None) or self._open_run(job),
            )
        else:
            self._tracker.reopen_trial(_run_of(known))
        row = known.model_copy(update={"state": "running", "error": None})
        self._put(row)
        self._watcher.trial_started(row)

    def reported(self, job: Job, record: EpochRecord, epochs: int) -> None:
        """An epoch of a job ended."""
        row = self._known(job)
        if record.epoch <= row.epochs:
            return  # replayed after a restart from an older checkpoint
        add_epoch(Path(row.directory), record)
        self._tracker.log_epoch(_run_of(row), record)
        accuracy = record.metrics.get(records.VAL_ACCURACY)
        update: dict[str, Any] = {"epochs": record.epoch, "seconds": self._elapsed(job)}
        if accuracy is None:  # the last epoch's student is the one that is kept
            update["val_eer"] = record.metrics.get(records.VAL_EER)
        elif row.value is None or accuracy > row.value:
            update |= {"value": accuracy, "best_epoch": record.epoch}
            update["val_eer"] = record.metrics.get(records.VAL_EER)
        row = row.model_copy(update=update)
        self._put(row)
        self._watcher.epoch(row, record, epochs)

    def ended(self, job: Job, state: State, error: str | None = None) -> None:
        """A job is over."""
        row = self._known(job)
        brief = None if error is None else reason_of(error)
        update = {"state": state, "error": brief, "seconds": self._elapsed(job)}
        row = row.model_copy(update=update)
        self._put(row)
        self._tracker.end_trial(_run_of(row), state, error)
        if job.role == "trial":
            self._log_best()
        self._watcher.trial_ended(row)

    def tested(self, job: Job, metrics: Mapping[str, float]) -> None:
        """The test split was read, once, for a job's best student."""
        accuracy, eer = metrics.get(records.TEST_ACCURACY), metrics.get(records.TEST_EER)
        row = self._known(job).model_copy(update={"test_accuracy": accuracy, "test_eer": eer})
        self._tracker.log_metrics(_run_of(row), metrics, row.epochs)
        self._put(row)

    def scored(self, job: Job, metrics: Mapping[str, float]) -> None:
        """A network that was not trained here was validated, as far as there are pictures for it."""
        accuracy, eer = metrics.get(records.VAL_ACCURACY), metrics.get(records.VAL_EER)
        row = self._known(job).model_copy(update={"value": accuracy, "val_eer": eer})
        self._put(row)
        self._tracker.log_metrics(_run_of(row), metrics, 0)

    def keep_artifacts(self, job: Job, weights: Path, config_text: str) -> None:
        """Keep a job's weights and config with its MLflow run."""
        run_id = _run_of(self._known(job))
        self._tracker.log_artifact(run_id, weights, "checkpoint")
        self._tracker.log_text(run_id, config_text, "config.yaml")

    def finished(self) -> None:
        """The study is over; its parent run gets the winner's figures."""
        winner = self.results.winner
        self._save(self.results.model_copy(update={"finished": True}))
        metrics: dict[str, float] = {}
        if winner is not None and winner.test_accuracy is not None:
            metrics[records.BEST_TEST_ACCURACY] = winner.test_accuracy
        self._tracker.end_study(
            self.results.parent_run_id, "complete" if winner is not None else "failed", metrics
        )

    def stopped(self, state: StudyState) -> None:
        """The driver stops before the study's end; what runs can be resumed."""
        self._save(self.results)
        self._tracker.end_study(self.results.parent_run_id, state, {})

    def _open_run(self, job: Job) -> str:
        results, params = self.results, trial_params(self._config, job)
        return self._tracker.start_trial(
            results.parent_run_id, results.name, job.role, job.number, params
        )

    def _log_best(self) -> None:
        winner = self.results.winner
        if winner is not None and winner.value is not None:
            ended = sum(row.state != "running" for row in self.results.of("trial"))
            self._tracker.update_best(self.results.parent_run_id, winner.value, ended)

    def _known(self, job: Job) -> TrialRow:
        row = self.row(job)
        if row is None:
            raise RuntimeError(f"{job.role} {job.number} reported before it began")
        return row

    def _elapsed(self, job: Job) -> float:
        """Seconds of a job under all drivers."""
        started = self._started.get((job.role, job.number))
        return self._known(job).seconds if started is None else time.monotonic() - started

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._opened

    def _put(self, row: TrialRow) -> None:
        self._save(self.results.with_row(row))

    def _save(self, results: StudyResults) -> None:
        self.results = results.model_copy(update={"seconds": self._seconds()})
        save_results(self.results, self._config.folder / LEDGER)


class TuneListener(Callback):
    """Tune's events → the recorder's."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._ended: list[tuple[Job, State, str | None]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that is not used here: the recorder stays behind."""
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Also called when a failed trial starts again."""
        self._recorder.started(_job(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """An epoch ended."""
        self._recorder.reported(_job(trial), EpochRecord.from_result(result), result[EPOCHS])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Ended by itself, or stopped by the scheduler."""
        result: Mapping[str, Any] = trial.last_result or {}
        if EPOCH not in result:
            self._ended.append((_job(trial), "failed", "it ended without a report"))
            return
        whole = result[EPOCH] >= result[EPOCHS]
        self._ended.append((_job(trial), "complete" if whole else "pruned", None))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Failed for good."""
        path = trial.error_file
        text = Path(path).read_text(errors="replace") if path else "unknown error"
        self._ended.append((_job(trial), "failed", _COLOURS.sub("", text)))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Record the trials that ended in this step.

        Not sooner: Tune takes an error in `on_trial_complete` for a failure of the trial, and goes on.
        """
        while self._ended:
            self._recorder.ended(*self._ended.pop(0))


def trial_params(config: StudyConfig, job: Job) -> dict[str, Value]:
    """The whole config of a job as flat params, with the decomposition also as k and n."""
    if job.role == "teacher" and config.teacher is not None and config.teacher.checkpoint:
        return flatten(
            config.model_dump(mode="json", exclude_none=True, include={"data", "teacher"})
        )
    trial = job.config(config)
    flat = flatten(trial.model_dump(mode="json", exclude_none=True))
    if trial.distill.method == "stablekd":
        flat |= decomposition_params(trial.distill.decomposition)
    return flat


def _job(trial: Trial) -> Job:
    return Job.from_dict(trial.config["job"])


def _run_of(row: TrialRow) -> str:
    if row.run_id is None:
        raise RuntimeError(f"{row.label} has no MLflow run")
    return row.run_id
