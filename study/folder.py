"""A study's folder: which study it holds, who is at work on it, and what is known of it."""

from __future__ import annotations

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
from study.results import LEDGER, StudyResults, load_results, save_results
from study.tracking import Tracker
from study.yaml import parse_yaml
from trainable.errors import ConfigError, Problem, input_error


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


def open_tracker(config: StudyConfig) -> Tracker:
    """The MLflow store: the config's, or the embedded one."""
    return Tracker(_tracking_uri(config), config.tracking.experiment, _artifact_root(config))


def open_results(config: StudyConfig, tracker: Tracker) -> StudyResults:
    """The ledger of the study as it stands, with its MLflow parent run open."""
    path = config.folder / LEDGER
    if path.exists():
        results = load_results(path)
        tracker.resume_study(results.parent_run_id)
        return results
    parent = tracker.start_study(
        config.study.name,
        config.model_dump(mode="json", exclude_none=True),
        {},
        config_text=dump_config(config),
        note=_note(config),
    )
    results = StudyResults(
        name=config.study.name,
        trials_planned=config.study.trials,
        started_at=time.time(),
        tracking_uri=_tracking_uri(config),
        experiment=config.tracking.experiment,
        experiment_id=tracker.experiment_id,
        parent_run_id=parent,
    )
    save_results(results, path)
    return results


def _tracking_uri(config: StudyConfig) -> str:
    if config.tracking.uri is not None:
        return config.tracking.uri
    return embedded_store(Path(config.storage.path))


def _artifact_root(config: StudyConfig) -> Path | None:
    """Where the embedded store keeps its artifacts; None leaves it to a server."""
    return Path(config.storage.path) / "mlartifacts" if config.tracking.uri is None else None


def _note(config: StudyConfig) -> str:
    teacher = config.teacher.model if config.teacher is not None else "no teacher"
    searched = ", ".join(f"`{path}`" for path in config.search) or "nothing"
    return (
        f"Distilling **{teacher}** into **{config.student.model}** on `{config.data.source}` with "
        f"`{config.distill.method}`.\n\n{config.study.trials} trial(s), searching {searched}."
    )
