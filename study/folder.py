"""A study's folder: which study it holds, who is at work on it, and what is known of it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from study.config import (
    RESOLVED,
    StudyConfig,
    differing_keys,
    dump_config,
    embedded_store,
    parse_config,
)
from study.entries import STUDY_RUN, Line
from study.results import LEDGER, StudyResults, load_results, save_results
from study.spool import SPOOL, Spool, unsent
from study.store import Store, must_answer, open_store
from study.telling import study_begins, study_opening
from study.tracking import Tracker
from study.yaml import parse_yaml
from trainable.errors import ConfigError, Problem, input_error

LOG = "study.log"


def check_same_study(config: StudyConfig) -> None:
    """ConfigError names the keys that differ from those of the study that the folder holds, if any."""
    path = config.folder / RESOLVED
    if not path.exists():
        return
    old = parse_config(parse_yaml(path.read_text(), str(path)), where=str(path))
    rule = f"must be as it was when the study {config.study.name!r} began"
    remedy = "change it back, or give the study another name (study.name)"
    if keys := differing_keys(old, config):
        raise ConfigError([Problem(key, rule, remedy) for key in keys])


def load_finished(folder: Path) -> StudyResults | None:
    """The results of a study that has finished."""
    path = folder / LEDGER
    results = load_results(path) if path.exists() else None
    return results if results is not None and results.finished else None


@contextmanager
def only_driver(folder: Path) -> Generator[None]:
    """Hold the folder; ConfigError if another driver does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".driver.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        rule, remedy = "another kd-study is at work on it", "wait for it, or choose another name"
        raise input_error(ConfigError, "study.name", rule, remedy, folder.name) from None
    try:
        yield
    finally:
        lock.release()


def keep_config(config: StudyConfig) -> None:
    """Write the config that the study begins with; once it is there, it stays."""
    path = config.folder / RESOLVED
    if path.exists():
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(dump_config(config))
    os.replace(temporary, path)


@contextmanager
def log_file(folder: Path) -> Generator[None]:
    """In this block what goes wrong beside a study's course is written to `study.log`, if anything does."""
    handler = logging.FileHandler(folder / LOG, delay=True, encoding="utf-8")
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
    uri = _tracking_uri(config)
    return open_store(uri, config.tracking.experiment, _artifact_root(config))


def has_unsent(folder: Path, results: StudyResults) -> bool:
    """Whether a study has something for MLflow that was not sent."""
    return unsent(folder / SPOOL, results.outbox) > 0


def open_results(config: StudyConfig, store: Store, spool: Spool) -> StudyResults:
    """The ledger of the study as it stands, with its MLflow parent run there."""
    path, uri = config.folder / LEDGER, _tracking_uri(config)
    tracker = Tracker(store)
    with must_answer(uri):
        if path.exists():
            results = load_results(path)
            _must_hold(tracker, results.parent_run_id)
            spool.name_runs(results.run_ids)
            return results
        opening = study_opening(config.study.name, spool.study_id, _note(config), _now_ms())
        parent = tracker.open_run(opening, may_be_there=True)
    spool.name_runs({STUDY_RUN: parent})
    told = study_begins(config.model_dump(mode="json", exclude_none=True), dump_config(config))
    results = StudyResults(
        name=config.study.name,
        trials_planned=config.study.trials,
        started_at=time.time(),
        tracking_uri=uri,
        experiment=config.tracking.experiment,
        experiment_id=store.experiment_id,
        parent_run_id=parent,
        outbox=Line(number=spool.last_number + 1, entries=tuple(told)),
    )
    save_results(results, path)
    return results


def _must_hold(tracker: Tracker, parent_run_id: str) -> None:
    if not tracker.is_writable(parent_run_id):
        rule = "must name the store that holds the study's run"
        remedy = "restore that store or that run, or give the study another name"
        raise input_error(ConfigError, "tracking.uri", rule, remedy, parent_run_id)


def _tracking_uri(config: StudyConfig) -> str:
    if config.tracking.uri is not None:
        return config.tracking.uri
    return embedded_store(_store_folder(config))


def _artifact_root(config: StudyConfig) -> Path | None:
    """Where the embedded store keeps its artifacts; None leaves it to a server."""
    return _store_folder(config) / "mlartifacts" if config.tracking.uri is None else None


def _store_folder(config: StudyConfig) -> Path:
    """Of all studies under a folder; of one in a bucket, since drivers on other machines do not see it."""
    return config.root if config.bucket is None else config.folder


def _note(config: StudyConfig) -> str:
    teacher = config.teacher.model if config.teacher is not None else "no teacher"
    searched = ", ".join(f"`{path}`" for path in config.search) or "nothing"
    return (
        f"Distilling **{teacher}** into **{config.student.model}** on `{config.data.source}` with "
        f"`{config.distill.method}`.\n\n{config.study.trials} trial(s), searching {searched}."
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
