"""The files that a trial goes on from: whole or passed over, never trusted blindly."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import logging
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.trials import CPU, digest, numbers, train, train_and_stop
from trainable import records
from trainable.config import TrialConfig
from trainable.engine.checkpoint import BEST, CHECKPOINTS, MANIFEST, CheckpointFolder, clear
from trainable.engine.loop import TrialTask, run
from trainable.errors import CheckpointError
from trainable.networks.blocks import BlockNetwork
from trainable.records import EpochRecord

STUDENT, STATE, RANK = "student.safetensors", "state.pt", "rank-0.pt"
FILES = (STUDENT, STATE, RANK, BEST, MANIFEST)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / CHECKPOINTS).iterdir())


def newest(folder: Path, place: int = -1) -> Path:
    return folder / CHECKPOINTS / names(folder)[place]


# ------------------------------------------------------------------------------------------ the folder by itself
@functools.cache
def in_this_process(folder: Path) -> CheckpointFolder:
    """A trial has one as long as its process lives."""
    return CheckpointFolder(folder, CPU)


def save(folder: Path, student: BlockNetwork, update: int, **how: Any) -> None:
    how = {"is_best": False, "keep": 3, **how}
    shared, own = {"at": update}, {"sums": torch.full((2,), float(update))}
    in_this_process(folder).save(update, student, shared, own, **how)


def change(student: BlockNetwork) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)


def test_the_manifest_holds_a_checksum_of_every_other_file(
    student: BlockNetwork, tmp_path: Path
) -> None:
    save(tmp_path, student, 10, is_best=True)
    assert names(tmp_path) == ["000000010"]
    files = {path.name: path for path in newest(tmp_path).iterdir()}
    assert set(files) == set(FILES)
    sums = {n: hashlib.blake2b(p.read_bytes()).hexdigest() for n, p in files.items()}
    del sums[MANIFEST]
    assert json.loads(files[MANIFEST].read_text()) == sums


def test_what_was_saved_is_loaded(student: BlockNetwork, tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path, CPU).load() is None
    save(tmp_path, student, 10)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    change(student)
    snapshot = CheckpointFolder(tmp_path, CPU).load()
    assert snapshot is not None
    assert snapshot.shared["at"] == 10
    assert snapshot.own["sums"].tolist() == [10, 10]
    snapshot.load_student(student)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(keep: int, student: BlockNetwork, tmp_path: Path) -> None:
    for update in (9, 10, 100, 1000):
        save(tmp_path, student, update, keep=keep)
    assert names(tmp_path) == ["000000009", "000000010", "000000100", "000001000"][-keep:]


def test_leftovers_of_a_killed_process_are_removed(student: BlockNetwork, tmp_path: Path) -> None:
    save(tmp_path, student, 10)
    for leftover in (".000000020.tmp", ".000000030.tmp"):
        half = tmp_path / CHECKPOINTS / leftover
        half.mkdir()
        (half / STATE).write_bytes(b"half")
        (half / "other").write_bytes(b"of another process")
    save(tmp_path, student, 20)  # it reuses the name of the first
    assert sorted(path.name for path in newest(tmp_path).iterdir()) == sorted(
        (STUDENT, STATE, RANK, MANIFEST)
    )
    snapshot = CheckpointFolder(tmp_path, CPU).load()
    assert snapshot is not None
    assert snapshot.shared["at"] == 20
    assert names(tmp_path) == ["000000010", "000000020"]


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_trial_that_is_over_leaves_its_best_student_or_nothing(
    keep_best: bool, student: BlockNetwork, tmp_path: Path
) -> None:
    for update in (10, 20):
        save(tmp_path, student, update, is_best=update == 10)
    best = digest(tmp_path / BEST)
    (tmp_path / f".{BEST}.tmp").touch()  # of a process that was killed
    for _ in range(2):
        clear(tmp_path, keep_best=keep_best)
        assert [path.name for path in tmp_path.iterdir()] == [BEST] * keep_best
    assert not keep_best or digest(tmp_path / BEST) == best
    clear(tmp_path / "that never began", keep_best=keep_best)


def test_a_best_student_damaged_while_the_trial_runs_is_taken_from_an_older_checkpoint(
    student: BlockNetwork, tmp_path: Path
) -> None:
    save(tmp_path, student, 10, is_best=True)
    best = digest(tmp_path / BEST)
    save(tmp_path, student, 20)
    flip(tmp_path / BEST)  # and with it the newest checkpoint's, another name of the same file
    assert digest(newest(tmp_path) / BEST) != best
    save(tmp_path, student, 30)
    assert digest(newest(tmp_path) / BEST) == digest(tmp_path / BEST) == best


@pytest.mark.parametrize("before", [[], [False], [True]])
def test_no_other_student_is_taken_for_a_damaged_best_one(
    before: list[bool], student: BlockNetwork, tmp_path: Path
) -> None:
    """Neither the damaged file, nor an earlier and worse best one."""
    for number, is_best in enumerate(before):
        save(tmp_path, student, number, is_best=is_best)
        change(student)
    save(tmp_path, student, 10, is_best=True)
    flip(tmp_path / BEST)
    with pytest.raises(CheckpointError, match=r"must hold a best.safetensors that is whole"):
        save(tmp_path, student, 20)
    assert "000000020" not in names(tmp_path)


def test_an_old_checkpoint_without_its_manifest_keeps_no_new_one_from_being_written(
    student: BlockNetwork, tmp_path: Path
) -> None:
    save(tmp_path, student, 10, is_best=True)
    (newest(tmp_path) / MANIFEST).unlink()
    save(tmp_path, student, 20)
    assert digest(newest(tmp_path) / BEST) == digest(tmp_path / BEST)


def test_the_best_student_is_brought_back_to_what_it_was(
    student: BlockNetwork, tmp_path: Path
) -> None:
    save(tmp_path, student, 10)
    assert not (tmp_path / BEST).exists()
    save(tmp_path, student, 20, is_best=True)
    first = digest(tmp_path / BEST)
    change(student)
    save(tmp_path, student, 30)
    assert digest(tmp_path / BEST) == first
    save(tmp_path, student, 40, is_best=True)
    second = digest(tmp_path / BEST)
    assert second == digest(newest(tmp_path) / STUDENT) != first
    shutil.rmtree(newest(tmp_path))
    in_this_process(tmp_path).load()
    assert digest(tmp_path / BEST) == first
    save(tmp_path, student, 40, is_best=True)
    assert digest(tmp_path / BEST) == second


def test_a_best_student_that_no_checkpoint_knows_is_removed(
    student: BlockNetwork, tmp_path: Path
) -> None:
    save(tmp_path, student, 10)
    (tmp_path / BEST).write_bytes(b"of a trial that was deleted in part")
    CheckpointFolder(tmp_path, CPU).load()
    assert not (tmp_path / BEST).exists()


def test_damage_to_the_best_student_of_one_checkpoint_is_not_in_the_others(
    student: BlockNetwork, tmp_path: Path
) -> None:
    """They must not be second names of one file, although it is the same student in all."""
    save(tmp_path, student, 10, is_best=True)
    whole = (tmp_path / BEST).read_bytes()
    for update in (20, 30):
        save(tmp_path, student, update)
    flip(newest(tmp_path) / BEST)
    snapshot = CheckpointFolder(tmp_path, CPU).load()
    assert snapshot is not None
    assert snapshot.shared["at"] == 20
    assert (tmp_path / BEST).read_bytes() == whole


def test_code_in_a_checkpoint_is_refused_although_its_checksum_is_right(
    student: BlockNetwork, tmp_path: Path
) -> None:
    save(tmp_path, student, 10)
    touched = tmp_path / "touched"

    class Code:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(touched),))

    for file in (STATE, RANK):
        path = newest(tmp_path) / file
        kept = path.read_bytes()
        for write in (lambda p: torch.save({"at": Code()}, p), dump_plain(Code())):
            write(path)
            sign(newest(tmp_path))
            with pytest.raises(CheckpointError, match=rf"{file}: must hold tensors, numbers"):
                CheckpointFolder(tmp_path, CPU).load()
            assert not touched.exists()
        path.write_bytes(kept)
        sign(newest(tmp_path))
    pickle.loads(pickle.dumps(Code()))
    assert touched.exists()  # so the code would have worked


def dump_plain(value: Any) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(pickle.dumps(value, protocol=2))


def sign(checkpoint: Path) -> None:
    """Write the manifest anew, as who damages files on purpose would."""
    sums = {
        path.name: hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in checkpoint.iterdir()
        if path.name != MANIFEST
    }
    (checkpoint / MANIFEST).write_text(json.dumps(sums))


def test_a_checkpoint_of_other_workers_is_refused(student: BlockNetwork, tmp_path: Path) -> None:
    save(tmp_path, student, 10)
    shutil.copy(newest(tmp_path) / RANK, newest(tmp_path) / "rank-1.pt")
    sign(newest(tmp_path))
    with pytest.raises(CheckpointError, match=r"was not written by 1 worker\(s\)"):
        CheckpointFolder(tmp_path, CPU).load()


# ------------------------------------------------------------------------------------------ in a trial
def small(**train: Any) -> TrialConfig:
    """Five updates an epoch, with a checkpoint in the middle of each."""
    return TrialConfig.model_validate(
        {
            "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 256},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "train": {"epochs": 3, "checkpoint": {"every": 3, "keep": 2}, **train},
            "resources": {"gpus_per_worker": 0},
        }
    )


class Trials:
    """The same trial, whole and stopped after its second epoch."""

    def __init__(self, folder: Path, config: TrialConfig) -> None:
        self.config, self._stopped = config, folder / "stopped"
        self.whole = numbers(train(config, folder / "whole"))
        self.best = (folder / "whole" / BEST).read_bytes()
        train_and_stop(config, self._stopped, after=2)
        assert names(self._stopped) == ["000000009", "000000010"]

    def copy(self, destination: Path) -> Path:
        """The stopped one, with second names of a file as such."""
        subprocess.run(["cp", "-a", self._stopped, destination], check=True)
        return destination


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("trials"), small())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:  # in place, as a disk does it: second names see it too
        file.write(content)


def replace_by_words(path: Path) -> None:
    path.write_text("not JSON, and no tensors")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, replace_by_words])
def test_a_damaged_newest_checkpoint_is_passed_over(
    damage: Callable[[Path], None],
    file: str,
    trials: Trials,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = trials.copy(tmp_path / "cut")
    then = digest(newest(folder, -2) / BEST)
    assert then != digest(folder / BEST)  # the second epoch's student was better
    before, damaged = newest(folder, -2), newest(folder)
    damage(damaged / file)
    with caplog.at_level(logging.WARNING, "trainable.engine.checkpoint"):
        CheckpointFolder(folder, CPU).load()
    (warning,) = caplog.messages
    assert warning.startswith(str(damaged))
    assert "trying the checkpoint before it" in warning
    assert newest(folder) == before
    assert digest(folder / BEST) == then
    assert numbers(train(trials.config, folder)) == trials.whole
    assert (folder / BEST).read_bytes() == trials.best
    assert names(folder) == ["000000015"]


def test_where_all_are_damaged_that_is_said(trials: Trials, tmp_path: Path) -> None:
    folder = trials.copy(tmp_path / "cut")
    truncate(newest(folder) / STATE)
    flip(newest(folder, -2) / STUDENT)
    expected = (
        rf"^{folder / CHECKPOINTS}: must hold a checkpoint that is whole \(state.pt is damaged "
        r"\(its checksum differs\)\); restore one, or delete the trial's folder to start it again$"
    )
    with pytest.raises(CheckpointError, match=expected):
        train(trials.config, folder)


def test_a_file_system_without_second_names_will_do(
    trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    folder = tmp_path / "cut"
    train_and_stop(trials.config, folder, after=2)
    flip(newest(folder) / STATE)
    assert numbers(train(trials.config, folder)) == trials.whole
    assert (folder / BEST).read_bytes() == trials.best
    assert (folder / BEST).stat().st_nlink == 1


def test_the_best_student_is_always_that_of_the_best_epoch(tmp_path: Path) -> None:
    """So large a learning rate that the accuracy goes up and down; told epoch by epoch."""
    config = small(epochs=8, batchnorm={"recalibrate": 1})
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 2.0})})
    accuracies: list[float] = []
    students: list[str] = []

    def report(record: EpochRecord) -> None:
        accuracies.append(record.metrics[records.VAL_ACCURACY])
        students.append(digest(newest(tmp_path) / STUDENT))
        best = accuracies.index(max(accuracies))
        assert digest(tmp_path / BEST) == digest(newest(tmp_path) / BEST) == students[best]

    run(TrialTask(config, tmp_path, None), report, CPU)
    rises = [now > before for before, now in itertools.pairwise(accuracies)]
    assert True in rises
    assert False in rises, accuracies


def test_a_crash_between_checkpoint_and_best_student_is_made_good(
    trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cut"

    def crash(self: CheckpointFolder, checkpoint: Path) -> None:
        if checkpoint.name == "000000010":
            raise KeyboardInterrupt
        real(self, checkpoint)

    real = CheckpointFolder._restore_best
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "_restore_best", crash)
        with pytest.raises(KeyboardInterrupt):
            train(trials.config, folder)
    assert names(folder)[-1] == "000000010"
    assert digest(folder / BEST) != digest(newest(folder) / BEST)  # the first epoch's, still
    CheckpointFolder(folder, CPU).load()
    assert (
        digest(folder / BEST) == digest(newest(folder) / BEST) == digest(newest(folder) / STUDENT)
    )
    assert numbers(train(trials.config, folder)) == trials.whole
    assert (folder / BEST).read_bytes() == trials.best
