"""The data set of a trial: opened, split and measured; decoded once, shared by a node's processes.

A split within `data.cache_budget_gib` is decoded to uint8 once, into the node's cache folder, and
mapped from there by every trial; a larger one is streamed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trainable.config import DataConfig
from trainable.data.check import DataSummary, check_data
from trainable.data.labels import label_problems, range_problems
from trainable.data.opened import Opened, label_place, open_split, train_fingerprint
from trainable.data.sources import open_source
from trainable.data.split import Split
from trainable.errors import DataError
from trainable.places import cache_folder

__all__ = [
    "DataSummary",
    "Dataset",
    "Split",
    "check_data",
    "open_dataset",
    "open_test",
    "open_unseen_test",
]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The training and validation samples of a trial; its test split is opened by `open_test`."""

    classes: tuple[str, ...]
    """Names in the order of their labels, without the unseen ones."""
    channels: int
    image_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Of pixels in [0, 1], one a channel."""
    std: tuple[float, ...]
    """Of pixels in [0, 1], one a channel."""
    train: Split
    """What is trained on: `data.subset` of what is not held out."""
    val: Split | None
    """None where `data.val_fraction` is 0."""
    unseen: Split | None
    """The training split's pictures of `data.unseen_classes`, labels counted among those; None
    where there are none."""
    fingerprint: str
    """Hex key of the training split's content and of every setting that changes its pixels, what
    is held out of it or its normalization: what a cached teacher may be named by."""


def facts_of_data(data: Dataset) -> dict[str, str]:
    """What a network's outputs depend on of its data, for the file of its weights.

    One text of JSON: safetensors writes several in any order, and the same student's files would differ.
    """
    facts = {
        "classes": data.classes,
        "channels": data.channels,
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
    }
    return {"data": json.dumps(facts)}


def open_dataset(config: DataConfig, cache: Path | None = None) -> Dataset:
    """Open the training split, and hold out `val_fraction` of each class of it for validation.

    The test split is not read. Which pictures are held out depends on their labels' order,
    `val_fraction` and `split_seed` alone: not on which other classes are unseen. Mean and deviation
    are those of all pictures that are not held out, whatever `data.subset` leaves of them: students
    and their teacher see the same numbers.

    Args:
        config: Which data set, and how it is split.
        cache: The node's cache folder; None finds it (`places.cache_folder`).

    Raises:
        DataError: Missing files, labels out of range, classes with too few pictures, and, where
            the split is decoded by this call, corrupt pictures or differing sizes.
    """
    cache = cache or cache_folder()
    source = open_source(config, cache)
    opened = open_split(source, "train", config, cache)
    where, carves = label_place(config, "train"), config.val_fraction > 0
    if problems := label_problems(where, opened.labels, opened.classes, carves=carves):
        raise DataError(problems)
    kept, held_out = opened.carved(config)
    unseen = opened.rows_of(unseen=True)
    mean, std = opened.normalization(kept, config, cache)
    channels, height, width = opened.shape
    return Dataset(
        classes=opened.classes.seen,
        channels=channels,
        image_size=(height, width),
        mean=mean,
        std=std,
        train=opened.part(opened.subset(kept, config)),
        val=opened.part(held_out) if len(held_out) else None,
        unseen=opened.part(unseen) if len(unseen) else None,
        fingerprint=train_fingerprint(opened, config),
    )


def open_test(config: DataConfig, cache: Path | None = None) -> Split:
    """Open the test split alone, without unseen classes.

    Raises:
        DataError: As `open_dataset`; a class without test pictures is left to `check_data`.
    """
    opened = _opened_test(config, cache)
    return opened.part(opened.rows_of(unseen=False))


def open_unseen_test(config: DataConfig, cache: Path | None = None) -> Split | None:
    """Open the test split's pictures of `data.unseen_classes`, labels counted among those.

    None where there are none. Raises DataError as `open_test`.
    """
    if config.unseen_classes is None:
        return None
    opened = _opened_test(config, cache)
    return opened.part(opened.rows_of(unseen=True))


def _opened_test(config: DataConfig, cache: Path | None) -> Opened:
    cache = cache or cache_folder()
    opened = open_split(open_source(config, cache), "test", config, cache)
    if problems := range_problems(label_place(config, "test"), opened.labels, opened.classes):
        raise DataError(problems)
    return opened
