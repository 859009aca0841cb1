"""`kd-study run`, `resume` and `extend` as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from study.config import StudyConfig, dump_config

_STORAGE = "KD_STUDY_STORAGE"
ALONE = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
"""The environment, without the cluster that the tests share."""


def start(config: StudyConfig) -> subprocess.Popen[str]:
    """`kd-study run`."""
    path = Path(config.storage.path) / "config.yaml"
    path.write_text(dump_config(config))
    return command(config, "run", str(path))


def command(config: StudyConfig, *arguments: str) -> subprocess.Popen[str]:
    """Start it with a Ray cluster of its own, in a process group of its own, as in a terminal.

    KD_STUDY_STORAGE is the config's, also in all processes of the cluster: `processes_of` finds them by it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "study", *arguments],
        env={**ALONE, _STORAGE: config.storage.path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of(config: StudyConfig) -> list[psutil.Process]:
    """All processes that its commands started, and theirs."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # of one that has just ended, or of somebody else
            if process.environ().get(_STORAGE) == config.storage.path:
                found.append(process)
    return found
