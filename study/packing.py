"""How many trials share a GPU where `resources.gpus_per_worker` is `auto`: settled once, kept in the study's folder."""

from __future__ import annotations

import math
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from study.config import StudyConfig

_FILE = "packing.json"


class Packing(BaseModel):
    """What `auto` was settled to, for as long as the study lives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int
    """That share a GPU."""
    told: str
    """Why, with the figures, in a line."""

    @property
    def gpus(self) -> float:
        """Of one trial, rounded down as Ray rounds, so that all of them fit."""
        return math.floor(10_000 / self.trials) / 10_000


def with_gpus(config: StudyConfig, gpus: float) -> StudyConfig:
    """The config with so many GPUs a worker."""
    resources = config.resources.model_copy(update={"gpus_per_worker": gpus})
    return config.model_copy(update={"resources": resources})


def as_packed(config: StudyConfig, folder: Path) -> StudyConfig:
    """The config with `auto` as the study in this folder was settled, if it was."""
    if config.resources.gpus_per_worker != "auto" or (kept := packing_of(folder)) is None:
        return config
    return with_gpus(config, kept.gpus)


def packing_of(folder: Path) -> Packing | None:
    """What `keep_packing` wrote, if it did."""
    path = folder / _FILE
    if not path.is_file():
        return None
    return Packing.model_validate_json(path.read_text(encoding="utf-8"))


def keep_packing(packing: Packing, folder: Path) -> None:
    """Write it for who resumes the study."""
    temporary = folder / f"{_FILE}.tmp"
    temporary.write_text(packing.model_dump_json(indent=2), encoding="utf-8")
    os.replace(temporary, folder / _FILE)
