"""The errors a person can act on: every message names the path, the rule, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config, a file or a data set.

    `path` is the dotted config path or the file, `rule` what must hold, `got` the value found
    (None where there is none to show) and `remedy` what to do about it.
    """

    path: str
    rule: str
    remedy: str
    got: str | None = None

    def __str__(self) -> str:
        value = f", got {self.got}" if self.got is not None else ""
        return f"{self.path}: {self.rule}{value}; {self.remedy}"


class KdStudyError(Exception):
    """Base of every error that the product raises on purpose."""


class InputError(KdStudyError, ValueError):
    """Bad input of any kind, with all that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class ConfigError(InputError):
    """The config breaks a rule."""


class DataError(InputError):
    """The data set breaks a rule: corrupt images, empty classes, labels out of range, …"""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or does not fit the network."""


class TrainingError(KdStudyError):
    """A trial cannot go on: it diverged, ran out of memory, or something in it raised.

    One line that says where (rank, epoch, update) and what.
    """


class StorageError(KdStudyError):
    """A study's files cannot be written: a disk is full, or a folder away. No trial is to blame.

    Path, rule, value and remedy, as of a `Problem`.
    """


class ExportError(KdStudyError):
    """A student cannot be written in a format, or what was written does not say what it says."""


class OutOfMemoryError(TrainingError):
    """A trial ran out of memory: of its device's, or of the host's."""


def input_error(
    kind: type[InputError], path: str, rule: str, remedy: str, got: object = None
) -> InputError:
    """An error of one problem; `got` is shown as Python writes it."""
    return kind([Problem(path, rule, remedy, None if got is None else repr(got))])


def reason_of(error: BaseException) -> str:
    """What somebody else's code raised, on one line: its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
