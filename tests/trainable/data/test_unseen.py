"""Classes that no network is trained on: what is left of a set without them, and they themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainable.config import DataConfig
from trainable.data.sources import open_source
from trainable.data.store import (
    Split,
    check_data,
    open_dataset,
    open_test,
    open_unseen_test,
)
from trainable.errors import DataError

Make = Callable[..., DataConfig]
HIDDEN = ("9", "3")


def digits(**settings: object) -> DataConfig:
    return DataConfig.model_validate({"source": "digits", **settings})


def of(config: DataConfig, cache: Path) -> tuple[Split, Split, Split, Split, Split]:
    """Training, validation and test pictures, and the unseen ones of both splits."""
    data, unseen_test = open_dataset(config, cache), open_unseen_test(config, cache)
    assert data.val is not None
    assert data.unseen is not None
    assert unseen_test is not None
    return data.train, data.val, open_test(config, cache), data.unseen, unseen_test


@pytest.mark.parametrize("loader", ["auto", "streamed"])
def test_unseen_classes_are_in_no_split_and_the_others_are_renumbered(
    cache: Path, loader: str
) -> None:
    config = digits(unseen_classes=HIDDEN, loader=loader)
    train, val, test, unseen, unseen_test = of(config, cache)
    assert open_dataset(config, cache).classes == ("0", "1", "2", "4", "5", "6", "7", "8")
    source = open_source(config, cache)
    seen_names, hidden_names = np.asarray([0, 1, 2, 4, 5, 6, 7, 8]), np.asarray([3, 9])
    for part, name in ((train, "train"), (val, "train"), (test, "test")):
        assert np.array_equal(seen_names[part.labels], source.split(name).labels[part.rows])
    for part, name in ((unseen, "train"), (unseen_test, "test")):
        assert np.array_equal(hidden_names[part.labels], source.split(name).labels[part.rows])
    for name, parts in (("train", (train, val, unseen)), ("test", (test, unseen_test))):
        rows = np.concatenate([part.rows for part in parts])
        assert sorted(rows) == list(range(len(source.split(name))))
    assert unseen.images(np.arange(3)).shape == (3, 3, 8, 8)


def test_what_is_held_out_does_not_depend_on_other_classes(cache: Path) -> None:
    whole = open_dataset(digits(), cache)
    part = open_dataset(digits(unseen_classes=HIDDEN), cache)
    assert whole.val is not None
    assert part.val is not None
    assert part.unseen is not None
    assert whole.unseen is None
    assert sorted(set(whole.val.rows) - set(part.unseen.rows)) == sorted(part.val.rows)


@pytest.mark.parametrize("loader", ["auto", "streamed"])
def test_moments_are_of_the_pictures_that_are_trained_on(cache: Path, loader: str) -> None:
    data = open_dataset(digits(unseen_classes=HIDDEN, loader=loader), cache)
    pixels = data.train.images(np.arange(len(data.train))) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-9)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-9)
    assert data.mean != open_dataset(digits(), cache).mean


def test_the_fingerprint_follows_which_classes_are_unseen(cache: Path) -> None:
    hidden = [None, HIDDEN, ("3", "8"), HIDDEN[::-1]]
    keys = [open_dataset(digits(unseen_classes=names), cache).fingerprint for names in hidden]
    assert len(set(keys)) == 3
    assert keys[1] == keys[3], "their order is that of the data set"
    assert check_data(digits(unseen_classes=HIDDEN), cache).fingerprint == keys[1]


def test_torchvisions_classes_can_be_hidden(fashion_mnist: DataConfig, cifar, cache: Path) -> None:
    names = open_source(fashion_mnist, cache).classes
    config = fashion_mnist.model_copy(update={"unseen_classes": names[:-2], "val_fraction": 0.0})
    data = open_dataset(config, cache)
    assert data.classes == names[-2:]
    assert data.unseen is not None
    assert set(data.unseen.labels) == set(range(8))
    three = cifar("cifar10").model_copy(update={"unseen_classes": ("ant", "bee")})
    with pytest.raises(DataError, match=r"must leave at least 2 of the 3 classes"):
        open_dataset(three, cache)


def test_folders_can_be_hidden(image_folder: Make, cache: Path) -> None:
    config = image_folder()
    for split in ("train", "test"):
        for name in ("asp", "cow"):
            folder = Path(config.root or "") / split / name
            folder.mkdir()
            for picture in (Path(config.root or "") / split / "bee").iterdir():
                (folder / picture.name).write_bytes(picture.read_bytes())
    hidden = config.model_copy(update={"unseen_classes": ("asp", "cow"), "val_fraction": 0.25})
    train, val, test, unseen, unseen_test = of(hidden, cache)
    assert open_dataset(hidden, cache).classes == ("ant", "bee")
    assert [len(part) for part in (train, val, test, unseen, unseen_test)] == [6, 2, 4, 8, 4]
    assert unseen_test.labels.tolist() == [0, 0, 1, 1]
    (Path(config.root or "") / "test" / "cow" / "0.png").unlink()
    with pytest.raises(DataError, match=r"\(test\): every unseen class must have 2 .*fewer: cow"):
        check_data(hidden, cache)


def test_training_reads_no_unseen_picture_of_the_test_split(
    parquet_set: Make, make_pictures, encode, cache: Path
) -> None:
    images, names = [encode(p) for p in make_pictures(12)], ("ant", "bee", "cat", "dog")
    config = parquet_set((images, [0, 1, 2, 3] * 3), names=names, unseen_classes=("bee", "dog"))
    (Path(config.root or "") / "test-00000-of-00001.parquet").unlink()
    assert open_dataset(config, cache).unseen is not None
    with pytest.raises(DataError, match="must match at least one file"):
        open_unseen_test(config, cache)


def test_the_check_counts_them_apart(cache: Path) -> None:
    whole, summary = check_data(digits(), cache), check_data(digits(unseen_classes=HIDDEN), cache)
    assert summary.unseen_classes == ("3", "9")
    assert len(summary.classes) == 8
    parts = of(digits(unseen_classes=HIDDEN), cache)
    assert (summary.train, summary.val, summary.test) == tuple(len(part) for part in parts[:3])
    assert summary.unseen == len(parts[3]) + len(parts[4])
    assert (whole.unseen_classes, whole.unseen) == ((), 0)
    total = whole.train + whole.val + whole.test
    assert summary.train + summary.val + summary.test + summary.unseen == total


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("8", "cat10"), r"must name classes of the data set, got cat10; choose from 0, 1, 2"),
        (("8", "09"), r"must name classes of the data set, got 09; did you mean 9\?"),
        (("8",), r"must name at least 2 classes, each once, got 8; name two or more"),
        ((), r"must name at least 2 classes, each once, got none"),
        (("8", "8", "9"), r"must name at least 2 classes, each once, got 8, 8, 9"),
        (tuple("012345678"), r"must leave at least 2 of the 10 classes to train on, got 0, 1"),
    ],
)
def test_what_cannot_be_hidden_is_refused(names: tuple[str, ...], words: str, cache: Path) -> None:
    config = digits(unseen_classes=names)
    for attempt in (check_data, open_dataset, open_test, open_unseen_test):
        with pytest.raises(DataError, match=r"data\.unseen_classes: " + words):
            attempt(config, cache)


def test_unknown_names_are_reported_with_all_else(
    parquet_set, encode, make_pictures, cache
) -> None:
    images = [encode(p) for p in make_pictures(11)] + [b"broken"]
    config = parquet_set((images, [0, 1, 2] * 4), unseen_classes=("beee", "cow"))
    with pytest.raises(DataError) as caught:
        check_data(config, cache)
    text = str(caught.value)
    assert "got beee; did you mean bee?" in text
    assert "got cow; choose from ant, bee, cat" in text
    assert "must be a readable picture" in text
