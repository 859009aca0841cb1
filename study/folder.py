"""A study's folder: which study it holds, who is at work on it, and what is known of it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from study.config import (
    RESOLVED,
    StudyConfig,
    differences,
    dump_config,
    embedded_store,
    parse_config,
)
from study.entries import STUDY_RUN, Line
from study.ledger import LEDGER, LOCK, load_results, no_such_study, save_results
from study.problems import shown
from study.results import StudyResults
from study.secrets import without_passwords
from study.spool import SPOOL, Spool, unsent
from study.store import Store, must_answer, open_store
from study.telling import study_begins, study_opening
from study.tracking import Tracker
from study.yaml import parse_yaml
from trainable.errors import ConfigError, InputError, Problem, input_error

LOG = "study.log"
_JOURNAL_LOCK = "optuna.journal.lock"
_MOST_SHOWN = 10
"""Of the keys by which a config differs from the one that a study keeps."""


def kept_config(storage: Path, name: str) -> StudyConfig:
    """The config that the study `name` under `storage` keeps, with `storage` as its place, wherever it lay before.

    InputError names the studies that are there.
    """
    path = storage / name / RESOLVED
    if not path.is_file():
        raise no_such_study(storage, name, beside=RESOLVED)
    config = _read_config(path)
    if config.study.name != name:
        rule = f"must be the name of its folder, {name}"
        remedy = "give the folder its study's name back"
        raise input_error(InputError, f"{path}: study.name", rule, remedy, config.study.name)
    section = config.storage.model_copy(update={"path": str(storage)})
    return config.model_copy(update={"storage": section})


def with_more_trials(config: StudyConfig, trials: int) -> StudyConfig:
    """The config with so many trials more; ConfigError without a search, which could give no others.

    A baseline that had as many trials as the search has them still, or the search would win by the others alone.
    """
    if not config.search:
        rule = "must have a path to search, or more trials would all be the same one"
        remedy = "run a study with a search"
        raise input_error(ConfigError, "search", rule, remedy, {})
    before, after = config.study.trials, config.study.trials + trials
    baselines = {
        name: own if own < before else max(own, after)
        for name, own in config.study.baselines.items()
    }
    section = config.study.model_copy(update={"trials": after, "baselines": baselines})
    return config.model_copy(update={"study": section})


def check_same_study(config: StudyConfig) -> None:
    """ConfigError has the keys that differ from those of the study that the folder holds, with both values."""
    path = config.folder / RESOLVED
    if not path.exists():
        return
    old = _read_config(path)
    if found := differences(old, config):
        name = old.study.name
        shown_ = list(found.items())[:_MOST_SHOWN]
        problems = [_difference(name, key, *values) for key, values in shown_]
        raise ConfigError([*problems, *_not_shown(name, len(found) - len(problems))])


def load_finished(config: StudyConfig) -> StudyResults | None:
    """The results of a study that has finished, and was not extended since."""
    if not (config.folder / LEDGER).exists():
        return None
    results = _load_ledger(config)
    is_over = results.finished and results.trials_planned == config.study.trials
    return results if is_over else None


@contextmanager
def only_driver(folder: Path) -> Generator[None]:
    """Hold the folder; ConfigError if another driver does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        rule, remedy = "another kd-study is at work on it", "wait for it, or choose another name"
        raise input_error(ConfigError, "study.name", rule, remedy, folder.name) from None
    try:
        # Of a driver that died while it wrote: Optuna would wait 30 s for it.
        (folder / _JOURNAL_LOCK).unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def keep_config(config: StudyConfig) -> None:
    """Write the config that the study begins with; once it is there, it stays but for `replace_config`."""
    if not (config.folder / RESOLVED).exists():
        replace_config(config)


def replace_config(config: StudyConfig) -> None:
    """Write the config that the study goes on with, atomically, and on the disk when this returns."""
    path = config.folder / RESOLVED
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(dump_config(config))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


class _LogFile(logging.FileHandler):
    """Keeps what it can: a disk that is full or away ends the study, and is told of there."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # when it is opened
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


@contextmanager
def log_file(folder: Path) -> Generator[None]:
    """In this block what goes wrong beside a study's course is written to `study.log`, if anything does."""
    handler = _LogFile(folder / LOG, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logger = logging.getLogger("study")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def connect(config: StudyConfig) -> Store:
    """The MLflow store: the config's, or the embedded one; ConfigError if it cannot be used."""
    uri = tracking_uri(config)
    return open_store(uri, config.tracking.experiment, _artifact_root(config))


def has_unsent(folder: Path, results: StudyResults) -> bool:
    """Whether a study has something for MLflow that was not sent."""
    return unsent(folder / SPOOL, results.outbox) > 0


def open_results(config: StudyConfig, store: Store, spool: Spool) -> StudyResults:
    """The ledger of the study as it stands, with its MLflow parent run there."""
    path, uri = config.folder / LEDGER, tracking_uri(config)
    tracker = Tracker(store)
    with must_answer(uri):
        if path.exists():
            results = _load_ledger(config)
            _must_hold(tracker, results.parent_run_id)
            spool.name_runs(results.run_ids)
            return results
        opening = study_opening(config.study.name, spool.study_id, note_of(config), _now_ms())
        parent = tracker.open_run(opening, may_be_there=True)
    spool.name_runs({STUDY_RUN: parent})
    told = study_begins(config.model_dump(mode="json", exclude_none=True), dump_config(config))
    results = StudyResults(
        name=config.study.name,
        trials_planned=config.study.trials,
        objectives=config.study.objectives,
        constraints=config.study.constraints.bounds,
        started_at=time.time(),
        tracking_uri=uri,
        experiment=config.tracking.experiment,
        experiment_id=store.experiment_id,
        parent_run_id=parent,
        outbox=Line(number=spool.last_number + 1, entries=tuple(told)),
    )
    save_results(results, path)
    return results


def _read_config(path: Path) -> StudyConfig:
    return parse_config(parse_yaml(path.read_text(encoding="utf-8"), str(path)), where=str(path))


def _load_ledger(config: StudyConfig) -> StudyResults:
    """The ledger, with its places as they are now: a study's folder may have been moved."""
    results = load_results(config.folder / LEDGER).lying_in(config.folder)
    return results.model_copy(update={"tracking_uri": tracking_uri(config)})


def _difference(name: str, key: str, old: Any, new: Any) -> Problem:
    """What makes a config another study's; more trials do not, but nobody is to search them by mistake."""
    was, got = (shown(without_passwords(v) if isinstance(v, str) else v) for v in (old, new))
    if None in (old, new) or not key.startswith(("study.trials", "study.baselines.")):
        remedy = "change it back, or give the study another name (study.name)"
        return Problem(key, f"must be {was}, as when the study {name!r} began", remedy, got)
    rule = f"must be {was}, as the study {name!r} began or was extended to"
    remedy = f"set it to that, or `kd-study resume {name}` goes on"
    if key == "study.trials" and (more := new - old) > 0:
        remedy = f"set it to that, or `kd-study extend {name} --trials {more}` adds to it"
    return Problem(key, rule, remedy, got)


def _not_shown(name: str, count: int) -> list[Problem]:
    """So many differences more than are told one by one."""
    if count <= 0:
        return []
    rule = f"must not be that of another study, and {name!r} differs in {count} more keys"
    return [Problem("study.name", rule, "give the study another name")]


def _must_hold(tracker: Tracker, parent_run_id: str) -> None:
    if not tracker.is_writable(parent_run_id):
        rule = "must name the store that holds the study's run"
        remedy = "restore that store (a study moves together with it) or that run, or give the study another name"
        raise input_error(ConfigError, "tracking.uri", rule, remedy, parent_run_id)


def tracking_uri(config: StudyConfig) -> str:
    """Of the MLflow store: the config's, or the embedded one."""
    if config.tracking.uri is not None:
        return config.tracking.uri
    return embedded_store(_store_folder(config))


def _artifact_root(config: StudyConfig) -> Path | None:
    """Where the embedded store keeps its artifacts; None leaves it to a server."""
    return _store_folder(config) / "mlartifacts" if config.tracking.uri is None else None


def _store_folder(config: StudyConfig) -> Path:
    """Of all studies under a folder; of one in a bucket, since drivers on other machines do not see it."""
    return config.root if config.bucket is None else config.folder


def note_of(config: StudyConfig) -> str:
    """The description of a study's run, in markdown."""
    teacher = config.teacher.model if config.teacher is not None else "no teacher"
    searched = ", ".join(f"`{path}`" for path in config.search) or "nothing"
    return (
        f"Distilling **{teacher}** into **{config.student.model}** on `{config.data.source}` with "
        f"`{config.distill.method}`.\n\n{config.study.trials} trial(s), searching {searched}."
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
