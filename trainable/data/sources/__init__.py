"""Where pictures come from: one file a family, each read as a `Source`."""

from __future__ import annotations

from pathlib import Path

from trainable.config import DataConfig
from trainable.data.sources.base import RawSplit, Source, SplitName

__all__ = ["RawSplit", "Source", "SplitName", "open_source"]


def open_source(config: DataConfig, cache: Path | None = None) -> Source:
    """The data set that `config` names; its files are read when a split is first asked for.

    Args:
        config: `source`, `root`, `download`, `columns` and `classes` matter here.
        cache: The node's cache folder, where content hashes are remembered; None finds it
            (`trainable.places.cache_folder`).

    Raises:
        DataError: The root is missing, or cannot be downloaded to.
    """
    # Each family's libraries (scikit-learn, torchvision) are imported only where it is used.
    match config.source:
        case "digits":
            from trainable.data.sources.digits import DigitsSource as Family
        case "cifar10" | "cifar100" | "fashion_mnist":
            from trainable.data.sources.vision import VisionSource as Family
        case "parquet":
            from trainable.data.sources.parquet import ParquetSource as Family
        case "image_folder":
            from trainable.data.sources.image_folder import ImageFolderSource as Family
    return Family(config, cache)
