"""Jobs → Ray Tune → the recorder."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial

from study.cluster import actor_resources as resources_of
from study.config import StudyConfig
from study.jobs import Job
from study.recorder import Recorder
from study.results import State
from study.retries import Retries
from study.search import StudySearch
from study.stopping import Stop
from study.telling import reason_of
from study.trial import SCORES, run_job
from trainable.errors import KdStudyError, StorageError
from trainable.records import EPOCH, EPOCHS, EpochRecord

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What Ray puts into tracebacks for terminals."""
_STORAGE = re.compile(rf"^{re.escape(StorageError.__module__)}\.StorageError: (.+)$", re.MULTILINE)
"""How a traceback names it, and what it says."""
_LOOK_S = 1.0
"""Between two looks at what trials leave in their folders."""


def run_tune(
    config: StudyConfig,
    teacher_weights: Path | None,
    search: StudySearch,
    how: TuneConfig,
    stop: Stop,
    recorder: Recorder,
) -> None:
    """Run the jobs that `search` gives until they end, or `stop` says so; `how` is for Tune, without `search`.

    Trials that `stop` ends get no event: what becomes of them is the caller's. Raises ScoringError if a
    network could not be scored.
    """
    _quieten_tune()
    storage, name = config.folder / "ray", uuid.uuid4().hex[:8]
    # What failed begins again by `Retries`, and not in Tune, which knows preempted nodes, but no lost ones.
    os.environ["RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE"] = "1"
    retries = Retries(config.study.max_failures, config.train.workers)
    trainable = tune.with_parameters(run_job, study=config, teacher_weights=teacher_weights)
    tuner = Tuner(
        tune.with_resources(trainable, resources_of(config)),
        tune_config=how,
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            callbacks=[TuneListener(recorder, search, retries)],
            failure_config=FailureConfig(max_failures=0),
            stop=stop,
            verbose=0,
        ),
    )
    try:
        with stop.on_signals():
            tuner.fit()
    finally:  # a folder a trial and what Tune knows of them, for a restore that is not used here
        shutil.rmtree(storage / name, ignore_errors=True)


class ScoringError(KdStudyError):
    """A network that was trained could not be scored."""


class TuneListener(Callback):
    """Tune's events → the recorder's."""

    def __init__(self, recorder: Recorder, search: StudySearch, retries: Retries) -> None:
        self._recorder, self._search, self._retries = recorder, search, retries
        self._events: list[Callable[[], None]] = []
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that is not used here: the recorder stays behind."""
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Also of a job that failed and begins again."""
        self._retries.begins(_job(trial))
        if _job(trial).split is None:
            self._events.append(partial(self._recorder.started, _job(trial)))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """An epoch ended, or a network was scored."""
        job = _job(trial)
        if job.split is not None:
            self._events.append(partial(self._scored, job, result[SCORES]))
            return
        record = EpochRecord.from_result(result)
        self._events.append(partial(self._recorder.reported, job, record, result[EPOCHS]))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Ended by itself, for good or to wait, or stopped by the scheduler."""
        if _job(trial).split is not None:
            return
        result: Mapping[str, Any] = trial.last_result or {}
        if EPOCH not in result:
            self._end(_job(trial), "failed", "it ended without a report")
            return
        if result[EPOCH] >= result[EPOCHS]:
            self._end(_job(trial), "complete", None)
        elif result[EPOCH] == _job(trial).until:
            self._events.append(partial(self._recorder.waits, _job(trial)))
        else:
            self._end(_job(trial), "pruned", None)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Failed: it begins again, or that was it; of a disk that is full or away, the study ends and not the trial."""
        path = trial.error_file
        text = Path(path).read_text(errors="replace") if path else "unknown error"
        text, job = _COLOURS.sub("", text), _job(trial)
        if found := _STORAGE.search(text):
            self._events.append(partial(_fail, StorageError(found.group(1))))
            return
        if (why := self._retries.why_again(job, _error_of(trial))) is not None:
            self._events.append(partial(self._recorder.begins_again, job, why, reason_of(text)))
            self._search.begins_again(job)
            return
        self._search.failed(job)
        if job.split is None:
            self._end(job, "failed", text)
        else:
            said = f"scoring the {job.role} on the {job.split} split failed: {reason_of(text)}"
            self._events.append(partial(_fail, ScoringError(said)))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Record what happened in this step, and see now and then what running trials tell.

        Not sooner: Tune takes an error in the other calls for a failure of the trial, and goes on.
        """
        while self._events:
            self._events.pop(0)()
        if time.monotonic() - self._looked >= _LOOK_S:
            self._recorder.look_around()
            self._looked = time.monotonic()

    def _end(self, job: Job, state: State, error: str | None) -> None:
        self._events.append(partial(self._recorder.ended, job, state, error))

    def _scored(self, job: Job, metrics: dict[str, float]) -> None:
        if job.split == "test":
            self._recorder.tested(job, metrics)
        else:
            self._recorder.scored(job, metrics)
            self._recorder.ended(job, "complete")


def _fail(error: KdStudyError) -> None:
    raise error


def _job(trial: Trial) -> Job:
    return Job.from_dict(trial.config["job"])


def _error_of(trial: Trial) -> Exception | None:
    path = trial.pickled_error_file
    return cloudpickle.loads(Path(path).read_bytes()) if path else None


def _quieten_tune() -> None:
    """Failures reach a person through the recorder, with their reason; Tune's own lines would be noise."""
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
