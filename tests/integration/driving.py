"""`kd-study run` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from study.config import StudyConfig, dump_config

ALONE = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
"""The environment, without the cluster that the tests share."""


def start(config: StudyConfig) -> subprocess.Popen[str]:
    """Start it with a Ray cluster of its own, in a process group of its own, as in a terminal."""
    path = Path(config.storage.path) / "config.yaml"
    path.write_text(dump_config(config))
    return subprocess.Popen(
        [sys.executable, "-m", "study", "run", str(path)],
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
