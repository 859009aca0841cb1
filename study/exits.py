"""The exit codes of `kd-study`, and how bad input ends it."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

import typer

from trainable.errors import InputError

NO_USABLE_TRIAL, BAD_INPUT, INTERRUPTED = 1, 2, 130


@contextmanager
def bad_input_exits() -> Generator[None]:
    """Turns bad input into its message on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        exit_bad(str(error))


def exit_bad(message: str) -> NoReturn:
    """End with a message on stderr."""
    print(message, file=sys.stderr)
    raise typer.Exit(BAD_INPUT)
