"""Parquet files, as Hugging Face publishes them: `train-*.parquet` and `test-*.parquet`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainable.config import DataConfig
from trainable.data.content import combine, content_key
from trainable.data.faults import data_error
from trainable.data.labels import NULL_LABEL
from trainable.data.sources.base import Labels, SplitName, rename_classes, require_root
from trainable.data.sources.row_groups import ParquetSplit, unreadable


class ParquetSource:
    """Parquet files with a column of encoded pictures and a column of labels.

    Class names are, in this order of preference: `data.classes`, the names in the schema's
    Hugging Face metadata, the sorted values of a column of strings, "0" .. "n − 1". Both splits
    take their names from the training files. A missing label (null) reads as −1.
    """

    def __init__(self, config: DataConfig, cache: Path | None = None) -> None:
        self._root = require_root(config)
        self._columns = config.columns
        self._given = config.classes
        self._cache = cache

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        values = self._values("train")
        if _is_text(values.type):
            found = tuple(sorted(set(cast("list[str]", values.drop_null().to_pylist()))))
            return found if self._given is None else self._given
        names = _hugging_face_names(self._schema("train"), self._columns.label)
        if names is not None:
            return rename_classes(names, self._given)
        if self._given is not None:
            return self._given
        labels = _integers(values)
        return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))

    def split(self, name: SplitName) -> ParquetSplit:
        """One split; its labels are read now, its pictures when they are asked for."""
        values = self._values(name)
        labels = self._encode(name, values) if _is_text(values.type) else _integers(values)
        self._check_image_column(name)
        return ParquetSplit(labels, tuple(self._files(name)), self._columns.image)

    def fingerprint(self, name: SplitName) -> str:
        """Content key of the split's files; string labels also depend on the classes' order."""
        key = content_key(self._root, self._files(name), self._cache)
        is_text = _is_text(self._schema(name).field(self._columns.label).type)
        order = self.classes if is_text else ()
        return combine(key, self._columns.image, self._columns.label, *order)

    def _files(self, name: SplitName) -> list[Path]:
        files = sorted(self._root.glob(f"{name}-*.parquet"))
        if not files:
            raise data_error(
                str(self._root / f"{name}-*.parquet"),
                "must match at least one file",
                f"put the {name} split there, e.g. as {name}-00000-of-00001.parquet",
                "none",
            )
        return files

    def _schema(self, name: SplitName) -> Any:
        """The Arrow schema of a split's first file, with both columns in it."""
        file = self._files(name)[0]
        schema = _opened(file).schema_arrow
        for role in ("image", "label"):
            column = getattr(self._columns, role)
            if column not in schema.names:
                raise data_error(
                    f"data.columns.{role}",
                    f"must be a column of {file.name}",
                    "name one of " + ", ".join(schema.names),
                    repr(column),
                )
        return schema

    def _values(self, name: SplitName) -> Any:
        """The label column over all files of a split, dictionaries resolved, as an Arrow array."""
        label = self._columns.label
        kind = self._schema(name).field(label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (_is_text(kind) or pa.types.is_integer(kind)):
            raise data_error(
                "data.columns.label",
                "must be a column of integers or strings",
                "name another column",
                f"{label!r} of type {kind}",
            )
        arrays: list[Any] = []
        for file in self._files(name):
            column = _opened(file).read([label], use_threads=False).column(0)
            arrays += [chunk.cast(kind) for chunk in column.chunks]
        return pa.concat_arrays(arrays) if arrays else pa.array([], kind)

    def _encode(self, name: SplitName, values: Any) -> Labels:
        """Labels of a column of strings; DataError for a string that is no class."""
        numbers = {class_name: label for label, class_name in enumerate(self.classes)}
        texts = cast("list[str | None]", values.to_pylist())
        unknown = sorted({text for text in texts if text is not None} - numbers.keys())
        if unknown:
            raise data_error(
                f"{self._root}/{name}-*.parquet, column {self._columns.label}",
                f"must hold only the {len(numbers)} classes of the training split"
                if self._given is None
                else "must hold only the classes that data.classes names",
                "correct the labels, or name all classes in data.classes",
                ", ".join(repr(text) for text in unknown[:5]),
            )
        encoded = [NULL_LABEL if text is None else numbers[text] for text in texts]
        return np.asarray(encoded, dtype=np.int64)

    def _check_image_column(self, name: SplitName) -> None:
        kind = self._schema(name).field(self._columns.image).type
        if pa.types.is_struct(kind):
            kind = next((f.type for f in kind if f.name == "bytes"), kind)
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise data_error(
                "data.columns.image",
                "must be a column of bytes, or of structs with a field bytes",
                "name another column",
                f"{self._columns.image!r} of type {kind}",
            )


def _opened(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(file, error) from error


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _integers(values: Any) -> Labels:
    filled = values.cast(pa.int64()).fill_null(NULL_LABEL)
    return np.array(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def _hugging_face_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """`info.features.<column>.names` of the schema's `huggingface` entry, if it has them."""
    entry = (schema.metadata or {}).get(b"huggingface")
    if entry is None:
        return None
    try:
        found: object = json.loads(entry)
    except ValueError:
        return None
    for key in ("info", "features", column, "names"):
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, object]", found).get(key)
    if not isinstance(found, list):
        return None
    return tuple(str(name) for name in cast("list[object]", found))
