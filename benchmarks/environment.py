"""Where a figure was measured, and where it is kept."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime
from importlib.util import find_spec
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
        "packages": {
            name: importlib.metadata.version(name) for name in _PACKAGES if find_spec(name)
        },
    }


def keep(options: argparse.Namespace, benchmark: str, **found: Any) -> None:
    """Write what was found with a command's options to <benchmark>-<device>.json in its --output."""
    where = environment()
    device = (where["gpus"] or ["cpu"])[0] if options.device == "cuda" else "cpu"
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    path = options.output / f"{benchmark}-{device.replace(' ', '-').lower()}.json"
    record = {"environment": where, "settings": settings, **found}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
