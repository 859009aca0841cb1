"""The benchmarks as modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports one by its name, as it imports the others: from their folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module
