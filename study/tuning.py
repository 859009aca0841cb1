"""Jobs → Ray Tune → the recorder."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

from study.cluster import actor_resources as resources_of
from study.config import StudyConfig
from study.recorder import Recorder, TuneListener
from study.stopping import Stop
from study.trial import run_job


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


def _quieten_tune() -> None:
    """Failures reach a person through the recorder, with their reason; Tune's own lines would be noise."""
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
