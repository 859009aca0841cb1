"""What a person reads when a trial cannot go on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.trials import CPU, MakeConfig, train
from trainable.config import TrialConfig
from trainable.data.augment import Normalizer
from trainable.data.store import Dataset, open_dataset
from trainable.engine import checkpoint, loop, norms
from trainable.engine.evaluate import Evaluator
from trainable.engine.loop import TrialTask, run
from trainable.engine.step import Step
from trainable.errors import DataError, KdStudyError, TrainingError

UPDATES = 9


@pytest.fixture
def config(make_config: MakeConfig) -> TrialConfig:
    """Two epochs of nine updates, without a teacher."""
    return make_config(data={"batch_size": 128}, distill={"method": "none"})


def words(config: TrialConfig, folder: Path, kind: type[KdStudyError] = TrainingError) -> str:
    """What the trial ends with."""
    with pytest.raises(kind) as caught:
        train(config, folder)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    return text


def at_update(update: int, raising: Callable[[], Any]) -> Callable[..., None]:
    """`Step.accumulate` that fails in one update, counted from 0 over all epochs."""
    accumulate = Step.accumulate

    def failing(self: Step, *arguments: Any, **how: Any) -> None:
        if self._updates == update:
            raising()
        accumulate(self, *arguments, **how)

    return failing


def fail() -> None:
    raise ZeroDivisionError("spoiled by the test")


# ------------------------------------------------------------------------------------------ any error
@pytest.mark.parametrize(
    ("update", "place"),
    [(0, "rank 0, epoch 1, update 1"), (UPDATES + 3, "rank 0, epoch 2, update 4")],
)
def test_an_error_in_an_update_says_where(
    update: int,
    place: str,
    config: TrialConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Step, "accumulate", at_update(update, fail))
    with pytest.raises(TrainingError) as caught:
        train(config, tmp_path)
    assert str(caught.value) == (
        f"ZeroDivisionError: spoiled by the test ({place}, "
        "forward and backward of 128 pictures in fp32)"
    )
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert cause.__traceback__ is not None


@pytest.mark.parametrize(
    ("owner", "name", "doing"),
    [
        (loop, "build_student", "before epoch 1, setting up networks and data"),
        (Step, "finish", "epoch 1, update 1, applying the gradient"),
        (norms, "Recalibration", f"epoch 1, update {UPDATES}, settling BatchNorm"),
        (Evaluator, "score", f"epoch 1, update {UPDATES}, validating"),
        (checkpoint, "save_weights", "epoch 1, update 4, writing a checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_an_error_says_what_was_being_done(
    owner: Any,
    name: str,
    doing: str,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(
        data={"batch_size": 128},
        distill={"method": "none"},
        train={"checkpoint": {"every": 4}, "batchnorm": {"recalibrate": 1}},
    )
    monkeypatch.setattr(owner, name, lambda *arguments, **how: fail())
    if name != "save_weights":
        monkeypatch.setattr(checkpoint.CheckpointFolder, "save", lambda *arguments, **how: None)
    assert words(config, tmp_path) == (f"ZeroDivisionError: spoiled by the test (rank 0, {doing})")


def test_an_error_at_the_end_of_an_epoch_is_told_with_its_last_update(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save_weights", lambda *arguments: fail())
    place = f"(rank 0, epoch 1, update {UPDATES}, writing a checkpoint)"
    assert words(config, tmp_path).endswith(place)


def test_an_error_of_who_listens_is_left_alone(config: TrialConfig, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(TrialTask(config, tmp_path, None), lambda record: fail(), CPU)


# ------------------------------------------------------------------------------------------ out of memory
def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def no_cpu_memory() -> None:
    torch.empty(2**56, dtype=torch.uint8)


def no_python_memory() -> None:
    bytearray(2**62)


@pytest.mark.parametrize("exhaust", [no_gpu_memory, no_cpu_memory, no_python_memory])
def test_out_of_memory_names_what_was_tried_and_what_helps(
    exhaust: Callable[[], None],
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(
        data={"batch_size": 128},
        distill={"method": "none"},
        train={"accumulate": 2},
    )
    monkeypatch.setattr(Step, "accumulate", at_update(2, exhaust))
    with pytest.raises(TrainingError) as caught:
        train(config, tmp_path)
    assert str(caught.value) == (
        "rank 0, epoch 1, update 3: out of memory on cpu: forward and backward of 64 pictures in fp32 must "
        "fit into memory; raise train.accumulate (now 2: smaller micro-batches, the same update), "
        "or set train.activation_checkpointing: true, or use train.precision: bf16 (now fp32)"
    )
    assert isinstance(caught.value.__cause__, (torch.OutOfMemoryError, RuntimeError, MemoryError))


def test_what_is_done_already_is_no_remedy(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"precision": "bf16", "activation_checkpointing": True}
    config = make_config(distill={"method": "none"}, train=settings)
    monkeypatch.setattr(Step, "accumulate", at_update(0, no_cpu_memory))
    with pytest.raises(TrainingError) as caught:
        train(config, tmp_path)
    remedies = str(caught.value).partition("; ")[2]
    assert remedies == "raise train.accumulate (now 1: smaller micro-batches, the same update)"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
    ],
)
def test_lack_of_memory_is_known_by_cudas_own_words(
    text: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(loop, "validation_summary", refuse)
    with pytest.raises(TrainingError) as caught:
        train(make_config(distill={"method": "none"}), tmp_path)
    assert "out of memory on cpu: validating must fit into memory; let fewer trials share" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_an_error_of_the_device_says_whose_fault_it_may_be(
    said: str, config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        more = "CUDA kernel errors might be asynchronously reported at some other API call."
        raise torch.AcceleratorError(f"{said}\n{more}")

    monkeypatch.setattr(Step, "accumulate", at_update(UPDATES + 3, fault))
    assert words(config, tmp_path) == (
        "rank 0, epoch 2, update 4: cpu failed: forward and backward of 128 pictures in fp32 must end without an "
        f"error of the device, but: {said}; if other trials fail on it, too, the GPU or its driver is at fault "
        "(`dmesg` on its node has the Xid); if not, a kernel of this trial: CUDA_LAUNCH_BLOCKING=1 shows which"
    )


def test_another_runtime_error_is_not_taken_for_lack_of_memory(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mismatch() -> None:
        torch.ones(2) @ torch.ones(3)

    monkeypatch.setattr(Step, "accumulate", at_update(0, mismatch))
    assert words(config, tmp_path).startswith("RuntimeError: ")


# ------------------------------------------------------------------------------------------ bad data, found late
ROW, VALUE = 123, 99


@pytest.fixture
def data(config: TrialConfig) -> Dataset:
    """Opened and checked already."""
    return open_dataset(config.data)


def sample_at(data: Dataset, row: int) -> int:
    (sample,) = (data.train.rows == row).nonzero()[0]
    assert sample != row  # those before it that are held out make the difference
    return int(sample)


@pytest.mark.parametrize("value", [VALUE, -1])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_label_that_no_class_has_is_named_by_its_row_on_disk(
    accumulate: int,
    value: int,
    make_config: MakeConfig,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = data.train.labels.copy()
    labels[sample_at(data, ROW)] = value
    spoiled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    monkeypatch.setattr(loop, "open_dataset", lambda config: spoiled)
    config = make_config(
        data={"batch_size": 128}, distill={"method": "none"}, train={"accumulate": accumulate}
    )
    assert words(config, tmp_path, DataError) == (
        "digits (train): pictures must be finite after augmentation, and labels those of a class, "
        f"got row {ROW}; check this row, data.mean and data.std; the update was skipped"
    )


def test_a_picture_that_is_not_finite_is_named_by_its_row_on_disk(
    config: TrialConfig, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch, whose order is another."""
    target = torch.from_numpy(data.train.images(data.train.rows == ROW))
    calls, normalize = [0], Normalizer.__call__

    def spoiled(self: Normalizer, images: Tensor) -> Tensor:
        calls[0] += 1
        prepared = normalize(self, images)
        hit = (images == target).flatten(1).all(1)
        # Each epoch: nine updates, then the validation split, twice.
        return prepared.masked_fill(hit.view(-1, 1, 1, 1), torch.nan) if calls[0] > 11 else prepared

    monkeypatch.setattr(Normalizer, "__call__", spoiled)
    assert f"got row {ROW};" in words(config, tmp_path, DataError)
    assert 11 < calls[0] <= 20  # it ended in the update that met it, or soon after


# ------------------------------------------------------------------------------------------ divergence
def test_a_learning_rate_that_is_far_too_high_ends_in_words(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        data={"batch_size": 32},
        distill={"method": "none"},
        optim={"lr": 1e9},
        train={"max_skipped": 5, "epochs": 3},
    )
    text = words(config, tmp_path)
    match = re.match(
        r"train\.max_skipped: at most 5 updates in a row may be skipped, not 6, "
        r"got epoch (\d), update (\d+): first not finite in (.+); lower optim\.lr or set train\.clip$",
        text,
    )
    assert match is not None, text
    assert re.fullmatch(r"\w+ \d+×(, \w+ \d+×)*", match[3])


def test_a_trial_that_diverged_says_so_again_when_it_is_run_again(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """A checkpoint between the first skipped update and the last keeps the count."""
    config = make_config(
        data={"batch_size": 32},
        distill={"method": "none"},
        optim={"lr": 1e9},
        train={"max_skipped": 5, "epochs": 3, "checkpoint": {"every": 2}},
    )
    assert words(config, tmp_path) == words(config, tmp_path)
