"""A study as a job of a Ray cluster: submitted, followed, asked about and stopped from another machine."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import logging
import os
import shlex
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import study
import trainable
from study.config import StudyConfig, dump_config
from study.version import kd_study_version
from trainable.errors import InputError, KdStudyError, input_error

_STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
"""How Ray stops a study, and how many seconds it has to save itself; most need ten."""
_STARTING_S, _NOT_YET = 60.0, "No available agent"
"""How long a head node that has just started may refuse jobs, and what it then says."""
_PATIENCE_S, _POLL_S = 10.0, 0.5
_STUDY, _DIGEST = "kd.study", "kd.digest"
"""Metadata of a job: the folder of its study, and what was sent with it."""
_LIVE = (JobStatus.PENDING, JobStatus.RUNNING)
_OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray's client puts before the address that it is given."""


class LostJobError(KdStudyError):
    """The cluster no longer answers; its job may go on."""


class Package:
    """What travels with a job: the config, and code that the cluster does not have."""

    def __init__(self, config: StudyConfig, name: str, folder: Path) -> None:
        """Write the config into an empty folder, under the name that the job's log will show."""
        self.config, self.folder = config, folder
        self._program, self._file = "kd-study", f"{name}.yaml"
        (folder / self._file).write_text(dump_config(config), encoding="utf-8")

    def add_code(self, place: Path) -> None:
        """Add a Python file or package; the job and its trials can import it."""
        target = self.folder / place.resolve().name
        if not place.exists():
            rule = "must be a Python file or the folder of a package"
            raise input_error(InputError, "--code", rule, "check the path", str(place))
        if target.exists():
            raise input_error(
                InputError, "--code", "must have names that differ", "rename one", target.name
            )
        if place.is_file():
            shutil.copy(place, target)
        else:
            shutil.copytree(place, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def add_kd_study(self) -> None:
        """Add the code of kd-study itself, which then runs in place of what the cluster has."""
        for package in (study, trainable):
            self.add_code(Path(package.__path__[0]))
        # Beside the code, so that every node finds this version of it and no other.
        version = kd_study_version()
        known = self.folder / f"kd_study-{version}.dist-info" / "METADATA"
        known.parent.mkdir()
        known.write_text(f"Metadata-Version: 2.1\nName: kd-study\nVersion: {version}\n")
        self._program = "python -m study"

    @property
    def entrypoint(self) -> str:
        """The job's command, as a person on the cluster would type it."""
        return f"{self._program} run {shlex.quote(self._file)}"

    @property
    def digest(self) -> str:
        """Equal for jobs that would do the same."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        parts = [(str(p.relative_to(self.folder)), p.read_bytes()) for p in files]
        return hashlib.sha256(repr((self.entrypoint, parts)).encode()).hexdigest()


class JobServer:
    """The job server of a Ray cluster; every method raises InputError if it does not answer."""

    def __init__(self, address: str) -> None:
        _quieten_client()
        self.address = address.rstrip("/")
        _check_dashboard(self.address)
        before = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
        try:
            with self._answers():
                self._client = JobSubmissionClient(self.address)
        finally:
            os.environ |= before

    def latest(self, config: StudyConfig) -> JobDetails | None:
        """The last job that was submitted for a study."""
        with self._answers():
            jobs = self._client.list_jobs()
        mine = [job for job in jobs if (job.metadata or {}).get(_STUDY) == config.place]
        return max(mine, key=lambda job: job.start_time or 0, default=None)

    def submit(self, package: Package) -> JobDetails:
        """The job that runs this package: the one that is running it already, or a new one.

        InputError if the study is being run from another package. The driver reserves nothing: Ray then
        starts it on the head node, beside no trial's GPU and on no node that may be taken away.
        """
        job, digest = self.latest(package.config), package.digest
        if job is not None and is_live(job):
            if (job.metadata or {})[_DIGEST] == digest:
                return job
            rule = "is being run with other settings or other code"
            remedy = "stop that job with --stop first, or submit what it was given"
            raise input_error(InputError, "study.name", rule, remedy, job.submission_id)
        name = f"{package.config.study.name}-{datetime.now():%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
        metadata = {_STUDY: package.config.place, _DIGEST: digest}
        with self._answers():
            self._submit(name, package, metadata)
            return self._client.get_job_info(name)

    def _submit(self, name: str, package: Package, metadata: dict[str, str]) -> None:
        until = time.monotonic() + _STARTING_S
        while True:
            try:
                self._client.submit_job(
                    submission_id=name,
                    entrypoint=package.entrypoint,
                    runtime_env={"working_dir": str(package.folder), "env_vars": _STOPPING},
                    metadata=metadata,
                )
                return
            except RuntimeError as error:
                if _NOT_YET not in str(error) or time.monotonic() > until:
                    raise

    def stop(self, job: JobDetails) -> JobDetails:
        """Ask the job to save itself, and wait until it has ended."""
        with self._answers():
            self._client.stop_job(_id(job))
            while is_live(job):
                time.sleep(_POLL_S)
                job = self._client.get_job_info(_id(job))
        return job

    def last_lines(self, job: JobDetails, count: int) -> list[str]:
        """The last lines of its log; none before there is one."""
        with self._answers():
            return self._client.get_job_logs(_id(job)).splitlines()[-count:]

    def follow(self, job: JobDetails, write: Callable[[str], None]) -> JobDetails:
        """Write the job's log, from its beginning and as it grows, until the job has ended.

        LostJobError if the cluster goes away meanwhile.
        """

        async def tail() -> None:
            async for text in self._client.tail_job_logs(_id(job)):
                write(text)

        try:
            asyncio.run(tail())
            ended = self._client.get_job_info(_id(job))
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise LostJobError(f"{self.address} no longer answers ({_first_line(error)})") from None
        if is_live(ended):
            raise LostJobError(f"{self.address} no longer sends the log")
        return ended

    @contextmanager
    def _answers(self) -> Generator[None]:
        try:
            yield
        except AuthenticationError:
            rule = "asks for a token, and must be given the right one"
            remedy = (
                "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's"
            )
            raise input_error(InputError, "--address", rule, remedy, self.address) from None
        except (OSError, RuntimeError) as error:
            rule = f"must be a cluster that takes jobs, but: {_first_line(error)}"
            raise input_error(
                InputError, "--address", rule, "see its dashboard", self.address
            ) from None


@contextmanager
def packaged(
    config: StudyConfig, path: Path, code: Sequence[Path], *, with_kd_study: bool
) -> Generator[Package]:
    """What is sent for a config of this file, in a folder that lasts as long as this block."""
    with tempfile.TemporaryDirectory(prefix="kd-study-") as folder:
        package = Package(config, path.stem, Path(folder))
        for place in code:
            package.add_code(place)
        if with_kd_study:
            package.add_kd_study()
        yield package


def is_live(job: JobDetails) -> bool:
    """Whether it waits or runs."""
    return job.status in _LIVE


def state_of(job: JobDetails) -> str:
    """A line about a job: its name, its state and since when, by this machine's clock."""
    at, word = (job.start_time, "since") if is_live(job) else (job.end_time, "at")
    when = "" if at is None else f" {word} {datetime.fromtimestamp(at / 1000):%Y-%m-%d %H:%M:%S}"
    return f"{job.submission_id}: {job.status.value.lower()}{when}"


def why_it_failed(job: JobDetails) -> str:
    """What Ray knows of a job that failed without a word of its own."""
    if job.driver_exit_code == 127:
        return (
            "the head node has no kd-study on its PATH: install it there, start Ray with its PATH, or "
            "send this machine's with --with-kd-study"
        )
    if job.driver_exit_code is not None:
        return f"the study's process ended with exit code {job.driver_exit_code}; see the log above"
    return job.message or "Ray does not say why"


def _check_dashboard(address: str) -> None:
    """Ray's client itself waits minutes for an address that does not answer."""
    remedy = (
        "give e.g. http://127.0.0.1:8265, where `ray dashboard` or `kubectl port-forward` leads"
    )
    if not address.startswith(("http://", "https://")):
        raise input_error(
            InputError, "--address", "must begin with http:// or https://", remedy, address
        )
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=_PATIENCE_S) as answer:
            known: Any = json.load(answer)
        if isinstance(known, dict) and "ray_version" in known:
            return
        reason = "something else answers there"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return  # it asks for a token, which Ray's client has
        reason = f"something else answers there, {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = str(getattr(error.reason, "strerror", None) or error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = _first_line(error)
    rule = f"must be the dashboard of a running Ray cluster, but: {reason}"
    raise input_error(InputError, "--address", rule, remedy, address)


def _quieten_client() -> None:
    """Each upload and each connection that ends would be noise."""
    for name in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env",
    ):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)


def _id(job: JobDetails) -> str:
    assert job.submission_id is not None  # only jobs of drivers that nobody submitted have none
    return job.submission_id


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
