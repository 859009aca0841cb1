"""CIFAR-10, CIFAR-100 and Fashion-MNIST, read by torchvision."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torchvision import datasets

from trainable.config import DataConfig
from trainable.data.content import content_key
from trainable.data.faults import data_error
from trainable.data.sources.base import ArraySplit, SplitName, rename_classes, require_root
from trainable.errors import DataError

_KINDS: dict[str, type[Any]] = {
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "fashion_mnist": datasets.FashionMNIST,
}
_UNREADABLE = (AssertionError, EOFError, OSError, RuntimeError, ValueError)


class VisionSource:
    """One of torchvision's sets; torchvision itself checks the files of CIFAR against their MD5."""

    def __init__(self, config: DataConfig, cache: Path | None = None) -> None:
        self._root = require_root(config)
        self._set = config.source
        self._kind = _KINDS[config.source]
        self._given = config.classes
        self._cache = cache
        if config.download:
            self._download()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names as torchvision has them, unless `data.classes` gives others."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self._set == "fashion_mnist":
            return rename_classes(self._kind.classes, self._given)
        # CIFAR's names are in a file of 1 kB; opening the set for them would read 150 MB.
        shell: Any = object.__new__(self._kind)
        shell.root = str(self._root)
        try:
            shell._load_meta()
        except RuntimeError as error:
            raise self._missing(str(error)) from error
        return rename_classes(shell.classes, self._given)

    def split(self, name: SplitName) -> ArraySplit:
        """All pictures of a split, in memory."""
        try:
            opened = self._kind(str(self._root), train=name == "train", download=False)
        except _UNREADABLE as error:
            raise self._missing(str(error)) from error
        pixels = np.asarray(opened.data, dtype=np.uint8)
        labels = np.asarray(opened.targets, dtype=np.int64)
        pixels = pixels if pixels.ndim == 4 else pixels[..., None]
        return ArraySplit(labels, pixels, f"{self._set} {name}")

    def fingerprint(self, name: SplitName) -> str:
        """Content key of the split's files."""
        files = self._files(name)
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise self._missing("missing: " + ", ".join(absent))
        return content_key(self._root, files, self._cache)

    def _files(self, name: SplitName) -> list[Path]:
        if self._set == "fashion_mnist":
            folder = self._root / "FashionMNIST" / "raw"
            stem = "train" if name == "train" else "t10k"
            return [folder / f"{stem}-images-idx3-ubyte", folder / f"{stem}-labels-idx1-ubyte"]
        listed = self._kind.train_list if name == "train" else self._kind.test_list
        return [self._root / self._kind.base_folder / file for file, _ in listed]

    def _download(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root / f".{self._set}.lock"):
            if all(file.is_file() for file in self._files("train") + self._files("test")):
                return
            try:
                self._kind(str(self._root), download=True)
            except _UNREADABLE as error:  # URLError is an OSError.
                raise data_error(
                    "data.download",
                    f"must be able to fetch {self._set} into {self._root} ({error})",
                    "check the network, or put the files there and set it to false",
                ) from error

    def _missing(self, reason: str) -> DataError:
        reason = reason.partition(" You can use download=True")[0].removesuffix(".")
        return data_error(
            "data.root",
            f"must hold {self._set} as torchvision stores it ({reason})",
            "set data.download: true, or check the path",
            repr(str(self._root)),
        )
