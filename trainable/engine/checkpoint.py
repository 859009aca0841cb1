"""The files of a trial: what it goes on from, and its best student. Written, checked, then renamed.

    best.safetensors            the best student so far
    checkpoints/000000240/      after 240 updates
        student.safetensors     the undivided student's weights, and its projectors'
        state.pt                what is equal on all ranks: optimizer, scaler, records, position
        rank-0.pt               what each rank has for itself: buffers, random generators, sums
        best.safetensors        the best student at that time
        manifest.json           a checksum of each file

A checkpoint is whole or it is not there; one that was damaged later is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from trainable import ranks
from trainable.errors import CheckpointError, input_error
from trainable.networks.blocks import BlockNetwork
from trainable.networks.projectors import fold
from trainable.networks.weights import put_weights, save_tensors, save_weights

BEST, CHECKPOINTS, MANIFEST = "best.safetensors", "checkpoints", "manifest.json"
_STUDENT, _STATE = "student.safetensors", "state.pt"
_NONE, _DAMAGED = -1, -2
"""In place of a number of updates: there is no checkpoint, or none that is whole."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint as it was read."""

    path: Path
    shared: Mapping[str, Any]
    own: Mapping[str, Any]
    """Of this rank."""

    def load_student(self, student: BlockNetwork) -> None:
        """Give the student its weights, and rank 0's running statistics."""
        put_weights(student.whole, safetensors.torch.load_file(self.path / _STUDENT))


class CheckpointFolder:
    """Owns the paths in a trial's folder, which all its ranks see. `save` and `load` are called by all.

    The folder is made here, and not again: where it is away later, another one must not take its place.
    """

    def __init__(
        self, folder: Path, device: torch.device, facts: Mapping[str, str] | None = None
    ) -> None:
        """`facts` are written into the student's files."""
        self._folder, self._device, self._facts = folder, device, facts
        self._checkpoints = folder / CHECKPOINTS
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._best_sum: str | None = None
        """Checksum of the best student so far."""

    def save(
        self,
        update: int,
        student: BlockNetwork,
        shared: Mapping[str, Any],
        own: Mapping[str, Any],
        *,
        is_best: bool,
        keep: int,
    ) -> None:
        """Keep the state after `update` updates; of older checkpoints the newest `keep` − 1 stay.

        With `is_best` this student is also the trial's best.
        """
        temporary = self._checkpoints / f".{update:09d}.tmp"
        if ranks.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        ranks.barrier(self._device)
        torch.save(dict(own), temporary / _rank_file(ranks.rank()))
        ranks.barrier(self._device)
        if ranks.rank() == 0:
            save_weights(student.whole, temporary / _STUDENT, self._facts)
            torch.save(dict(shared), temporary / _STATE)
            if is_best and student.is_to_be_folded:
                save_tensors(fold(student.whole.state_dict()), temporary / BEST, self._facts)
            elif is_best:
                _link(temporary / _STUDENT, temporary / BEST)
            else:
                self._copy_best(temporary / BEST)
            sums = self._commit(temporary, self._checkpoints / f"{update:09d}")
            self._best_sum = sums.get(BEST)
            self._restore_best(self._checkpoints / f"{update:09d}")
            for old in self._newest_first()[keep:]:
                shutil.rmtree(old)
        ranks.barrier(self._device)

    def load(self) -> Snapshot | None:
        """The newest checkpoint that is whole, or None at the trial's beginning.

        The best student is brought back to what it was then.

        Raises:
            CheckpointError: There are checkpoints, and all are damaged.
        """
        update = self._choose() if ranks.rank() == 0 else 0
        update = ranks.of_first_rank(update, self._device)
        if update == _DAMAGED:
            raise input_error(
                CheckpointError,
                str(self._checkpoints),
                f"must hold a checkpoint that is whole ({damage_of(self._newest_first()[0])})",
                "restore one, or delete the trial's folder to start it again",
            )
        if update == _NONE:
            return None
        path = self._checkpoints / f"{update:09d}"
        if ranks.rank() == 0:
            for damaged in self._newest_first():
                if int(damaged.name) > update:
                    shutil.rmtree(damaged)
            self._best_sum = _checksums(path).get(BEST)
            self._restore_best(path)
        ranks.barrier(self._device)
        return Snapshot(path, _read(path / _STATE), _read(path / _rank_file(ranks.rank())))

    def _choose(self) -> int:
        """Updates of the newest whole checkpoint; _NONE or _DAMAGED where there is none."""
        for leftover in self._checkpoints.glob(".*.tmp"):
            shutil.rmtree(leftover)
        found = self._newest_first()
        for path in found:
            damage = damage_of(path)
            if damage is None:
                return int(path.name)
            _log.warning("%s: %s; trying the checkpoint before it", path, damage)
        return _DAMAGED if found else _NONE

    def _newest_first(self) -> list[Path]:
        return sorted((p for p in self._checkpoints.glob("[0-9]*") if p.is_dir()), reverse=True)

    def _commit(self, temporary: Path, final: Path) -> dict[str, str]:
        """Put a checkpoint in its place; its checksums, by file."""
        sums = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(sums, indent=1))
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, from before a restart
        os.replace(temporary, final)
        return sums

    def _copy_best(self, destination: Path) -> None:
        """Copy the best student, if there is one, from wherever it is whole.

        A second name of one file would be damaged with it, in every checkpoint at once.
        """
        if self._best_sum is None:
            return
        for folder in (self._folder, *self._newest_first()):
            if (folder / BEST).exists():
                shutil.copyfile(folder / BEST, destination)
                if _checksum(destination) == self._best_sum:
                    return
                _log.warning("%s is damaged; looking for another copy", folder / BEST)
        raise input_error(
            CheckpointError,
            str(self._folder),
            f"must hold a {BEST} that is whole (its checksum differs)",
            "restore it, or delete the trial's folder to start it again",
        )

    def _restore_best(self, checkpoint: Path) -> None:
        """Make the trial's best student the one that the checkpoint knows."""
        best, kept = best_student(self._folder), checkpoint / BEST
        if not kept.exists():
            best.unlink(missing_ok=True)
        elif not best.exists() or not os.path.samefile(best, kept):
            temporary = _half_written(best)
            temporary.unlink(missing_ok=True)
            _link(kept, temporary)
            os.replace(temporary, best)


def best_student(folder: Path) -> Path:
    """Where a trial keeps its best student: the undivided network's state dict, or with projectors that of both."""
    return folder / BEST


def clear(folder: Path, *, keep_best: bool) -> None:
    """Remove all that a trial would go on from, and its best student unless that is to stay.

    Cut short, it can be done again. OSError where something cannot be removed.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(folder / CHECKPOINTS)
    _half_written(best_student(folder)).unlink(missing_ok=True)
    if not keep_best:
        best_student(folder).unlink(missing_ok=True)


def _half_written(best: Path) -> Path:
    """What becomes the best student in an instant."""
    return best.with_name(f".{BEST}.tmp")


def _rank_file(rank: int) -> str:
    return f"rank-{rank}.pt"


def _read(path: Path) -> Mapping[str, Any]:
    """On the CPU: each part brings its own to the device."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own text advises to load it all the same
        raise input_error(
            CheckpointError,
            str(path),
            "must hold tensors, numbers and text only: nothing else is ever loaded",
            "this program did not write it; delete the trial's folder to start the trial again",
        ) from error


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _checksums(checkpoint: Path) -> dict[str, str]:
    """By file, as they were when it was written."""
    return json.loads((checkpoint / MANIFEST).read_text())


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint."""
    try:
        sums = _checksums(checkpoint)
        wrong = [name for name, known in sums.items() if _checksum(checkpoint / name) != known]
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be read ({type(error).__name__}: {error})"
    if sum(name.startswith("rank-") for name in sums) != ranks.world_size():
        return f"was not written by {ranks.world_size()} worker(s)"
    return f"{', '.join(wrong)} is damaged (its checksum differs)" if wrong else None


def _link(source: Path, destination: Path) -> None:
    """A second name of a file, or a copy of it where the file system has no such thing."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
