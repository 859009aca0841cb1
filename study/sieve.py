"""Trials that break a constraint whatever they would learn, and so are not trained."""

from __future__ import annotations

from study.config import StudyConfig
from study.jobs import Job
from study.networks import student_key
from study.objectives import Values, broken
from study.recorder import Recorder
from trainable import tasks
from trainable.config import TrialConfig
from trainable.tasks import DataSummary


class Sieve:
    """Keeps back the trials whose students have too many parameters, and records them as stopped."""

    def __init__(self, config: StudyConfig, data: DataSummary, recorder: Recorder) -> None:
        self._config, self._data, self._recorder = config, data, recorder
        self._counts: dict[str, int] = {}

    def __call__(self, job: Job) -> Values:
        """What is known of a trial that is kept back; nothing of one that is to be trained."""
        bounds = self._config.study.constraints.bounds
        if "parameters" not in bounds:
            return {}
        values = {"parameters": float(self._parameters(job.config(self._config)))}
        if not broken(bounds, values):
            return {}
        self._recorder.kept_back(job, values)
        return values

    def _parameters(self, trial: TrialConfig) -> int:
        key = student_key(trial)
        if key not in self._counts:
            self._counts[key] = tasks.parameters_in_use(trial, self._data)
        return self._counts[key]
