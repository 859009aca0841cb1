"""Pictures in folders named after their classes: `root/train/<class>/…`, `root/test/<class>/…`."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trainable.config import DataConfig
from trainable.data.content import combine, content_key
from trainable.data.faults import data_error
from trainable.data.sources.base import Labels, Picture, SplitName, corrupt, decode, require_root

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files that are taken for pictures, in either case; others are left alone."""


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """The files of one split; a picture is read when it is asked for."""

    labels: Labels
    folder: Path
    files: tuple[str, ...]
    """Relative to `folder`, sorted by class and then by path."""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Picture:
        """One decoded picture, uint8 (H, W, C)."""
        name = self.name(index)
        try:
            data = Path(name).read_bytes()
        except OSError as error:
            raise corrupt(name, str(error)) from error
        return decode(data, name)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.folder / self.files[index])


class ImageFolderSource:
    """Folders of pictures; a class's files may lie in folders below its own.

    Classes are the folders of `root/train`, sorted by name, or `data.classes` in its own order,
    which must then name exactly those folders.
    """

    def __init__(self, config: DataConfig, cache: Path | None = None) -> None:
        self._root = require_root(config)
        self._given = config.classes
        self._cache = cache
        self._listed: dict[SplitName, list[list[str]]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Folder names in the order of their labels."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        found = _subfolders(self._folder("train"))
        if not found:
            raise data_error(
                str(self._root / "train"),
                "must have a folder for each class",
                "put each class's pictures into a folder named after it",
                "none",
            )
        if self._given is not None and sorted(self._given) != found:
            raise data_error(
                "data.classes",
                f"must name the folders of {self._root / 'train'}: {', '.join(found)}",
                "correct the names, or remove it",
                ", ".join(self._given),
            )
        return self._given or tuple(found)

    def split(self, name: SplitName) -> FolderSplit:
        """The files of a split; DataError for a folder that is no class, or where there are no files."""
        folder = self._folder(name)
        listed = self._pictures(name)
        if not any(listed):
            raise data_error(
                str(folder),
                "must have pictures in its classes' folders",
                f"add some: files that end in {', '.join(sorted(SUFFIXES))}",
                "none",
            )
        counts = [len(files) for files in listed]
        labels = np.repeat(np.arange(len(listed), dtype=np.int64), counts)
        return FolderSplit(labels, folder, tuple(itertools.chain.from_iterable(listed)))

    def fingerprint(self, name: SplitName) -> str:
        """Content key of the split's files and their paths, classes in label order.

        As `split` it refuses a folder that is no class: nobody else looks at one once the pictures are cached.
        """
        folder = self._folder(name)
        files = [folder / file for file in itertools.chain.from_iterable(self._pictures(name))]
        # What was decoded keeps labels, which depend on all classes, also those without a file here.
        return combine(content_key(folder, files, self._cache), *self.classes)

    def _pictures(self, name: SplitName) -> list[list[str]]:
        """Each class's pictures, relative to the split's folder; listed once, as it takes a while."""
        if name not in self._listed:
            folder = self._folder(name)
            self._check_folders(folder)
            self._listed[name] = [_pictures(folder, class_name) for class_name in self.classes]
        return self._listed[name]

    def _check_folders(self, folder: Path) -> None:
        unknown = sorted(set(_subfolders(folder)) - set(self.classes))
        if unknown:
            raise data_error(
                str(folder),
                "must have the same class folders as train",
                f"remove them, or give {self._root / 'train'} folders with pictures of them, too",
                ", ".join(unknown),
            )

    def _folder(self, name: SplitName) -> Path:
        folder = self._root / name
        if folder.is_dir():
            return folder
        remedy = "image_folder reads root/train/<class>/ and root/test/<class>/"
        if name == "test" and (self._root / "val").is_dir():
            remedy = "rename val to test (kd-study holds out its own validation from train)"
        raise data_error(str(folder), "must be a folder", remedy, "nothing")


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _pictures(folder: Path, class_name: str) -> list[str]:
    """Every picture at any depth of a class's folder, sorted; none where the folder is not there."""
    found: list[str] = []
    for place, _, names in os.walk(folder / class_name):
        within = os.path.relpath(place, folder)
        found += [
            os.path.join(within, name)
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)
