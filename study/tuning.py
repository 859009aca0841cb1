"""Jobs → Ray Tune → the recorder."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial

from study.cluster import actor_resources as resources_of
from study.config import StudyConfig
from study.jobs import Job
from study.recorder import Recorder
from study.results import State
from study.stopping import Stop
from study.trial import run_job
from trainable.records import EPOCH, EPOCHS, EpochRecord

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What Ray puts into tracebacks for terminals."""
_LOOK_S = 1.0
"""Between two looks at what trials leave in their folders."""


def run_tune(
    config: StudyConfig,
    teacher_weights: Path | None,
    space: dict[str, Any],
    how: TuneConfig,
    stop: Stop,
    recorder: Recorder,
) -> None:
    """Run the jobs that `space` or the searcher gives until they end, or `stop` says so.

    Trials that `stop` ends get no event: what becomes of them is the caller's.
    """
    _quieten_tune()
    trainable = tune.with_parameters(run_job, study=config, teacher_weights=teacher_weights)
    tuner = Tuner(
        tune.with_resources(trainable, resources_of(config)),
        param_space=space,
        tune_config=how,
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=str(config.folder / "ray"),
            callbacks=[TuneListener(recorder)],
            failure_config=FailureConfig(max_failures=config.study.max_failures),
            stop=stop,
            verbose=0,
        ),
    )
    with stop.on_signals():
        tuner.fit()


class TuneListener(Callback):
    """Tune's events → the recorder's."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._ended: list[tuple[Job, State, str | None]] = []
        self._looked = time.monotonic()

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
        """Record the trials that ended in this step, and see now and then what the others tell.

        Not sooner: Tune takes an error in `on_trial_complete` for a failure of the trial, and goes on.
        """
        while self._ended:
            self._recorder.ended(*self._ended.pop(0))
        if time.monotonic() - self._looked >= _LOOK_S:
            self._recorder.look_around()
            self._looked = time.monotonic()


def _job(trial: Trial) -> Job:
    return Job.from_dict(trial.config["job"])


def _quieten_tune() -> None:
    """Failures reach a person through the recorder, with their reason; Tune's own lines would be noise."""
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
