"""The learning curve of a trial: the record of every epoch, one JSON line each, in the trial's folder.

The driver adds a line as it hears of an epoch, before the ledger and MLflow do; reports and the diagnosis
read them. What a driver that died has written twice or half is read once or not at all.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from trainable.records import EpochRecord

CURVE = "epochs.jsonl"
"""The curve's file in a trial's folder."""


def add_epoch(folder: Path, record: EpochRecord) -> None:
    """Add an epoch to the curve of the trial of `folder`, which is there."""
    with (folder / CURVE).open("a", encoding="utf-8") as file:
        if file.tell() and not _ends_a_line(folder / CURVE):
            file.write("\n")  # after a driver that died within a line
        file.write(json.dumps(asdict(record)) + "\n")


def read_curve(folder: Path) -> tuple[EpochRecord, ...]:
    """The epochs of the trial of `folder`, in order; empty where none has ended."""
    path = folder / CURVE
    if not path.exists():
        return ()
    found: dict[int, EpochRecord] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
            # One copy of each name for all epochs: of a large study these are most of what is read.
            told["metrics"] = {sys.intern(name): value for name, value in told["metrics"].items()}
            record = EpochRecord(**told)
        except (ValueError, TypeError, KeyError):
            continue  # cut off
        found[record.epoch] = record
    return tuple(found[epoch] for epoch in sorted(found))


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
