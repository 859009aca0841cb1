"""A cluster's job in the terminal: looked at, followed, left alone, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import typer
from ray.job_submission import JobDetails

from study.config import StudyConfig
from study.exits import BAD_INPUT, INTERRUPTED, NO_USABLE_TRIAL
from study.submit import JobServer, LostJobError, is_live, state_of, why_it_failed
from trainable.errors import InputError, input_error

_STATUS_LINES = 5


def look_at(server: JobServer, config: StudyConfig, *, stop: bool) -> None:
    """Say how the last job of a study is, once it is stopped if that is wanted."""
    job = server.latest(config)
    if job is None:
        rule = f"has no job at {server.address}"
        remedy = "check the address, study.name and storage.path, or submit it"
        raise input_error(InputError, "study.name", rule, remedy, config.study.name)
    if stop and not is_live(job):
        rule, remedy = "has no job that runs", "--status says more"
        raise input_error(InputError, "study.name", rule, remedy, state_of(job))
    with _detaching(job):
        job = server.stop(job) if stop else job
    print("\n".join([*server.last_lines(job, _STATUS_LINES), state_of(job)]))


def follow(server: JobServer, job: JobDetails) -> JobDetails:
    """Show a job's log to its end."""
    try:
        with _detaching(job):
            return server.follow(job, partial(print, end="", flush=True))
    except LostJobError as error:
        print(f"{error}; the same command follows {job.submission_id} again", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _detaching(job: JobDetails) -> Generator[None]:
    """Lets Ctrl-C end the looking, not what is looked at."""
    try:
        yield
    except KeyboardInterrupt:
        told = "the same command follows it again, --status says how it is, --stop ends it"
        print(f"\ndetached from {job.submission_id}, which goes on: {told}")
        raise typer.Exit(INTERRUPTED) from None


def exit_as(job: JobDetails) -> None:
    """Exit as the study of a job that has ended did."""
    print(state_of(job))
    if job.status == "SUCCEEDED":
        return
    if job.status == "STOPPED":
        print("run the same command again to go on")
        raise typer.Exit(INTERRUPTED)
    if job.driver_exit_code in (NO_USABLE_TRIAL, BAD_INPUT, INTERRUPTED):
        raise typer.Exit(job.driver_exit_code)  # the log says why
    print(why_it_failed(job), file=sys.stderr)
    raise typer.Exit(NO_USABLE_TRIAL)
