"""A whole split as it lies on disk: from the cache, decoded into it, or to be streamed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainable.config import DataConfig
from trainable.data import decoded as decoded_splits
from trainable.data.carve import carve, subset
from trainable.data.classes import Classes, Rows
from trainable.data.content import combine
from trainable.data.decode import decode_rows
from trainable.data.decoded import Decoded
from trainable.data.faults import data_error
from trainable.data.moments import moments
from trainable.data.pictures import Pictures
from trainable.data.sources import Source, SplitName
from trainable.data.split import Split

FORMAT = "1"
"""Version of the decoded pixels: raise it whenever the same files would decode to others."""
GIB = 2**30
SAMPLED = 4096
"""Pictures, evenly spaced, that the mean and deviation of a streamed set are measured on."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A split before any of it is held out; exactly one of `decoded` and `pictures` is set."""

    key: str
    """Hex key of the pixels and labels, and of all that they depend on."""
    labels: npt.NDArray[np.int64]
    """As they lie on disk, of seen and unseen classes."""
    classes: Classes
    shape: tuple[int, int, int]
    """C, H, W."""
    decoded: Decoded | None
    pictures: Pictures | None

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures, decoded."""
        return len(self.labels) * int(np.prod(self.shape))

    def part(self, rows: Rows) -> Split:
        """The samples in some rows, with labels counted among the seen or the unseen classes."""
        stored = None if self.decoded is None else self.decoded.pixels
        labels = self.classes.renumbered(self.labels[rows])
        return Split(labels, rows, self.shape, stored, self.pictures)

    def rows_of(self, *, unseen: bool) -> Rows:
        """The rows of seen or of unseen classes, ascending."""
        return np.flatnonzero(self.classes.is_unseen(self.labels) == unseen)

    def carved(self, config: DataConfig) -> tuple[Rows, Rows]:
        """Rows to train on and rows held out, of seen classes: which, no unseen class changes."""
        return carved(self.labels, self.classes, config)

    def subset(self, rows: Rows, config: DataConfig) -> Rows:
        """`data.subset` of the rows to train on."""
        return subset(self.labels, rows, config.subset, config.split_seed)

    def measured(self, rows: Rows, cache: Path) -> Decoded:
        """The sums and hashes of some rows' pictures, without their pixels.

        A streamed split decodes them, once for a node: what was found is kept in the cache folder.
        """
        if self.decoded is not None:
            whole = self.decoded
            sums, squares, hashes = whole.sums[rows], whole.squares[rows], whole.hashes[rows]
            return Decoded(whole.labels[rows], sums, squares, hashes, whole.shape, None)
        assert self.pictures is not None
        pictures = self.pictures
        path = decoded_splits.decoded_path(cache, combine(self.key, "sums", _digest(rows)))
        known = decoded_splits.load(path)
        if known is not None:
            return known
        return decoded_splits.build(path, lambda: decode_rows(pictures, rows, keep=False))

    def normalization(
        self, rows: Rows, config: DataConfig, cache: Path
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation: the config's own, or measured over some rows; DataError if these are all alike."""
        if config.mean is not None and config.std is not None:
            return config.mean, config.std
        if self.pictures is not None and len(rows) > SAMPLED:
            rows = rows[np.linspace(0, len(rows) - 1, SAMPLED).round().astype(np.int64)]
        _, height, width = self.shape
        measured = self.measured(rows, cache)
        mean, std = moments(measured.sums, measured.squares, height * width)
        return config.mean or mean, config.std or std


def carved(
    labels: npt.NDArray[np.int64], classes: Classes, config: DataConfig
) -> tuple[Rows, Rows]:
    """Rows of the training split to train on and rows held out, of seen classes, each ascending."""
    kept, held_out = carve(labels, config.val_fraction, config.split_seed)
    hidden = classes.is_unseen(labels)
    return kept[~hidden[kept]], held_out[~hidden[held_out]]


def open_split(source: Source, name: SplitName, config: DataConfig, cache: Path) -> Opened:
    """Map a split from the cache, decoding it first if need be; or leave it to be streamed.

    Raises:
        DataError: The split is missing or has corrupt pictures, or is over the budget although
            `data.loader` is `resident`; or `data.unseen_classes` cannot be what it is.
    """
    classes = Classes.of(source.classes, config.unseen_classes)
    shaping = (config.channels, config.image_size, config.resize)
    key = combine(FORMAT, source.fingerprint(name), *(str(setting) for setting in shaping))
    path = decoded_splits.decoded_path(cache, key)
    streams = config.loader == "streamed" or config.augment.changes_single_pictures
    decoded = None if streams else decoded_splits.load(path)
    if decoded is not None and not _over_budget(config, len(decoded), decoded.shape):
        return Opened(key, decoded.labels, classes, decoded.shape, decoded, None)
    raw = source.split(name)
    pictures = Pictures.of(raw, config.channels, config.image_size, config.resize)
    if streams or _over_budget(config, len(raw), pictures.shape):
        return Opened(key, raw.labels, classes, pictures.shape, None, pictures)
    rows = np.arange(len(raw), dtype=np.int64)
    decoded = decoded_splits.build(path, lambda: decode_rows(pictures, rows, keep=True))
    return Opened(key, decoded.labels, classes, decoded.shape, decoded, None)


def _digest(rows: Rows) -> str:
    return hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()


def _over_budget(config: DataConfig, count: int, shape: tuple[int, int, int]) -> bool:
    """Whether so many pictures are too many to keep; DataError if they have to be kept."""
    gib = count * int(np.prod(shape)) / GIB
    if gib <= config.cache_budget_gib:
        return False
    if config.loader == "resident":
        raise data_error(
            "data.cache_budget_gib",
            f"loader resident needs at least {gib:.3g} GiB for {count:,} pictures",
            "raise it, set data.image_size, or set data.loader to auto or streamed",
            f"{config.cache_budget_gib:g}",
        )
    return True


def train_fingerprint(opened: Opened, config: DataConfig) -> str:
    """Hex key of what a network trained on this set depends on, but for its own settings.

    The settings of a trial also have its `data.subset`, which does not change the normalization.
    """
    unseen = sorted(config.unseen_classes or ())
    settings = (config.val_fraction, config.split_seed, config.mean, config.std, unseen)
    return combine(opened.key, *(repr(setting) for setting in settings))


def label_place(config: DataConfig, name: SplitName) -> str:
    """How a message names the labels of a split."""
    return f"{config.root or config.source} ({name})"
