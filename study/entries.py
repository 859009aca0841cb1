"""What a study writes to MLflow, as data: entries that can be kept on disk and sent later, or twice.

Each names its run by the label that the leaderboard has for it, since the store gives ids only when it is
reached. Times are those of the events: sent again, an entry changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

STUDY_RUN = "study"
"""The parent run's label."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """Label of the run: `study`, `teacher`, `trial 3`, …"""


class Opening(_Entry):
    """A run begins to be."""

    kind: Literal["opening"] = "opening"
    name: str
    tags: dict[str, str]
    found_by: dict[str, str]
    """Those tags that no other run of the experiment has together."""
    time_ms: int


class Params(_Entry):
    """What does not change during a run."""

    kind: Literal["params"] = "params"
    params: dict[str, str]


class Points(_Entry):
    """Values of metrics at one step."""

    kind: Literal["points"] = "points"
    metrics: dict[str, float]
    step: int
    time_ms: int


class Tags(_Entry):
    """What can change."""

    kind: Literal["tags"] = "tags"
    tags: dict[str, str]


class Untagging(_Entry):
    """Tags that hold no longer."""

    kind: Literal["untagging"] = "untagging"
    names: tuple[str, ...]


class Status(_Entry):
    """A run goes on, or is over."""

    kind: Literal["status"] = "status"
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    time_ms: int


class Text(_Entry):
    """A text that becomes the artifact `name`."""

    kind: Literal["text"] = "text"
    name: str
    text: str


class File(_Entry):
    """A file that is copied to the artifacts when the entry is sent."""

    kind: Literal["file"] = "file"
    path: str
    folder: str | None = None
    """In the artifacts; None is their top."""


Logged = Params | Points | Tags
"""What one call of `log_batch` takes together."""
Entry = Annotated[
    Opening | Params | Points | Tags | Untagging | Status | Text | File,
    Field(discriminator="kind"),
]


class Line(BaseModel):
    """The entries of one event, which are on disk all or not at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Counted from 1 within a study."""
    entries: tuple[Entry, ...]


def values_of(entry: Logged) -> int:
    """How many params, points or tags an entry has."""
    match entry:
        case Params():
            return len(entry.params)
        case Points():
            return len(entry.metrics)
        case Tags():
            return len(entry.tags)


def together(entries: Iterable[Entry], limit: int) -> list[Entry]:
    """The first of a run's entries that go in one call of at most `limit` values, or else the first alone."""
    batch: list[Entry] = []
    values = 0
    for entry in entries:
        if not isinstance(entry, Logged):
            return batch or [entry]
        values += values_of(entry)
        if batch and values > limit:
            break
        batch.append(entry)
    return batch
