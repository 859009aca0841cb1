"""What a study does next, one step at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from study.jobs import Job
from study.schema import BaselineName


@dataclass(frozen=True)
class Draw:
    """The next trial of a baseline's own search."""

    of: BaselineName


@dataclass(frozen=True)
class GoOn:
    """A trial of the study's search that waits goes on."""

    number: int


Step = Job | Draw | GoOn | Literal["trial", "wait"]
"""A job, the next trial of a baseline's search or of the study's, or one of the latter that waits; or nothing yet:
something has to end first."""
