"""Small data sets on disk, in the formats that the sources read."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision import datasets

from trainable.config import DataConfig


def pictures(count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> np.ndarray:
    """uint8 (count, H, W, 3) of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def make_pictures() -> Callable[..., np.ndarray]:
    return pictures


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    columns: tuple[str, str] = ("img", "fine_label"),
    names: Sequence[str] | None = None,
    plain: bool = False,
    row_group_size: int = 4,
) -> None:
    image: Any = pa.array(images, pa.binary())
    if not plain:
        image = pa.array([{"bytes": data, "path": None} for data in images])
    table = pa.table({columns[0]: image, columns[1]: pa.array(labels)})
    if names is not None:
        info = {"info": {"features": {columns[1]: {"names": list(names)}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.fixture
def parquet_file() -> Callable[..., None]:
    return write_parquet


@pytest.fixture
def parquet_set(tmp_path: Path) -> Callable[..., DataConfig]:
    """Two training files and a test file of three classes; any split can be given otherwise."""

    def make(
        train: tuple[Sequence[bytes | None], Sequence[Any]] | None = None,
        test: tuple[Sequence[bytes | None], Sequence[Any]] | None = None,
        names: Sequence[str] | None = ("ant", "bee", "cat"),
        **settings: Any,
    ) -> DataConfig:
        root = tmp_path / "parquet"
        train = train or ([encoded(p) for p in pictures(12)], [i % 3 for i in range(12)])
        test = test or ([encoded(p) for p in pictures(6, seed=1)], [i % 3 for i in range(6)])
        half = len(train[0]) // 2
        for part, rows in enumerate((slice(0, half), slice(half, None))):
            write_parquet(
                root / f"train-{part:05}-of-00002.parquet",
                train[0][rows],
                train[1][rows],
                names=names,
            )
        write_parquet(root / "test-00000-of-00001.parquet", *test, names=names)
        return DataConfig(source="parquet", root=str(root), **settings)

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., DataConfig]:
    """Classes `ant` and `bee`, 4 training and 2 test pictures each."""

    def make(size: tuple[int, int] = (8, 8), **settings: Any) -> DataConfig:
        root = tmp_path / "folders"
        for split, count in (("train", 4), ("test", 2)):
            for label, name in enumerate(("ant", "bee")):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for i, picture in enumerate(
                    pictures(count, size, seed=2 * label + (split == "test"))
                ):
                    Image.fromarray(picture).save(folder / f"{i}.png")
        return DataConfig(source="image_folder", root=str(root), **settings)

    return make


def write_cifar(root: Path, kind: Any, patch: pytest.MonkeyPatch, label_key: str) -> None:
    """Tiny files in CIFAR's format, with torchvision told their MD5."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)

    def dump(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(count: int, seed: int) -> dict[str, object]:
        data = pictures(count, (32, 32), seed).transpose(0, 3, 1, 2).reshape(count, -1)
        return {"data": data, label_key: [i % 3 for i in range(count)]}

    lists = {"train_list": kind.train_list, "test_list": kind.test_list}
    for seed, (attribute, files) in enumerate(lists.items()):
        entries = [dump(name, batch(12 // len(files) + 1, seed)) for name, _ in files]
        patch.setattr(kind, attribute, entries)
    name, digest = dump(kind.meta["filename"], {kind.meta["key"]: ["ant", "bee", "cat"]})
    patch.setattr(kind, "meta", {"filename": name, "key": kind.meta["key"], "md5": digest})


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataConfig]:
    def make(source: str) -> DataConfig:
        root = tmp_path / source
        if source == "cifar10":
            write_cifar(root, datasets.CIFAR10, monkeypatch, "labels")
        else:
            write_cifar(root, datasets.CIFAR100, monkeypatch, "fine_labels")
        return DataConfig.model_validate({"source": source, "root": str(root)})

    return make


@pytest.fixture
def fashion_mnist(tmp_path: Path) -> DataConfig:
    folder = tmp_path / "fashion" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for stem, count in (("train", 20), ("t10k", 10)):
        pixels = pictures(count, (28, 28))[..., 0]
        header = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 28, 28))
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        header = b"".join(n.to_bytes(4, "big") for n in (0x801, count))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return DataConfig(source="fashion_mnist", root=str(tmp_path / "fashion"))
