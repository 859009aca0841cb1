"""Jobs → Ray Tune → the recorder."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
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
from trainable.errors import KdStudyError
from trainable.records import EPOCH, EPOCHS, EpochRecord

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What Ray puts into tracebacks for terminals."""
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
        self._ended: list[tuple[Job, State, str | None]] = []
        self._scored: list[tuple[Job, dict[str, float]]] = []
        self._unscored: list[ScoringError] = []
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
            self._recorder.started(_job(trial))

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
            self._scored.append((job, result[SCORES]))
        else:
            self._recorder.reported(job, EpochRecord.from_result(result), result[EPOCHS])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Ended by itself, or stopped by the scheduler."""
        if _job(trial).split is not None:
            return
        result: Mapping[str, Any] = trial.last_result or {}
        if EPOCH not in result:
            self._ended.append((_job(trial), "failed", "it ended without a report"))
            return
        whole = result[EPOCH] >= result[EPOCHS]
        self._ended.append((_job(trial), "complete" if whole else "pruned", None))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Failed: it begins again, or that was it."""
        path = trial.error_file
        text = Path(path).read_text(errors="replace") if path else "unknown error"
        text, job = _COLOURS.sub("", text), _job(trial)
        if (why := self._retries.why_again(job, _error_of(trial))) is not None:
            self._recorder.begins_again(job, why, reason_of(text))
            self._search.begins_again(job)
            return
        self._search.failed(job)
        if job.split is None:
            self._ended.append((job, "failed", text))
        else:
            said = f"scoring the {job.role} on the {job.split} split failed: {reason_of(text)}"
            self._unscored.append(ScoringError(said))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Record the trials that ended in this step, and see now and then what the others tell.

        Not sooner: Tune takes an error in `on_trial_complete` for a failure of the trial, and goes on.
        """
        while self._ended:
            self._recorder.ended(*self._ended.pop(0))
        while self._scored:
            job, metrics = self._scored.pop(0)
            if job.split == "test":
                self._recorder.tested(job, metrics)
            else:
                self._recorder.scored(job, metrics)
                self._recorder.ended(job, "complete")
        if self._unscored:
            raise self._unscored.pop(0)
        if time.monotonic() - self._looked >= _LOOK_S:
            self._recorder.look_around()
            self._looked = time.monotonic()


def _job(trial: Trial) -> Job:
    return Job.from_dict(trial.config["job"])


def _error_of(trial: Trial) -> Exception | None:
    path = trial.pickled_error_file
    return cloudpickle.loads(Path(path).read_bytes()) if path else None


def _quieten_tune() -> None:
    """Failures reach a person through the recorder, with their reason; Tune's own lines would be noise."""
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
