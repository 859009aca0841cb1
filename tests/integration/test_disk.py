"""What a study takes on disk: its bound holds at every epoch, and at the end only the best have weights."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from study.leftovers import KEPT_TRIALS

pytestmark = pytest.mark.slow

TRIALS, AT_ONCE, KEEP = 10, 2, 2
SMALL = 32 * 1024
"""Bytes of a trial at most beside what it goes on from and its best student: its curve, its statistics."""
OF_THE_STUDY = 256 * 1024
"""Bytes of the ledger, Optuna's journal, the spool and the report."""


def size_of(*paths: Path) -> int:
    """Bytes of the files below, each counted once whatever its names; those that go meanwhile are none."""
    found: dict[int, int] = {}
    for path in paths:
        for place, _, names in os.walk(path):
            for name in names:
                with suppress(FileNotFoundError):
                    state = Path(place, name).stat()
                    found[state.st_ino] = state.st_size
    return sum(found.values())


class Watch:
    """The largest that a study and its parts were."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = self.weights = self.checkpoints = self.most = 0
        self.best: list[int] = []

    def look(self, *_: Any) -> None:
        places = [Path(place) for place, _, _ in os.walk(self.folder)]
        whole = [p for p in places if p.parent.name == "checkpoints" and p.name.isdigit()]
        students = list(self.folder.glob("trials/*/best.safetensors"))
        self.checkpoint = max([self.checkpoint, *map(size_of, whole)])
        with suppress(FileNotFoundError):
            self.weights = max([self.weights, *(path.stat().st_size for path in students)])
        self.checkpoints = max(self.checkpoints, len(whole))
        self.best.append(len(students))
        self.most = max(self.most, size_of(self.folder))


def test_a_study_takes_no_more_than_is_said(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any
) -> None:
    config = configure(
        tmp_path,
        study={
            "trials": TRIALS,
            "concurrency": AT_ONCE,
            "pruner": {"name": "asha", "grace_epochs": 2},
        },
        data={"subset": 0.3},
        train={"epochs": 4, "checkpoint": {"keep": KEEP}},
        search={"optim.lr": {"loguniform": [0.001, 0.3]}},
    )
    spy, watch = make_spy(), Watch(config.folder)
    spy.at_epoch = watch.look
    left = conduct(config, spy)
    assert watch.weights
    assert max(watch.best) > AT_ONCE  # what ended was seen, too
    # One more of each that runs while it is written.
    assert watch.checkpoints <= AT_ONCE * (KEEP + 1)
    assert max(watch.best) <= KEPT_TRIALS + AT_ONCE
    kept = (KEPT_TRIALS + 1) * watch.weights + TRIALS * SMALL + OF_THE_STUDY
    assert watch.most <= AT_ONCE * (KEEP + 1) * watch.checkpoint + kept
    assert size_of(config.folder) <= kept
    assert not list(config.folder.rglob("checkpoints"))
    with_weights = {path.parent.name for path in config.folder.glob("trials/*/best.safetensors")}
    best = left.results.best_trials[:KEPT_TRIALS]
    assert with_weights == {f"{row.number:04d}" for row in best}
    assert (config.folder / "baseline" / "best.safetensors").is_file()
    assert not list(config.folder.glob("ray/[!w]*"))
