"""Short ways to say what is wrong with a data set."""

from __future__ import annotations

from trainable.errors import DataError, Problem


def data_error(path: str, rule: str, remedy: str, got: str | None = None) -> DataError:
    """An error of one problem; `got` is shown as it is."""
    return DataError([Problem(path, rule, remedy, got)])
