"""What lies where in a bucket of studies, and how it is brought back from there.

NAME/driver.zip                config, ledger, Optuna's journal and spool, all as they were at one moment
NAME/lease.json                who drives the study; see `study.lease`
NAME/trials/0003/…             its curve, kept by the driver, and what the trial keeps (`trainable.engine.mirror`)
NAME/mlflow.db, mlartifacts/   the embedded MLflow store, if it is used: of this study alone
NAME/report.html, trials.parquet
teachers/…                     the weights of teachers that studies have trained
"""

from __future__ import annotations

import io
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import uuid4
from zipfile import ZipFile

from study.config import StudyConfig
from study.curves import CURVE
from study.ledger import LEDGER, load_results
from study.replicates import representative
from study.report.links import PAGE
from study.report.trials_file import TRIALS
from study.spool import files_to_send
from trainable import tasks
from trainable.bucket import Bucket, BucketError
from trainable.errors import ConfigError, InputError, Problem, input_error
from trainable.places import BUCKETS, is_bucket, working_folder

STATE = "driver.zip"
ROOT = "root"
"""In `STATE`: the absolute path that the driver's places began with."""
STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
_AT_A_TIME = 16
_PATIENCE_S = 10.0
"""Of who only looks: what is written just now can be read a moment later."""


def check_bucket(uri: str) -> None:
    """ConfigError unless files can be written to the bucket, and read there."""
    bucket, name = Bucket(uri, patience_s=0), f".seen-{uuid4().hex}"
    try:
        bucket.put(name, name.encode())
        found = bucket.read(name)
        bucket.remove(name)
    except BucketError as error:
        raise _unusable(uri, str(error)) from error
    if found != name.encode():
        raise _unusable(uri, "what was written there is not what is read")


def bring(config: StudyConfig, path: Path) -> None:
    """Have a file here, on any node, as it is kept in the study's bucket; without one it is here."""
    if config.bucket is not None:
        Bucket(config.storage.path).fetch(str(path.relative_to(config.root)), path)


def bring_back(bucket: Bucket, study: str, root: Path) -> bool:
    """Make the study's folder under `root` what the bucket has of its driver; whether there is such a study."""
    folder = root / study
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    state = bucket.read(f"{study}/{STATE}")
    if state is None:
        return False
    before = _extract(state, folder)
    beside = [name for name in bucket.names(study) if is_beside(Path(name).relative_to(study))]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        list(pool.map(lambda name: bucket.fetch(name, root / name), beside))
    _move_store(folder / STORE, before, root)
    for path in files_to_send(folder):
        if not path.exists() and path.is_relative_to(root):
            bucket.fetch(str(path.relative_to(root)), path)
    return True


def looked_at(uri: str, study: str, trial: int | None = None) -> Path:
    """A folder of studies with a copy of one in a bucket, for who only reads it, whoever drives it.

    Of the weights it has those of the study's answer, or of `trial`.

    InputError if the bucket cannot be used, or holds no such study.
    """
    if not is_bucket(uri):
        kinds = " or ".join(f"{kind}bucket/prefix" for kind in BUCKETS)
        rule, remedy = f"must be a folder, or {kinds}", "correct it"
        raise input_error(InputError, "--storage", rule, remedy, uri)
    working = working_folder(uri)  # which a driver of this machine may be at work in
    root = working.parent.with_name("looked-at") / working.name
    bucket = Bucket(uri, _PATIENCE_S)
    try:
        found = bring_back(bucket, study, root)
        if not found or not (root / study / LEDGER).exists():  # it may just begin
            rule, remedy = "must hold the study", "check its name, the bucket and the prefix"
            raise input_error(InputError, uri, rule, remedy, study)
        results = load_results(root / study / LEDGER)
        row = representative(results) if trial is None else results.row("trial", trial)
        if row is not None:
            best = tasks.best_weights(Path(row.directory))
            bucket.fetch(str(best.relative_to(root)), best)
    except BucketError as error:
        raise _unusable(uri, str(error)) from error
    return root


def is_beside(name: Path) -> bool:
    """Whether a file of a study, by its name there, is the driver's and kept by itself."""
    return str(name) in (PAGE, TRIALS, STORE) or name.name == CURVE or name.parts[0] == ARTIFACTS


def _unusable(uri: str, reason: str) -> ConfigError:
    rule = f"must be a bucket that this machine may write and read ({reason})"
    remedy = (
        "make it, correct the address, or give credentials (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)"
    )
    return ConfigError([Problem("storage.path", rule, remedy, repr(uri))])


def _extract(state: bytes, folder: Path) -> Path:
    """Write the files of a driver, with its places in this folder; the root of all studies where it was at work."""
    with ZipFile(io.BytesIO(state)) as archive:
        before, root = archive.read(ROOT), str(folder.parent).encode()
        for name in archive.namelist():
            if name != ROOT:
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(archive.read(name).replace(before, root))
    return Path(before.decode())


def _move_store(path: Path, before: Path, root: Path) -> None:
    """Have the embedded store's artifacts lie under this root."""
    if before == root or not path.exists():
        return
    with closing(sqlite3.connect(path)) as store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            text = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            store.execute(text, (before.as_uri(), root.as_uri()))
        store.commit()
