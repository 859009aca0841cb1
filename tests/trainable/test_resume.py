"""A trial that is stopped at any update, and run again, ends as one that was not: to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainable.trials import (
    CPU,
    assert_equal,
    numbers,
    student_with_dropout,
    train,
    untrained_teacher,
)
from trainable import records
from trainable.config import TrialConfig
from trainable.engine import loop
from trainable.engine.checkpoint import BEST, CHECKPOINTS, CheckpointFolder
from trainable.engine.randomness import generator_states, restore_generators, seed_everything
from trainable.engine.step import Step
from trainable.errors import TrainingError
from trainable.networks.teacher import TeacherOutputs
from trainable.records import EpochRecord

PER_EPOCH, EPOCHS, EVERY = 5, 4, 2


# ------------------------------------------------------------------------------------------ random generators
def draw() -> list[float]:
    """Of every generator; odd numbers of normal draws leave one in its cache."""
    plain = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]
    return [*plain, *torch.rand(3).tolist(), *torch.randn(3).tolist()]


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    seed_everything(3)
    draw()
    torch.save(generator_states(CPU), tmp_path / "states.pt")
    expected = [draw(), draw()]
    seed_everything(4)
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    restore_generators(states, CPU)
    assert [draw(), draw()] == expected
    assert len({*expected[0], *expected[1]}) == 20


def test_a_seed_reaches_every_generator() -> None:
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    assert not set(draw()) & set(first)


# ------------------------------------------------------------------------------------------ trials
def config(**sections: Mapping[str, Any]) -> TrialConfig:
    """Five updates an epoch and four epochs, a checkpoint at every even update and every epoch's end."""
    tree: dict[str, Any] = {
        "data": {
            "source": "digits",
            "val_fraction": 0.25,
            "batch_size": 256,
            "augment": {"crop": 1, "flip": True},
        },
        "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
        "student": {"model": "mini_resnet_10_4"},
        "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"},
        "train": {"epochs": EPOCHS, "observe_every": 3, "checkpoint": {"every": EVERY}},
        "resources": {"gpus_per_worker": 0},
    }
    return TrialConfig.model_validate({n: {**s, **sections.get(n, {})} for n, s in tree.items()})


ALL = {"accumulate": 2, "gradient_noise": 1e-3, "clip": 1.0}
TRAIN = {"epochs": EPOCHS, "observe_every": 3, "checkpoint": {"every": EVERY}}
CASES = {
    "fp32": config(train={**TRAIN, **ALL}),
    "bf16": config(train={**TRAIN, **ALL, "precision": "bf16"}),
    "fp16": config(  # slow on a CPU: fewer pictures
        data={"val_fraction": 0.75, "batch_size": 72},
        train={
            **TRAIN,
            "precision": "fp16",
            "loss_scale": {"initial": 2.0**10, "growth_interval": 4},
        },
    ),
    "batchnorm": config(
        distill={"method": "kd_mse", "alpha": 0.5, "decomposition": None},
        optim={"name": "adamw", "lr": 0.01},
        train={**TRAIN, "batchnorm": {"freeze_after": 2, "recalibrate": 2}},
    ),
    "reviewkd": config(
        data={"sampling": "balanced"},
        distill={"method": "reviewkd", "alpha": None, "lam": 1.0, "decomposition": None},
        train={**TRAIN, **ALL, "clip_by": "layer"},
    ),
    "sobolev": config(
        data={"val_fraction": 0.75, "batch_size": 72},
        distill={"method": "sobolev", "lam": 1.0, "decomposition": None},
    ),
}
STOPS = {
    "before the first checkpoint": (1,),
    "in the middle of an epoch": (3,),
    "right after a stage change": (5,),
    "in the first update of a stage's first checkpoint": (10,),
    "in the middle of the last stage, between epochs": (15,),
    "again and again": (2, 4, 4, 7, 9, 13, 19),
}


@dataclass
class Ended:
    """All that a trial leaves behind, times and rates aside."""

    records: list[dict[str, float]]
    best: bytes
    state: dict[str, Any]


def ended(found: list[EpochRecord], folder: Path) -> Ended:
    (last,) = (folder / CHECKPOINTS).iterdir()
    state = {
        "shared": torch.load(last / "state.pt", weights_only=True),
        "own": torch.load(last / "rank-0.pt", weights_only=True),
        "student": (last / "student.safetensors").read_bytes(),
    }
    for name in ("records", "seconds", "waited"):
        del state["shared"][name]
    return Ended(numbers(found), (folder / BEST).read_bytes(), state)


def stop_at(patch: pytest.MonkeyPatch, update: int) -> None:
    """Raise between backward and optimizer of this update, counted from 0 over all epochs."""
    finish = Step.finish

    def finish_or_stop(self: Step, lr: float) -> None:
        if self._updates == update:
            raise RuntimeError("stopped by the test")
        finish(self, lr)

    patch.setattr(Step, "finish", finish_or_stop)


def interrupted(config: TrialConfig, folder: Path, teacher: Path, stops: tuple[int, ...]) -> Ended:
    for update in stops:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, update)
            with pytest.raises(TrainingError, match="stopped by the test"):
                train(config, folder, teacher)
        kept = {int(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*")}
        before = {u for u in range(1, update + 1) if u % EVERY == 0 or u % PER_EPOCH == 0}
        assert max(kept, default=0) == max(before, default=0)
    return ended(train(config, folder, teacher), folder)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_teacher(config(), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> Callable[[str], Ended]:
    """How a case ends that nobody stops; trained once."""
    known: dict[str, Ended] = {}

    def find(case: str) -> Ended:
        if case not in known:
            folder = tmp_path_factory.mktemp("whole")
            known[case] = ended(train(CASES[case], folder, teacher_file), folder)
        return known[case]

    return find


@pytest.fixture(autouse=True)
def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "build_student", student_with_dropout)


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("case", ["fp32", "batchnorm"])
def test_a_stopped_trial_ends_in_the_same_bits(
    case: str,
    stops: tuple[int, ...],
    whole: Callable[[str], Ended],
    teacher_file: Path,
    tmp_path: Path,
) -> None:
    cut = interrupted(CASES[case], tmp_path, teacher_file, stops)
    assert_equal(cut.records, whole(case).records)
    assert_equal(cut.state, whole(case).state)
    assert cut.best == whole(case).best


@pytest.mark.parametrize("case", ["bf16", "fp16"])
def test_a_stopped_trial_ends_in_the_same_bits_in_mixed_precision(
    case: str, whole: Callable[[str], Ended], teacher_file: Path, tmp_path: Path
) -> None:
    stops = (13,) if case == "fp16" else (3, 5, 13)
    cut = interrupted(CASES[case], tmp_path, teacher_file, stops)
    assert_equal(cut.records, whole(case).records)
    assert_equal(cut.state, whole(case).state)
    assert cut.best == whole(case).best
    if case == "fp16":  # the scale moved in mid-epoch: it was part of what had to be restored
        scales = {record[records.AMP_SCALE] for record in cut.records}
        assert len(scales) == EPOCHS


@pytest.mark.parametrize("case", ["reviewkd", "sobolev"])
def test_a_method_goes_on_with_its_own_parameters_and_directions(
    case: str, whole: Callable[[str], Ended], teacher_file: Path, tmp_path: Path
) -> None:
    """Those of the fusions, with their BatchNorm; those along which slopes are compared."""
    cut = interrupted(CASES[case], tmp_path, teacher_file, (3, 5, 13))
    assert_equal(cut.records, whole(case).records)
    assert_equal(cut.state, whole(case).state)
    assert cut.best == whole(case).best
    own = cut.state["shared"]["method"]
    assert bool(own) == (case == "reviewkd")
    assert len({record[records.TRAIN_FEATURE] for record in cut.records}) == EPOCHS


def test_dropout_and_stages_are_in_what_was_compared(whole: Callable[[str], Ended]) -> None:
    found = whole("fp32").records
    assert [record[records.TRAIN_STAGE] for record in found] == [1, 2, 3, 3]
    assert all(record[records.GRAD_CLIP_RATE] > 0 for record in found)


def test_an_epochs_counts_are_those_of_the_whole_epoch(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates are skipped, one on either side of the stop."""
    accumulate = Step.accumulate

    def spoiled(self: Step, images: Any, labels: Any, teacher: Any, **how: Any) -> None:
        if self._updates in (1, 3):
            teacher = TeacherOutputs(teacher.features, teacher.logits * torch.nan)
        accumulate(self, images, labels, teacher, **how)

    monkeypatch.setattr(Step, "accumulate", spoiled)
    short = config(train={**TRAIN, "epochs": 3})
    folder = tmp_path / "whole"
    calm = ended(train(short, folder, teacher_file), folder)
    cut = interrupted(short, tmp_path / "cut", teacher_file, (3,))
    assert [record[records.AMP_SKIPPED] for record in cut.records] == [2, 0, 0]
    assert cut.records[0][records.skipped_at("kl")] == 2
    assert_equal(cut.records, calm.records)
    assert_equal(cut.state, calm.state)


def test_an_epochs_speed_is_that_of_all_processes(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that updates move by 1 s, before the stop and after it, and checkpoints by 100."""
    clock = [0.0]
    accumulate, save = Step.accumulate, CheckpointFolder.save

    def long(self: CheckpointFolder, *arguments: Any, **how: Any) -> None:
        clock[0] += 100.0
        save(self, *arguments, **how)

    monkeypatch.setattr(CheckpointFolder, "save", long)

    def slow(self: Step, *arguments: Any, **how: Any) -> None:
        clock[0] += 1.0
        accumulate(self, *arguments, **how)

    monkeypatch.setattr(Step, "accumulate", slow)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(TrainingError):
            train(config(), tmp_path, teacher_file)
    found = train(config(), tmp_path, teacher_file)
    speeds = [record.metrics[records.TRAIN_IMAGES_PER_SECOND] for record in found]
    assert len(set(speeds)) == 1
    assert speeds[0] * PER_EPOCH == pytest.approx(1078, abs=10)
    seconds = [record.metrics[records.TRAIN_SECONDS] for record in found]
    assert seconds == [PER_EPOCH * epoch for epoch in range(1, len(found) + 1)]


def test_a_trial_from_a_cpu_goes_on_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the GPU's own generator as the epoch's seed left it."""
    states, told = generator_states(CPU), list[object]()
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *state: told.append(state))
    drawn = random.random()
    restore_generators(states, torch.device("cuda"))
    assert random.random() == drawn
    assert told == []
