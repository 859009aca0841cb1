"""What a study runs: the job that Tune hands to a trial, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from study.config import StudyConfig
from study.results import Role, TrialRow, Value, place_of
from trainable.config import TrialConfig
from trainable.places import within
from trainable.plan import Decomposition


@dataclass(frozen=True)
class Job:
    """One training run of the study, or a look at what came of it."""

    role: Role
    number: int = 0
    sample: dict[str, Value] = field(default_factory=dict[str, Value])
    """The sampled values of a trial, by dotted path."""
    split: Literal["val", "test"] | None = None
    """Where the network that it trained is to be scored; None trains it."""

    def to_dict(self) -> dict[str, Any]:
        """As Tune carries it."""
        return {
            "role": self.role,
            "number": self.number,
            "sample": dict(self.sample),
            "split": self.split,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """What `to_dict` gave."""
        return cls(values["role"], values["number"], dict(values["sample"]), values["split"])

    @classmethod
    def of(cls, row: TrialRow, study: StudyConfig) -> Job:
        """The job that a row of the ledger is about."""
        sample = {path: row.params[path] for path in study.search if path in row.params}
        return cls(row.role, row.number, sample)

    def config(self, study: StudyConfig) -> TrialConfig:
        """Everything that this run depends on."""
        match self.role:
            case "teacher":
                return study.teacher_training()
            case "baseline":
                return study.baseline()
            case _:
                return study.trial(self.sample)

    def folder(self, study: StudyConfig) -> Path:
        """Its own folder, on this node."""
        return study.folder / place_of(self.role, self.number)

    def bucket(self, study: StudyConfig) -> str | None:
        """URI of its own part of the study's bucket, if that has one."""
        if study.bucket is None:
            return None
        return within(study.bucket, place_of(self.role, self.number).as_posix())

    def shown_params(self) -> dict[str, Value]:
        """The sampled values, and a sampled decomposition also as `distill.k` and `distill.n`."""
        return {**self.sample, **decomposition_params(self.sample.get("distill.decomposition"))}


def decomposition_params(decomposition: object) -> dict[str, Value]:
    """`5/2` → `distill.k: 5, distill.n: 2`; nothing for None."""
    if decomposition is None:
        return {}
    parsed = Decomposition.parse(str(decomposition))
    return {"distill.k": parsed.k, "distill.n": parsed.n}
