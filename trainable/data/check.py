"""Looking at a whole data set once, before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainable.config import DataConfig
from trainable.data.classes import Classes, Rows
from trainable.data.labels import label_problems
from trainable.data.opened import GIB, Opened, label_place, open_split, train_fingerprint
from trainable.data.pictures import size_text
from trainable.data.sources import Source, SplitName, open_source
from trainable.errors import DataError, Problem
from trainable.places import cache_folder


@dataclass(frozen=True)
class DataSummary:
    """What a data set holds."""

    classes: tuple[str, ...]
    """Names in the order of their labels, without the unseen ones."""
    train: int
    """Pictures that students are trained on."""
    left_out: int
    """Training pictures that `data.subset` leaves out: a teacher is trained on them as well."""
    val: int
    """Pictures held out of the training split for validation."""
    test: int
    unseen_classes: tuple[str, ...]
    """Classes that no network is trained on, whose pictures are in none of these counts."""
    unseen: int
    """Their pictures, of both splits."""
    channels: int
    image_size: tuple[int, int]
    """Height and width in pixels, as the networks see them."""
    fingerprint: str
    """As `Dataset.fingerprint`."""
    decoded_gib: float
    """Size of both splits as uint8."""
    streamed: bool
    """Whether the training split is decoded anew in every epoch."""
    overlap: int
    """Test pictures, also unseen ones, whose pixels occur among the others of the training split."""


def check_data(config: DataConfig, cache: Path | None = None) -> DataSummary:
    """Decode the training and the test split, filling the node's cache, and report all faults.

    A streamed set is decoded as well, to see that it can be; that it could is remembered in the
    cache folder, under the key of its content.

    Raises:
        DataError: With everything that is wrong: missing files or splits, corrupt pictures,
            pictures of differing sizes without `data.image_size`, labels out of range, classes
            without pictures, unseen classes that are not there, pictures that are all alike.
    """
    cache = cache or cache_folder()
    source = open_source(config, cache)
    problems: list[Problem] = []
    try:
        Classes.of(source.classes, config.unseen_classes)
    except DataError as error:
        problems += error.problems
        config = config.model_copy(update={"unseen_classes": None})  # to see all that is wrong
    train = _check_split(source, "train", config, cache, problems)
    test = _check_split(source, "test", config, cache, problems)
    if train is not None and test is not None and train.shape != test.shape:
        problems.append(
            Problem(
                "data.image_size",
                "must be set where train and test pictures differ in size",
                "set it to the side in pixels that the networks shall see",
                f"{size_text(train.shape)} and {size_text(test.shape)}",
            )
        )
    if train is None or test is None or problems:
        raise DataError(dict.fromkeys(problems))
    train.normalization(train.carved(config)[0], config, cache)
    return _summary(config, train, test, _overlap(train, test, cache))


def _check_split(
    source: Source, name: SplitName, config: DataConfig, cache: Path, problems: list[Problem]
) -> Opened | None:
    """Open a split and see each of its pictures; what is wrong is added to `problems`."""
    opened = None
    try:
        opened = open_split(source, name, config, cache)
        opened.measured(_all_rows(opened), cache)
    except DataError as error:
        problems += error.problems
    try:
        labels = source.split(name).labels if opened is None else opened.labels
        classes = Classes.of(source.classes, config.unseen_classes)
        carves = name == "train" and config.val_fraction > 0
        problems += label_problems(label_place(config, name), labels, classes, carves=carves)
    except DataError as error:
        problems += error.problems
    return opened


def _overlap(train: Opened, test: Opened, cache: Path) -> int:
    known = train.measured(_all_rows(train), cache).hashes
    return int(np.isin(test.measured(_all_rows(test), cache).hashes, known).sum())


def _all_rows(opened: Opened) -> Rows:
    return np.arange(len(opened.labels), dtype=np.int64)


def _summary(config: DataConfig, train: Opened, test: Opened, overlap: int) -> DataSummary:
    kept, held_out = train.carved(config)
    used = train.subset(kept, config)
    unseen = [len(split.rows_of(unseen=True)) for split in (train, test)]
    channels, height, width = train.shape
    return DataSummary(
        classes=train.classes.seen,
        train=len(used),
        left_out=len(kept) - len(used),
        val=len(held_out),
        test=len(test.labels) - unseen[1],
        unseen_classes=train.classes.unseen,
        unseen=sum(unseen),
        channels=channels,
        image_size=(height, width),
        fingerprint=train_fingerprint(train, config),
        decoded_gib=(train.nbytes + test.nbytes) / GIB,
        streamed=train.pictures is not None,
        overlap=overlap,
    )
