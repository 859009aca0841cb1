from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainable.config import DataConfig
from trainable.data import opened
from trainable.data.pictures import fit
from trainable.data.sources import open_source
from trainable.data.store import check_data, open_dataset, open_test
from trainable.errors import DataError

Make = Callable[..., DataConfig]


@pytest.mark.parametrize("loader", ["auto", "streamed"])
def test_a_set_is_split_decoded_and_measured(parquet_set: Make, cache: Path, loader: str) -> None:
    config = parquet_set(val_fraction=0.25, loader=loader)
    data = open_dataset(config, cache)
    assert data.classes == ("ant", "bee", "cat")
    assert (data.channels, data.image_size) == (3, (8, 8))
    assert data.val is not None
    assert np.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert np.bincount(data.val.labels).tolist() == [1, 1, 1]
    raw = open_source(config, cache).split("train")
    assert sorted([*data.train.rows, *data.val.rows]) == list(range(12))
    for part in (data.train, data.val):
        expected = np.stack([fit(raw.image(int(row)), 3, None) for row in part.rows])
        assert np.array_equal(part.images(np.arange(len(part))), expected)
        assert part.streamed == (loader == "streamed")
        assert part.pixels is None if part.streamed else np.array_equal(part.pixels, expected)
    train = data.train.images(np.arange(9)) / 255
    assert data.mean == pytest.approx(train.mean((0, 2, 3)), rel=1e-9)
    assert data.std == pytest.approx(train.std((0, 2, 3)), rel=1e-9)


def test_without_validation_every_picture_trains(parquet_set: Make, cache: Path) -> None:
    data = open_dataset(parquet_set(val_fraction=0.0), cache)
    assert data.val is None
    assert len(data.train) == 12
    assert data.train.pixels is not None
    assert not data.train.pixels.flags.owndata, "the whole file is not copied"


def test_a_second_opening_reads_the_cache_alone(parquet_set, cache: Path, monkeypatch) -> None:
    config = parquet_set()
    first = open_dataset(config, cache)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(opened, "decode_rows", never)
    monkeypatch.setattr(opened.Pictures, "of", never)
    again = open_dataset(config, cache)
    assert (again.mean, again.fingerprint) == (first.mean, first.fingerprint)


def test_a_damaged_cache_is_made_again(parquet_set: Make, cache: Path) -> None:
    config = parquet_set()
    pictures = open_dataset(config, cache).train.images(np.arange(2))
    gc.collect()  # A file that is still mapped must not shrink: reading it would be a bus error.
    (file,) = (cache / "data").glob("*.arrow")
    os.truncate(file, file.stat().st_size // 2)
    again = open_dataset(config, cache)
    assert np.array_equal(again.train.images(np.arange(2)), pictures)


def test_training_never_reads_the_test_split(parquet_set: Make, image_folder, cache: Path) -> None:
    config = parquet_set()
    (Path(config.root or "") / "test-00000-of-00001.parquet").unlink()
    open_dataset(config, cache)
    folders = image_folder()
    shutil.rmtree(Path(folders.root or "") / "test")
    open_dataset(folders, cache)
    for missing in (config, folders):
        with pytest.raises(DataError, match=r"must (match at least one file|be a folder)"):
            open_test(missing, cache)


def test_the_test_split_is_whole(parquet_set: Make, cache: Path) -> None:
    test = open_test(parquet_set(), cache)
    assert test.labels.tolist() == [0, 1, 2] * 2
    assert test.shape == (3, 8, 8)


def test_given_moments_are_taken(parquet_set: Make, cache: Path) -> None:
    data = open_dataset(parquet_set(mean=(0.1, 0.2, 0.3)), cache)
    assert data.mean == (0.1, 0.2, 0.3)
    assert data.std[0] > 0


def test_the_fingerprint_follows_what_a_teacher_sees(parquet_set: Make, cache: Path) -> None:
    config = parquet_set()
    changes = [
        {},
        {"val_fraction": 0.25},
        {"split_seed": 1},
        {"channels": 1},
        {"image_size": 4},
        {"image_size": 4, "resize": 6},
        {"mean": (0.5, 0.5, 0.5)},
    ]
    variants = [config.model_copy(update=change) for change in changes]
    keys = [open_dataset(variant, cache).fingerprint for variant in variants]
    assert len(set(keys)) == len(keys)
    same = config.model_copy(update={"batch_size": 7, "loader": "streamed", "decode_workers": 0})
    assert open_dataset(same, cache).fingerprint == keys[0]


def test_the_budget_decides_between_keeping_and_streaming(parquet_set: Make, cache: Path) -> None:
    tiny = 1e-7
    config = parquet_set(cache_budget_gib=tiny)
    assert open_dataset(config, cache).train.streamed
    assert check_data(config, cache).streamed
    with pytest.raises(DataError, match=r"data\.cache_budget_gib: loader resident needs at least"):
        open_dataset(config.model_copy(update={"loader": "resident"}), cache)
    roomy = open_dataset(config.model_copy(update={"cache_budget_gib": 4.0}), cache)
    assert not roomy.train.streamed
    # What a roomier study has cached does not lift the budget of this one.
    assert open_dataset(config, cache).train.streamed


def test_streamed_moments_come_from_an_evenly_spaced_sample(
    parquet_set: Make, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.data.opened.SAMPLED", 4)
    data = open_dataset(parquet_set(val_fraction=0.0, loader="streamed"), cache)
    sample = data.train.images(np.asarray([0, 4, 7, 11])) / 255
    assert data.mean == pytest.approx(sample.mean((0, 2, 3)), rel=1e-9)


@pytest.mark.parametrize("loader", ["auto", "streamed"])
def test_the_centre_of_resized_pictures_is_seen(
    image_folder: Make, cache: Path, loader: str
) -> None:
    config = image_folder(size=(10, 14), image_size=6, resize=8, loader=loader)
    part = open_dataset(config, cache).train
    raw = open_source(config, cache).split("train")
    expected = np.stack([fit(raw.image(int(row)), 3, 6, 8) for row in part.rows])
    assert np.array_equal(part.images(np.arange(len(part))), expected)


def test_different_sizes_need_an_image_size(image_folder: Make, cache: Path) -> None:
    config = image_folder(size=(10, 14), image_size=6)
    data = open_dataset(config, cache)
    assert data.image_size == (6, 6)


class TestCheck:
    def test_tells_what_there_is(self, parquet_set: Make, cache: Path) -> None:
        config = parquet_set(val_fraction=0.25)
        summary = check_data(config, cache)
        assert (summary.train, summary.val, summary.test) == (9, 3, 6)
        assert summary.classes == ("ant", "bee", "cat")
        assert (summary.channels, summary.image_size) == (3, (8, 8))
        assert summary.decoded_gib == pytest.approx(18 * 192 / 2**30)
        assert (summary.streamed, summary.overlap) == (False, 0)
        assert summary.fingerprint == open_dataset(config, cache).fingerprint

    @pytest.mark.parametrize("loader", ["auto", "streamed"])
    def test_counts_test_pictures_that_are_trained_on(
        self, parquet_set: Make, make_pictures, encode, cache: Path, loader: str
    ) -> None:
        images = [encode(p) for p in make_pictures(12)]
        fresh = [encode(p) for p in make_pictures(1, seed=9)]
        config = parquet_set(
            (images, [0, 1, 2] * 4), (images[:2] + fresh, [0, 1, 2]), loader=loader
        )
        assert check_data(config, cache).overlap == 2

    @pytest.mark.parametrize("loader", ["auto", "streamed"])
    def test_reports_everything_at_once(
        self, parquet_set: Make, make_pictures, encode, cache: Path, loader: str
    ) -> None:
        good = [encode(p) for p in make_pictures(20)]
        broken = [b"broken"] * 8
        odd = encode(make_pictures(1, (9, 9))[0])
        labels = [0] * 14 + [1] * 14 + [7]
        config = parquet_set((good + broken + [odd], labels), (good[:2], [0, -3]), loader=loader)
        with pytest.raises(DataError) as caught:
            check_data(config, cache)
        text = str(caught.value)
        assert text.count("must be a readable picture (it is none of JPEG, PNG,") == 5
        assert "all 29 pictures of a split must be readable, got 8 corrupt ones" in text
        assert "data.image_size: must be set where pictures differ in size" in text
        assert "8×8 (20), 9×9 (1)" in text
        assert "(train): labels must be in 0 .. 2, one for each class, got 7 at row 28" in text
        assert "(test): labels must be in 0 .. 2, one for each class, got -3 at row 1" in text
        assert "(train): every class must have a picture in it, got without any: cat" in text
        assert "(test): every class must have a picture in it, got without any: bee, cat" in text
        assert len(caught.value.problems) == 11

    def test_a_class_missing_in_the_test_split_is_named(self, image_folder, cache: Path) -> None:
        config = image_folder()
        shutil.rmtree(Path(config.root or "") / "test" / "bee")
        told = r"\(test\): every class must .* got without any: bee; .* remove the class from both splits"
        with pytest.raises(DataError, match=told):
            check_data(config, cache)

    @pytest.mark.parametrize("loader", ["auto", "streamed"])
    def test_a_missing_label_is_not_said_to_be_a_number(
        self, parquet_set: Make, make_pictures, encode, cache: Path, loader: str
    ) -> None:
        images = [encode(picture) for picture in make_pictures(6)]
        config = parquet_set((images, [0, None, 1, 2, 1, 2]), loader=loader, val_fraction=0.0)
        with pytest.raises(DataError, match="each class, got -1 or no label at row 1; correct"):
            check_data(config, cache)

    @pytest.mark.parametrize("loader", ["auto", "streamed"])
    def test_pictures_that_are_all_alike_are_refused_before_anything_is_trained(
        self, parquet_set: Make, encode, cache: Path, loader: str
    ) -> None:
        dark = encode(np.zeros((8, 8, 3), np.uint8))
        config = parquet_set(([dark] * 12, [0, 1, 2] * 4), loader=loader)
        with pytest.raises(
            DataError, match=r"data\.std: channel 0 must vary .* got 0 in every pixel"
        ):
            check_data(config, cache)
        given = config.model_copy(update={"mean": (0.5,) * 3, "std": (0.5,) * 3})
        assert check_data(given, cache).train == 9

    @pytest.mark.parametrize("loader", ["auto", "streamed"])
    def test_a_split_without_pictures_is_named_with_what_is_taken_for_one(
        self, image_folder: Make, cache: Path, loader: str
    ) -> None:
        config = image_folder(loader=loader)
        for file in (Path(config.root or "") / "test").glob("*/*.png"):
            file.rename(file.with_suffix(".npy"))
        told = r"^\S+folders/test: must have pictures in its classes' folders, got none; .*\.jpg, "
        with pytest.raises(DataError, match=told) as caught:
            check_data(config, cache)
        assert len(caught.value.problems) == 1

    @pytest.mark.parametrize("loader", ["auto", "streamed"])
    def test_a_class_of_the_test_split_alone_is_named_also_once_pictures_are_cached(
        self, image_folder: Make, cache: Path, loader: str
    ) -> None:
        config = image_folder(loader=loader)
        check_data(config, cache)
        test = Path(config.root or "") / "test"
        shutil.copytree(test / "bee", test / "cow")
        told = r"test: must have the same class folders as train, got cow; .*train folders with"
        with pytest.raises(DataError, match=told):
            check_data(config, cache)

    def test_a_folder_above_the_classes_is_one_class(self, image_folder: Make, cache: Path) -> None:
        config = image_folder()
        root = Path(config.root or "")
        for split in ("train", "test"):
            (root / split).rename(root / "all")
            (root / split).mkdir()
            (root / "all").rename(root / split / "mine")
        told = r"\(train\): there must be 2 classes or more to tell apart, got mine; name them"
        with pytest.raises(DataError, match=told):
            check_data(config, cache)

    def test_an_empty_class_is_named(self, image_folder: Make, cache: Path) -> None:
        config = image_folder()
        (Path(config.root or "") / "train" / "cow").mkdir()
        with pytest.raises(DataError, match=r"\(train\): every class .* got without any: cow"):
            check_data(config, cache)
        with pytest.raises(DataError, match=r"\(train\): every class .* got without any: cow"):
            open_dataset(config, cache)

    def test_a_class_that_is_taken_away_leaves_no_labels_behind(
        self, image_folder: Make, cache: Path
    ) -> None:
        """An empty one, between others that have pictures: the labels of those after it were other ones."""
        config = image_folder()
        empty = Path(config.root or "") / "train" / "azure"  # between ant and bee
        empty.mkdir()
        with pytest.raises(DataError, match="got without any: azure"):
            check_data(config, cache)
        empty.rmdir()
        assert set(open_dataset(config, cache).train.labels.tolist()) == {0, 1}

    def test_a_class_of_one_picture_cannot_be_validated(self, image_folder, cache: Path) -> None:
        config = image_folder()
        for number in (1, 2, 3):
            (Path(config.root or "") / "train" / "bee" / f"{number}.png").unlink()
        for attempt in (check_data, open_dataset):
            with pytest.raises(DataError, match=r"every class must have 2 pictures.*: bee"):
                attempt(config, cache)
        assert check_data(config.model_copy(update={"val_fraction": 0.0}), cache).train == 5

    def test_splits_of_different_sizes_are_reported(
        self, parquet_set: Make, make_pictures, encode, cache: Path
    ) -> None:
        small = [encode(p) for p in make_pictures(3, (4, 5))]
        config = parquet_set(test=(small, [0, 1, 2]))
        with pytest.raises(DataError, match=r"data\.image_size: .* got 8×8 and 4×5"):
            check_data(config, cache)
        assert check_data(config.model_copy(update={"image_size": 4}), cache).image_size == (4, 4)

    def test_both_splits_missing_are_two_problems(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            check_data(DataConfig(source="parquet", root=str(tmp_path)), cache)
        paths = [problem.path.rsplit("/", 1)[-1] for problem in caught.value.problems]
        assert paths == ["train-*.parquet", "test-*.parquet"]

    def test_a_streamed_set_is_decoded_once(self, parquet_set, cache: Path, monkeypatch) -> None:
        config = parquet_set(loader="streamed")
        first = check_data(config, cache)

        def never(*_: object, **__: object) -> None:
            raise AssertionError("decoded again")

        monkeypatch.setattr(opened, "decode_rows", never)
        assert check_data(config, cache) == first
