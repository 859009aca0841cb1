"""Checks that are run one by one, and tell everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from study.config import Draft
from trainable.errors import ConfigError, DataError, InputError, Problem

_T = TypeVar("_T")


class Checks:
    """Runs checks and keeps what they find; leaves out those that read what is not known."""

    def __init__(self, draft: Draft) -> None:
        self.unknown = draft.unknown
        self.problems: dict[Problem, None] = dict.fromkeys(draft.problems)
        self._kinds: set[type[InputError]] = {ConfigError} if draft.problems else set()

    def of(
        self,
        reads: tuple[str, ...],
        check: Callable[[], _T],
        placed: Callable[[Problem], Problem] = lambda problem: problem,
    ) -> _T | None:
        """The result of a check of these sections and keys; what it finds is kept, as `placed` has it."""
        if any(overlap(read, path) for read in reads for path in self.unknown):
            return None
        try:
            return check()
        except InputError as error:
            self.problems |= dict.fromkeys(map(placed, error.problems))
            self._kinds.add(DataError if isinstance(error, DataError) else ConfigError)
            return None

    def add(self, problems: list[Problem]) -> None:
        """Keep what was found elsewhere."""
        self.problems |= dict.fromkeys(problems)
        self._kinds |= {ConfigError} if problems else set()

    def error(self) -> InputError:
        """All of it."""
        kind = DataError if self._kinds == {DataError} else ConfigError
        return kind(self.problems)


def overlap(one: str, other: str) -> bool:
    """Whether of two dotted paths one is the other, or in its section."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
