"""Where a figure was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "numpy")


def environment() -> dict[str, Any]:
    """Hardware, versions and date, for a file in benchmarks/results."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "gpus": gpus,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
