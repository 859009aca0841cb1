"""Which training pictures a study trains on, and which it holds out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from trainable.config import DataConfig
from trainable.data.classes import Classes
from trainable.data.labels import label_problems
from trainable.data.opened import carved, label_place
from trainable.data.sources import open_source
from trainable.errors import DataError
from trainable.places import cache_folder

Part = Literal["train", "validation", "unseen"]
"""`train` is what a teacher is trained on (students on `data.subset` of it), `validation` what trials are compared
on, `unseen` the pictures of `data.unseen_classes`."""


class Placed(NamedTuple):
    """A picture of the training split."""

    row: int
    """Its number in the split, from 0 on."""
    picture: str
    """Where it lies."""
    class_name: str
    part: Part


def parts_of(config: DataConfig, cache: Path | None = None) -> Iterator[Placed]:
    """Every picture of the training split, in its order; none is decoded. DataError for labels that are wrong."""
    cache = cache or cache_folder()
    source = open_source(config, cache)
    classes, raw = Classes.of(source.classes, config.unseen_classes), source.split("train")
    where, carves = label_place(config, "train"), config.val_fraction > 0
    if problems := label_problems(where, raw.labels, classes, carves=carves):
        raise DataError(problems)
    kept, held_out = carved(raw.labels, classes, config)
    part: dict[int, Part] = dict.fromkeys(kept.tolist(), "train")
    part |= dict.fromkeys(held_out.tolist(), "validation")
    for row, label in enumerate(raw.labels.tolist()):
        yield Placed(row, raw.name(row), source.classes[label], part.get(row, "unseen"))
