"""An exported student as a version in MLflow's model registry, in the store that the study was tracked in."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from study.config import StudyConfig
from study.export import CARD, Export
from study.folder import connect, tracking_uri
from study.secrets import without_passwords
from study.store import refused_in_words
from study.telling import TAG_STUDY, TAG_TRIAL
from study.tracking import Registration, Tracker
from trainable.errors import InputError, input_error

_DESCRIPTION_CHARACTERS = 5000
"""What MLflow's databases take."""


def register(done: Export, name: str) -> str:
    """Add a version to the registered model `name`, and have its alias `winner` lead there; the version's URI.

    Raises:
        InputError: The store does not answer, or the trial's run is not known there.
        ExportError: The store has refused the model.
    """
    config, row = done.choice.config, done.choice.row
    store, uri = connect(config), tracking_uri(config)
    if row.run_id is None:
        rule = f"must hold the run of {row.label}, which was never sent"
        remedy = f"`kd-study resume {done.choice.results.name}` sends what is left"
        raise input_error(InputError, "tracking.uri", rule, remedy, without_passwords(uri))
    with tempfile.TemporaryDirectory() as temporary, refused_in_words(uri, "the model"):
        folder = Path(temporary) / "model"
        _write_model(done, folder)
        model = Registration(
            name=name,
            run_id=row.run_id,
            folder=folder,
            place=f"models/{time.time_ns() // 1_000_000}",
            tags=_tags(done, config),
            description=_shortened(done.card),
        )
        return Tracker(store).register(model)


def _write_model(done: Export, folder: Path) -> None:
    """As MLflow keeps models: the program, and the code that runs it."""
    # Here, for only who registers needs them: they import pandas and much else.
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    facts, shown = done.facts, done.facts.preprocessing
    pictures = TensorSpec(np.dtype(np.uint8), (-1, shown.channels, *shown.size))
    logits = TensorSpec(np.dtype(np.float32), (-1, len(facts.classes)))
    torch_version = facts.versions["torch"].partition("+")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an example of its input would be a picture
        pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"program": str(done.program)},
            signature=ModelSignature(Schema([pictures]), Schema([logits])),
            pip_requirements=[f"torch>={torch_version}", "numpy"],
            metadata={"classes": list(facts.classes)},
        )


def _tags(done: Export, config: StudyConfig) -> dict[str, str]:
    row, trial, teacher = done.choice.row, done.choice.trial, done.choice.teacher
    known = {
        TAG_STUDY: config.study.name,
        TAG_TRIAL: done.choice.searched.number,
        "kd.student": trial.student.model,
        "kd.teacher": None if teacher is None else teacher.model,
        "kd.method": trial.distill.method,
        "kd.data": trial.data.source,
        "kd.val_accuracy": row.value,
        "kd.test_accuracy": row.test_accuracy,
        "kd.parameters": done.facts.parameters,
        "kd.largest_logit_difference": done.facts.differences["program"],
        **row.params,
    }
    return {key: str(value) for key, value in known.items() if value is not None}


def _shortened(card: str) -> str:
    if len(card) <= _DESCRIPTION_CHARACTERS:
        return card
    rest = f"\n\n… the rest is in {CARD}."
    return card[: _DESCRIPTION_CHARACTERS - len(rest)].rpartition("\n")[0] + rest
