from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainable.config import ColumnsConfig, DataConfig
from trainable.data.sources import Source, open_source
from trainable.errors import DataError

Make = Callable[..., DataConfig]


class SourceContract:
    """What the store relies on, whatever the pictures come from."""

    @pytest.fixture
    def source(self, config: DataConfig, cache: Path) -> Source:
        return open_source(config, cache)

    @pytest.mark.parametrize("name", ["train", "test"])
    def test_every_picture_has_a_label_among_the_classes(self, source: Source, name) -> None:
        split = source.split(name)
        assert split.labels.dtype == np.int64
        assert split.labels.shape == (len(split),)
        assert set(split.labels) == set(range(len(source.classes)))
        assert all(isinstance(label, str) for label in source.classes)

    @pytest.mark.parametrize("name", ["train", "test"])
    def test_pictures_are_uint8_height_width_channels(self, source: Source, name) -> None:
        split = source.split(name)
        for index in (0, len(split) - 1):
            image = split.image(index)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] in (1, 3)

    def test_pictures_have_names_of_their_own(self, source: Source) -> None:
        split = source.split("train")
        assert len({split.name(index) for index in range(len(split))}) == len(split)

    def test_a_pickled_split_gives_the_same_pictures(self, source: Source) -> None:
        split = source.split("train")
        split.image(0)
        again = pickle.loads(pickle.dumps(split))
        assert np.array_equal(again.image(5), split.image(5))

    def test_threads_may_read_at_once(self, source: Source) -> None:
        split = source.split("train")
        alone = [split.image(index) for index in range(8)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(source.split("train").image, range(8)))
        assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))

    def test_fingerprints_are_stable_and_tell_the_splits_apart(
        self, source: Source, config: DataConfig, tmp_path: Path
    ) -> None:
        keys = [source.fingerprint("train"), source.fingerprint("test")]
        assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
        assert keys[0] != keys[1]
        elsewhere = open_source(config, tmp_path / "another cache")
        assert keys == [elsewhere.fingerprint("train"), elsewhere.fingerprint("test")]

    def test_class_names_can_be_given(self, config: DataConfig, source: Source) -> None:
        count = len(source.classes)
        if config.source == "image_folder":
            pytest.skip("its names are the folders'")
        names = tuple(f"class {label}" for label in range(count))
        given = config.model_copy(update={"classes": names})
        assert open_source(given).classes == names


class TestDigits(SourceContract):
    @pytest.fixture
    def config(self) -> DataConfig:
        return DataConfig(source="digits")

    def test_holds_out_a_fifth_of_each_class_and_no_picture_twice(self, source: Source) -> None:
        train, test = source.split("train"), source.split("test")
        assert len(train) + len(test) == 1797
        share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
        assert np.all(np.abs(share - 0.2) < 0.01)

    def test_values_span_the_bytes(self, source: Source) -> None:
        split = source.split("train")
        values = np.concatenate([split.image(i).ravel() for i in range(100)])
        assert (values.min(), values.max()) == (0, 255)
        assert split.image(0).shape == (8, 8, 1)

    def test_refuses_another_number_of_classes(self) -> None:
        with pytest.raises(DataError, match=r"data\.classes: must name the 10 classes.*got 2"):
            open_source(DataConfig(source="digits", classes=("a", "b")))


class TestCifar10(SourceContract):
    @pytest.fixture
    def config(self, cifar: Callable[[str], DataConfig]) -> DataConfig:
        return cifar("cifar10")

    def test_a_missing_set_names_the_remedy(self, tmp_path: Path) -> None:
        source = open_source(DataConfig(source="cifar10", root=str(tmp_path)))
        for attempt in (
            lambda: source.classes,
            lambda: source.split("train"),
            lambda: source.fingerprint("test"),
        ):
            with pytest.raises(DataError, match=r"set data\.download: true") as caught:
                attempt()
            assert "download=True" not in str(caught.value)

    def test_does_not_download_what_is_there(self, config: DataConfig) -> None:
        source = open_source(config.model_copy(update={"download": True}))
        assert source.classes == ("ant", "bee", "cat")


class TestCifar100(SourceContract):
    @pytest.fixture
    def config(self, cifar: Callable[[str], DataConfig]) -> DataConfig:
        return cifar("cifar100")


class TestFashionMnist(SourceContract):
    @pytest.fixture
    def config(self, fashion_mnist: DataConfig) -> DataConfig:
        return fashion_mnist

    def test_is_grey(self, source: Source) -> None:
        assert source.split("train").image(0).shape == (28, 28, 1)
        assert source.classes[0] == "T-shirt/top"

    def test_a_truncated_file_is_reported(self, config: DataConfig, source: Source) -> None:
        file = Path(config.root or "") / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
        os.truncate(file, 100)
        with pytest.raises(DataError, match=r"data\.root: must hold fashion_mnist"):
            source.split("train")


class TestParquet(SourceContract):
    @pytest.fixture
    def config(self, parquet_set: Make) -> DataConfig:
        return parquet_set()

    def test_pictures_and_labels_run_on_over_files_and_row_groups(
        self, source: Source, make_pictures: Callable[..., np.ndarray]
    ) -> None:
        split = source.split("train")
        assert split.labels.tolist() == [0, 1, 2] * 4
        for index in (11, 0, 6, 3, 5):
            assert np.array_equal(split.image(index), make_pictures(12)[index])
        assert split.name(5) == "train-00000-of-00002.parquet row 5"
        assert split.name(11) == "train-00001-of-00002.parquet row 5"

    def test_class_names_come_from_the_schema(self, source: Source) -> None:
        assert source.classes == ("ant", "bee", "cat")

    def test_class_names_are_numbers_without_any(self, parquet_set: Make) -> None:
        assert open_source(parquet_set(names=None)).classes == ("0", "1", "2")

    def test_strings_are_sorted_into_classes(
        self, parquet_set: Make, make_pictures, encode
    ) -> None:
        images = [encode(p) for p in make_pictures(4)]
        config = parquet_set((images, ["b", "a", "c", "a"]), (images, ["a", "b", "c", None]), None)
        source = open_source(config)
        assert source.classes == ("a", "b", "c")
        assert source.split("train").labels.tolist() == [1, 0, 2, 0]
        assert source.split("test").labels.tolist() == [0, 1, 2, -1]
        other = open_source(config.model_copy(update={"classes": ("c", "b", "a")}))
        assert other.split("train").labels.tolist() == [1, 2, 0, 2]
        assert other.fingerprint("train") != source.fingerprint("train")

    def test_a_string_that_is_no_class_is_named(self, parquet_set, make_pictures, encode) -> None:
        images = [encode(p) for p in make_pictures(2)]
        source = open_source(parquet_set((images, ["a", "b"]), (images, ["a", "z"]), None))
        with pytest.raises(DataError, match=r"must hold only the 2 classes.*got 'z'"):
            source.split("test")

    def test_plain_bytes_and_other_column_names(
        self, tmp_path: Path, parquet_file, make_pictures, encode
    ) -> None:
        image = make_pictures(2)
        for split in ("train", "test"):
            parquet_file(
                tmp_path / f"{split}-0.parquet",
                [encode(p) for p in image],
                np.asarray([1, 0], dtype=np.uint8),
                columns=("picture", "kind"),
                plain=True,
            )
        columns = ColumnsConfig(image="picture", label="kind")
        split = open_source(
            DataConfig(source="parquet", root=str(tmp_path), columns=columns)
        ).split("train")
        assert np.array_equal(split.image(1), image[1])
        assert split.labels.tolist() == [1, 0]

    @pytest.mark.parametrize("role", ["image", "label"])
    def test_a_missing_column_names_those_that_are_there(self, parquet_set: Make, role) -> None:
        config = parquet_set(columns=ColumnsConfig(**{role: "photo"}))
        message = (
            rf"data\.columns\.{role}: must be a column of train-.*got 'photo'; name one of img"
        )
        with pytest.raises(DataError, match=message):
            open_source(config).split("train")

    def test_columns_of_the_wrong_type_are_refused(self, parquet_set: Make) -> None:
        columns = ColumnsConfig(image="fine_label", label="img")
        source = open_source(parquet_set(columns=columns))
        with pytest.raises(DataError, match=r"data\.columns\.label: must be a column of integers"):
            source.split("train")
        source = open_source(parquet_set(columns=ColumnsConfig(image="fine_label")))
        with pytest.raises(DataError, match=r"data\.columns\.image: must be a column of bytes"):
            source.split("train")

    def test_a_corrupt_or_absent_picture_is_named(self, parquet_set, make_pictures, encode) -> None:
        good = encode(make_pictures(1)[0])
        images = [good, good[:60], b"nonsense", None]
        split = open_source(parquet_set((images, [0, 1, 2, 0]))).split("train")
        split.image(0)
        for index in (1, 2, 3):
            with pytest.raises(DataError, match=r"row \d: must be a readable picture"):
                split.image(index)

    def test_a_file_that_is_not_parquet_is_named(self, config: DataConfig, source: Source) -> None:
        (Path(config.root or "") / "train-00000-of-00002.parquet").write_bytes(b"PAR1 no more")
        with pytest.raises(DataError, match=r"train-00000-of-00002\.parquet: must be a readable"):
            source.split("train")

    def test_missing_files_are_named(self, config: DataConfig, source: Source) -> None:
        for file in Path(config.root or "").glob("test-*"):
            file.unlink()
        with pytest.raises(DataError, match=r"test-\*\.parquet: must match at least one file"):
            source.split("test")


class TestImageFolder(SourceContract):
    @pytest.fixture
    def config(self, image_folder: Make) -> DataConfig:
        return image_folder()

    def test_classes_are_sorted_folders_and_other_files_are_left_alone(
        self, config: DataConfig, source: Source
    ) -> None:
        root = Path(config.root or "")
        (root / "train" / "ant" / "notes.txt").write_text("no picture")
        (root / "train" / ".hidden").mkdir()
        (root / "train" / "bee" / "deeper").mkdir()
        shutil.move(root / "train" / "bee" / "0.png", root / "train" / "bee" / "deeper" / "0.PNG")
        assert source.classes == ("ant", "bee")
        assert source.split("train").labels.tolist() == [0] * 4 + [1] * 4

    def test_given_classes_set_the_order(self, config: DataConfig) -> None:
        given = open_source(config.model_copy(update={"classes": ("bee", "ant")}))
        assert given.split("train").name(0).endswith("train/bee/0.png")
        wrong = open_source(config.model_copy(update={"classes": ("bee", "cow")}))
        with pytest.raises(DataError, match=r"must name the folders of .*: ant, bee, got bee, cow"):
            wrong.split("train")

    def test_a_missing_test_split_is_named_and_val_is_not_taken_for_it(
        self, config: DataConfig, source: Source
    ) -> None:
        root = Path(config.root or "")
        shutil.move(root / "test", root / "val")
        with pytest.raises(DataError, match=r"folders/test: must be a folder.*rename val to test"):
            source.split("test")

    def test_a_test_class_that_is_not_trained_is_named(
        self, config: DataConfig, source: Source
    ) -> None:
        (Path(config.root or "") / "test" / "cow").mkdir()
        with pytest.raises(DataError, match="must have the same class folders as train, got cow"):
            source.split("test")

    def test_a_broken_picture_is_named_with_what_is_wrong_with_it(
        self, config: DataConfig, source: Source
    ) -> None:
        folder = Path(config.root or "") / "train" / "ant"
        (folder / "0.png").write_bytes(b"")
        (folder / "1.png").write_text("<!DOCTYPE html>")
        split = source.split("train")
        with pytest.raises(
            DataError, match=r"ant/0\.png: must be a readable picture \(it is empty\);"
        ):
            split.image(0)
        told = r"ant/1\.png: .* \(it is none of JPEG, PNG, WEBP, BMP, GIF, PPM or TIFF\); repair it"
        with pytest.raises(DataError, match=told) as caught:
            split.image(1)
        assert "BytesIO" not in str(caught.value)

    def test_a_link_that_leads_nowhere_is_named(self, config: DataConfig, source: Source) -> None:
        link = Path(config.root or "") / "train" / "ant" / "link.png"
        link.symlink_to("nowhere.png")
        with pytest.raises(
            DataError, match=r"ant/link\.png: must not be a link that leads nowhere"
        ):
            source.fingerprint("train")

    def test_the_fingerprint_follows_content_not_times(
        self, config: DataConfig, source: Source
    ) -> None:
        file = Path(config.root or "") / "train" / "ant" / "0.png"
        before = source.fingerprint("train")
        os.utime(file, (1, 1))
        assert source.fingerprint("train") == before
        changed = bytearray(file.read_bytes())
        changed[-1] ^= 1
        file.write_bytes(changed)
        assert source.fingerprint("train") != before

    def test_modes_of_pictures(self, config: DataConfig, source: Source) -> None:
        folder = Path(config.root or "") / "train" / "ant"
        shapes = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3}
        for number, mode in enumerate(shapes):
            Image.new(mode, (8, 8)).save(folder / f"{number}.png")
        Image.new("I;16", (8, 8)).save(folder / "6.png")
        transparent = Image.new("P", (8, 8))
        transparent.save(folder / "7.png", transparency=b"\0\1\2")
        split = source.split("train")
        assert [split.image(i).shape[2] for i in range(6)] == list(shapes.values())
        with pytest.raises(DataError, match=r"6\.png: must be a readable picture.*8 bits"):
            split.image(6)
        assert split.image(7).shape == (8, 8, 3)


@pytest.mark.parametrize("source", ["cifar100", "fashion_mnist", "parquet", "image_folder"])
def test_a_missing_root_is_one_clear_message(source: str, tmp_path: Path) -> None:
    for root in (None, str(tmp_path / "nowhere")):
        with pytest.raises(DataError, match=r"^data\.root: .*(needs|must be) a folder") as caught:
            open_source(DataConfig.model_validate({"source": source, "root": root}))
        assert len(caught.value.problems) == 1
