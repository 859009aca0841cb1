"""A whole trial on a CUDA device, under `train.deterministic`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gpu.stepping import CUDA
from tests.trainable.trials import numbers, student_with_dropout, train, untrained_teacher
from trainable.config import TrialConfig
from trainable.engine import loop
from trainable.engine.checkpoint import BEST, CHECKPOINTS
from trainable.engine.step import Step

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("restored_determinism")]
EVERY = 5


def config_of(**train: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "data": {
                "source": "digits",
                "val_fraction": 0.25,
                "batch_size": 64,
                "augment": {"crop": 1},
            },
            "teacher": {"model": "mini_resnet_10_8", "checkpoint": "/nowhere.safetensors"},
            "student": {"model": "mini_resnet_10_8"},
            "distill": {"method": "kd", "alpha": 0.5},
            "train": {"epochs": 2, "precision": "fp16", "deterministic": True, **train},
            "resources": {"gpus_per_worker": 1},
        }
    )


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    return untrained_teacher(config_of(), tmp_path)


def trained(config: TrialConfig, folder: Path, teacher: Path) -> list[dict[str, float]]:
    return numbers(train(config, folder, teacher, CUDA))


def test_a_trial_repeats_its_bits(tmp_path: Path, teacher_file: Path) -> None:
    config = config_of()
    first = trained(config, tmp_path / "a", teacher_file)
    assert trained(config, tmp_path / "b", teacher_file) == first
    assert (tmp_path / "a" / BEST).read_bytes() == (tmp_path / "b" / BEST).read_bytes()


class KilledError(BaseException):
    """As if the process died: nothing in a trial catches it."""


class Mortal(Step):
    """Dies in the middle of the second epoch, between two checkpoints."""

    updates = 0

    def count(self) -> None:
        super().count()
        Mortal.updates += 1
        if Mortal.updates == 4 * EVERY + 3:
            raise KilledError


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_noise": 1e-3}, {"activation_checkpointing": True}],
    ids=["graph", "noise", "recompute"],
)
def test_a_trial_with_dropout_cut_off_within_an_epoch_ends_in_the_same_bits(
    settings: dict[str, Any],
    tmp_path: Path,
    teacher_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replayed as a graph, and where that cannot go."""
    monkeypatch.setattr(loop, "build_student", student_with_dropout)
    config = config_of(checkpoint={"every": EVERY}, clip=5.0, **settings)
    whole = trained(config, tmp_path / "whole", teacher_file)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Step", Mortal)
        patch.setattr(Mortal, "updates", 0)
        with pytest.raises(KilledError):
            trained(config, tmp_path / "cut", teacher_file)
    kept = sorted(path.name for path in (tmp_path / "cut" / CHECKPOINTS).iterdir())
    assert kept[-1] == f"{4 * EVERY:09d}"
    assert trained(config, tmp_path / "cut", teacher_file) == whole
    assert (tmp_path / "cut" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
