"""What MLflow is told of a study's events: one parent run a study, one child run a trial.

Pure functions from events to entries. The tags and their values are an interface: people filter by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal, cast

from study.entries import (
    STUDY_RUN,
    Entry,
    File,
    Opening,
    Params,
    Points,
    Status,
    Tags,
    Text,
    Untagging,
)
from study.replicates import test_accuracies
from study.results import State, StudyResults, TrialRow, Value
from study.secrets import without_passwords
from trainable import errors, records
from trainable.records import EpochRecord, Finding

StudyState = Literal["complete", "failed", "interrupted"]

TAG_STUDY = "kd.study"
TAG_STUDY_ID = "kd.study_id"
TAG_TRIAL = "kd.trial"
TAG_ROLE = "kd.role"
TAG_OF = "kd.of"
TAG_STATE = "kd.state"
TAG_HEALTH = "kd.health"
TAG_ERROR = "kd.error"
TAG_OUT_OF_MEMORY = "kd.out_of_memory"
TAG_FRONT = "kd.front"
TAG_VIOLATES = "kd.violates"
_TAG_PARENT = "mlflow.parentRunId"
_TAG_NOTE = "mlflow.note.content"

HEALTHY, UNKNOWN = "healthy", "unknown"
"""Of `kd.health`, where it names no findings; unknown is what ended before its first epoch, and a study all of
whose trials did."""

_STATUS: dict[State | StudyState, Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]] = {
    "running": "RUNNING",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""MLflow's status for each state: KILLED is what was stopped on purpose before its end."""

_PARAM_CHARACTERS = 6000
_REASON_CHARACTERS = 500


def study_opening(name: str, study_id: str, note: str, time_ms: int) -> Opening:
    """The parent run; `note` (markdown) is the description on its page."""
    own = {TAG_STUDY_ID: study_id}
    tags = {**own, TAG_STUDY: name, TAG_STATE: "running", _TAG_NOTE: note}
    return Opening(run=STUDY_RUN, name=name, tags=tags, found_by=own, time_ms=time_ms)


def study_begins(config: Mapping[str, object], config_text: str) -> list[Entry]:
    """`config` (nested) becomes flat params, `config_text` the artifact `config.yaml`: without passwords."""
    return [
        _params(STUDY_RUN, flatten(config)),
        Text(run=STUDY_RUN, name="config.yaml", text=without_passwords(config_text)),
    ]


def study_extended(note: str, config_text: str) -> list[Entry]:
    """It is to have more trials. Its params stay what they were when it began: MLflow's never change."""
    return [
        Tags(run=STUDY_RUN, tags={_TAG_NOTE: note}),
        Text(run=STUDY_RUN, name="config.yaml", text=without_passwords(config_text)),
    ]


def study_goes_on(time_ms: int) -> list[Entry]:
    """Another driver takes it up."""
    return _state(STUDY_RUN, "running", time_ms)


def study_ends(state: StudyState, results: StudyResults, time_ms: int) -> list[Entry]:
    """The parent run is closed: once the study is over, with its health and the winner's test accuracy: the mean
    over its replicates, and their standard deviation, where it has some.

    That is told at step = trials that have ended: a study that is extended has another.
    """
    winner = results.winner
    told: list[Entry] = []
    if results.finished:
        looked_at = any(row.findings is not None for row in results.of("trial"))
        told += _health(STUDY_RUN, results.findings or (() if looked_at else None))
    accuracies = () if winner is None else test_accuracies(results, winner)
    if state != "interrupted" and accuracies:
        metrics = {records.BEST_TEST_ACCURACY: fmean(accuracies)}
        if len(accuracies) > 1:
            metrics[records.BEST_TEST_ACCURACY_SD] = stdev(accuracies)
        told.append(_points_of_study(results, metrics, time_ms))
    return [*told, *_state(STUDY_RUN, state, time_ms)]


def study_reported(page: Path) -> list[Entry]:
    """The study's report becomes an artifact."""
    return [File(run=STUDY_RUN, path=str(page))]


def front_found(results: StudyResults) -> list[Entry]:
    """Of a study with several objectives, whether each trial that ended is on the front: it may have been before."""
    if len(results.objectives) == 1:
        return []
    front = {row.number for row in results.front}
    return [
        Tags(run=row.label, tags={TAG_FRONT: str(row.number in front).lower()})
        for row in results.of("trial")
    ]


def study_advances(results: StudyResults, gpus: float, time_ms: int) -> list[Entry]:
    """How far the study is, at step = trials that have ended; `gpus` are those of one trial."""
    trials = results.of("trial")
    counts = {
        name: float(sum(row.state == state for row in trials))
        for state, name in records.STUDY_TRIALS.items()
    }
    hours = sum(row.seconds for row in results.rows) / 3600
    counts |= (
        {records.STUDY_GPU_HOURS: hours * gpus} if gpus else {records.STUDY_TRIAL_HOURS: hours}
    )
    if results.winner is not None and results.winner.value is not None:
        counts[records.BEST_VAL_ACCURACY] = results.winner.value
    return [_points_of_study(results, counts, time_ms)]


def trial_begins(
    results: StudyResults, row: TrialRow, params: Mapping[str, Value], time_ms: int
) -> list[Entry]:
    """A child run with the trial's whole config, by dotted path."""
    own = {
        _TAG_PARENT: results.parent_run_id,
        TAG_ROLE: row.role,
        TAG_TRIAL: str(row.number),
    }
    if row.of:
        own[TAG_OF] = row.of
    tags = {**own, TAG_STUDY: results.name, TAG_STATE: "running"}
    return [
        Opening(run=row.label, name=row.label, tags=tags, found_by=own, time_ms=time_ms),
        _params(row.label, params),
    ]


def trial_goes_on(row: TrialRow, time_ms: int) -> list[Entry]:
    """A child run that was closed or left open; what it failed of is forgotten."""
    return [
        *_state(row.label, "running", time_ms),
        Untagging(run=row.label, names=(TAG_ERROR, TAG_HEALTH)),
    ]


def trial_waits(row: TrialRow) -> list[Entry]:
    """A child run stays open between two pieces of its training."""
    return [Tags(run=row.label, tags={TAG_STATE: row.state})]


def epoch_ended(row: TrialRow, record: EpochRecord) -> list[Entry]:
    """An epoch's metrics at step = epoch and the record's own time, and the best accuracy when it is new.

    `row` knows of the epoch already. So the last value of `best/val_accuracy` is the trial's best, where
    that of `val/accuracy` is the last epoch's.
    """
    metrics = dict(record.metrics)
    if row.value is not None and row.best_epoch == record.epoch:
        metrics[records.BEST_VAL_ACCURACY] = row.value
    return [Points(run=row.label, metrics=metrics, step=record.epoch, time_ms=record.timestamp_ms)]


def metrics_measured(row: TrialRow, metrics: Mapping[str, float], time_ms: int) -> list[Entry]:
    """What was measured of the student that a trial kept, at step = its epochs."""
    return [Points(run=row.label, metrics=dict(metrics), step=row.epochs, time_ms=time_ms)]


def trial_ended(
    row: TrialRow, error: str | None, statistics: Path | None, time_ms: int
) -> list[Entry]:
    """A child run is closed: FINISHED if complete, KILLED if pruned, FAILED if failed.

    Of `error` (a traceback, or a plain reason) `reason_of` becomes the tag `kd.error`, and the whole the
    artifact `error.txt`; of findings the names become the tag `kd.health`, and all the artifact
    `findings.txt`; the constraints that it breaks become `kd.violates`; and the file `statistics` is copied.
    """
    told = _health(row.label, row.findings)
    if row.violates:
        told.append(Tags(run=row.label, tags={TAG_VIOLATES: ", ".join(row.violates)}))
    if error:
        reason = _shortened(reason_of(error), _REASON_CHARACTERS)
        told.append(Tags(run=row.label, tags={TAG_ERROR: reason}))
        told.append(Text(run=row.label, name="error.txt", text=error))
    if statistics is not None:
        told.append(File(run=row.label, path=str(statistics), folder="statistics"))
    return [*told, *_state(row.label, row.state, time_ms)]


def trial_began_again(row: TrialRow) -> list[Entry]:
    """It found no memory beside others: when and where, the last time."""
    reason = _shortened(row.out_of_memory[-1], _REASON_CHARACTERS)
    return [Tags(run=row.label, tags={TAG_OUT_OF_MEMORY: reason})]


def trial_kept(row: TrialRow, weights: Path, config_text: str) -> list[Entry]:
    """The weights and the config of one of the best trials."""
    return [
        File(run=row.label, path=str(weights), folder="checkpoint"),
        Text(run=row.label, name="config.yaml", text=config_text),
    ]


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, Value]:
    """A nested config by dotted path; None is left out, and a sequence becomes `[a, b]`."""
    flat: dict[str, Value] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(cast("Mapping[str, object]", value), f"{path}.")
        elif isinstance(value, bool | int | float | str):
            flat[path] = value
        elif value is not None:
            flat[path] = _compact(value)
    return flat


def reason_of(error: str) -> str:
    """The last line of a traceback or a plain reason, without the name of one of our own errors' classes.

    Their text says all by itself, and beginning with the path of what is wrong.
    """
    last = error.strip().rpartition("\n")[2].strip()
    return re.sub(rf"^{re.escape(errors.__name__)}\.\w+: ", "", last)


def _state(run: str, state: State | StudyState, time_ms: int) -> list[Entry]:
    return [
        Tags(run=run, tags={TAG_STATE: state}),
        Status(run=run, status=_STATUS[state], time_ms=time_ms),
    ]


def _points_of_study(results: StudyResults, metrics: Mapping[str, float], time_ms: int) -> Points:
    ended = sum(row.has_ended for row in results.of("trial"))
    return Points(run=STUDY_RUN, metrics=dict(metrics), step=ended, time_ms=time_ms)


def _params(run: str, params: Mapping[str, Value]) -> Params:
    texts = {path: without_passwords(str(value)) for path, value in params.items()}
    short = {path: _shortened(text, _PARAM_CHARACTERS) for path, text in texts.items()}
    return Params(run=run, params=short)


def _health(run: str, findings: Sequence[Finding] | None) -> list[Entry]:
    """The tag `kd.health`, and the findings' text where there are any."""
    names = _shortened(", ".join(one.name for one in findings or ()), _REASON_CHARACTERS)
    told: list[Entry] = [
        Tags(run=run, tags={TAG_HEALTH: UNKNOWN if findings is None else names or HEALTHY})
    ]
    if findings:
        told.append(Text(run=run, name="findings.txt", text=_findings_text(findings)))
    return told


def _findings_text(findings: Sequence[Finding]) -> str:
    return "\n".join(
        f"{one.name}: {one.words}\n  evidence: {one.evidence}\n  remedy: {one.remedy}\n"
        for one in findings
    )


def _compact(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_compact, cast('Iterable[object]', value)))}]"
    return str(value)


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
