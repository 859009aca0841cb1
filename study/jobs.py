"""What a study runs: the job that Tune hands to a trial, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from study.baselines import baseline_search
from study.config import StudyConfig
from study.replicates import replicate_config
from study.results import Key, Role, TrialRow, Value, is_searched, label_of, place_of
from study.screening import screening_search
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
    of: str = ""
    """As `TrialRow.of`."""
    until: int | None = None
    """The epoch after which it is to wait, if it trains in pieces."""

    def to_dict(self) -> dict[str, Any]:
        """As Tune carries it."""
        return {
            "role": self.role,
            "number": self.number,
            "sample": dict(self.sample),
            "split": self.split,
            "of": self.of,
            "until": self.until,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """What `to_dict` gave."""
        return cls(**{name: values[name] for name in values})

    @classmethod
    def of_row(cls, row: TrialRow, study: StudyConfig) -> Job:
        """The job that a row of the ledger is about."""
        job = cls(row.role, row.number, of=row.of)
        searched = job._search(study).search
        sample = {path: row.params[path] for path in searched if path in row.params}
        return replace(job, sample=sample)

    @property
    def key(self) -> Key:
        """Of its row in the ledger."""
        return self.role, self.of, self.number

    @property
    def label(self) -> str:
        """As its row's."""
        return label_of(self.role, self.number, self.of)

    @property
    def is_searched(self) -> bool:
        """Whether Optuna drew it, and it is to be trained, or screened."""
        is_drawn = self.role == "screening" or is_searched(self.role, self.of)
        return self.split is None and is_drawn

    def replicate(self, number: int) -> Job:
        """The same hyperparameters once more, with another seed."""
        return Job("replicate", number, dict(self.sample), of=self.label)

    def config(self, study: StudyConfig) -> TrialConfig:
        """Everything that this run depends on."""
        match self.role, self.of:
            case "teacher", _:
                return study.teacher_training()
            case "baseline", "":
                return study.baseline()
            case "replicate", _:
                return replicate_config(study, self._original.config(study), self.number)
            case _:
                return self._search(study).trial(self.sample)

    def folder(self, study: StudyConfig) -> Path:
        """Its own folder, on this node."""
        return study.folder / place_of(*self._place)

    def bucket(self, study: StudyConfig) -> str | None:
        """URI of its own part of the study's bucket, if that has one."""
        if study.bucket is None:
            return None
        return within(study.bucket, place_of(*self._place).as_posix())

    @property
    def _place(self) -> tuple[Role, int, str]:
        return self.role, self.number, self.of

    @property
    def _original(self) -> Job:
        """Of a replicate, what it repeats."""
        match self.of.split():
            case ["trial", number]:
                return Job("trial", int(number), self.sample)
            case ["baseline", name, number]:
                return Job("baseline", int(number), self.sample, of=name)
            case _:
                return Job("baseline")

    def _search(self, study: StudyConfig) -> StudyConfig:
        """The study that its hyperparameters were drawn by."""
        match self.role, self.of:
            case "replicate", _:
                return self._original._search(study)
            case "baseline", ("none" | "kd") as name:
                return baseline_search(study, name)
            case "screening", _:
                return screening_search(study)
            case _:
                return study

    def shown_params(self) -> dict[str, Value]:
        """The sampled values, and a sampled decomposition also as `distill.k` and `distill.n`."""
        return {**self.sample, **decomposition_params(self.sample.get("distill.decomposition"))}


def decomposition_params(decomposition: object) -> dict[str, Value]:
    """`5/2` → `distill.k: 5, distill.n: 2`; nothing for None."""
    if decomposition is None:
        return {}
    parsed = Decomposition.parse(str(decomposition))
    return {"distill.k": parsed.k, "distill.n": parsed.n}
